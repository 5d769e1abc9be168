"""Differences of points on the hyperboloid, computed without cancellation; `lorentz` is built on them.

Squared norms of two points are never multiplied with each other: their roots are, so that float32 reaches as far
as |x| |y| does (radius 44 each), float64 to radius 354.
"""

import torch
from torch import Tensor

from hyco.models.hyperbolic.ops import (
    CurvatureLike,
    expand_c,
    has_direction,
    promote,
    safe_norm,
    sqrt_c,
    square_norm,
    unit,
)


def beyond_one(xx: Tensor) -> Tensor:
    """sqrt(1 + s) - 1 without cancellation, with s = |x|^2: the unit hyperboloid's time part minus 1."""
    return xx / (1 + (1 + xx).sqrt())


def chord(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Squared chord q = c(|x-y|^2 - (x_t-y_t)^2) = 4 sinh^2(sqrt(c) d / 2): [..., D] x [..., D] -> [..., 1].

    Written without cancellation, on the unit hyperboloid with u = x_t - 1, v = y_t - 1: for x.y > 0, q =
    2 (|x-y|^2 + |x ^ y|^2) / (2 + u + v + u v + x.y), which follows from Lagrange's identity; otherwise q =
    2 (u + v + u v - x.y). Both are sums of terms of one sign.
    """
    x, y = promote(x) * expand_c(sqrt_c(c)), promote(y) * expand_c(sqrt_c(c))
    xx, yy, xy = square_norm(x), square_norm(y), (x * y).sum(-1, keepdim=True)
    u, v = beyond_one(xx), beyond_one(yy)
    times = u + v + u * v
    same_side = xy > 0
    bottom = 2 + times + torch.where(same_side, xy, 0.0)
    # |x ^ y| = |x| |y_perp|, divided before it is squared: the square alone overflows float32 beyond radius 22.
    wedge = safe_norm(x) * (safe_norm(across(x, y)) / bottom.sqrt())
    together = square_norm(x - y) / bottom + wedge * wedge
    return 2 * torch.where(same_side, together, times - xy)


def across(x: Tensor, y: Tensor) -> Tensor:
    """Component of y orthogonal to x, computed from the shorter of y - x and y: [..., D] x 2 -> [..., D]."""
    gap, radial = y - x, unit(x)
    shorter = torch.where(square_norm(gap) < square_norm(y), gap, y)
    # A rounding error along x would count exp(radius) times; each iteration divides it by 1e7 (float32).
    for _ in range(3):
        shorter = shorter - (shorter * radial).sum(-1, keepdim=True) * radial
    return shorter


def ahead(x: Tensor, y: Tensor, aside: Tensor) -> Tensor:
    """y_r x_t - y_t |x| on the unit hyperboloid without cancellation: [..., 1]; the distance of y beyond x along x."""
    radial, n = unit(x), safe_norm(x)
    step, y_r = ((y - x) * radial).sum(-1, keepdim=True), (y * radial).sum(-1, keepdim=True)
    x_t, y_t = (1 + square_norm(x)).sqrt(), (1 + square_norm(y)).sqrt()
    # For y_r > 0 through the conjugate: the difference of two large numbers is taken before they are squared.
    forward = (y_r > 0) & has_direction(square_norm(x))
    bottom = torch.where(forward, y_r * x_t + y_t * n, 1.0)
    beyond = step * ((y_r + n) / bottom) - square_norm(n * (aside / bottom.sqrt()))
    known = bottom / bottom  # 1, or NaN where the squares overflowed: a quotient by inf would be 0
    return torch.where(forward, beyond * known, y_r * x_t - y_t * n)
