"""Differences of points on the hyperboloid, taken so that nothing cancels; `lorentz` is built on them."""

import torch
from torch import Tensor

from models.hyperbolic.ops import Curvature, has_direction, keep, promote, root, safe_norm, square_norm, unit


def chord(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Squared chord q = c(|x-y|^2 - (x_t-y_t)^2) = 4 sinh^2(sqrt(c) d / 2): [..., D] x [..., D] -> [..., 1].

    Written without cancellation, on the unit hyperboloid: for x.y > 0, q = 2 (|x-y|^2 + |x ^ y|^2) /
    (1 + x_t y_t + x.y), which follows from Lagrange's identity; otherwise q = 2 ((|x|^2 + |y|^2 + |x|^2
    |y|^2) / (1 + x_t y_t) - x.y). Both are sums of terms of one sign.
    """
    x, y = promote(x) * keep(root(c)), promote(y) * keep(root(c))
    xx, yy, xy = square_norm(x), square_norm(y), (x * y).sum(-1, keepdim=True)
    times = ((1 + xx) * (1 + yy)).sqrt()
    same_side = xy > 0
    wedge = xx * square_norm(across(x, y))
    together = (square_norm(x - y) + wedge) / (1 + times + torch.where(same_side, xy, 0.0))
    opposite = (xx + yy + xx * yy) / (1 + times) - xy
    return 2 * torch.where(same_side, together, opposite)


def across(x: Tensor, y: Tensor) -> Tensor:
    """The part of y orthogonal to x, taken from y - x where that is the shorter vector: [..., D] x 2 ->
    [..., D]."""
    gap, radial = y - x, unit(x)
    shorter = torch.where(square_norm(gap) < square_norm(y), gap, y)
    return shorter - (shorter * radial).sum(-1, keepdim=True) * radial


def ahead(x: Tensor, y: Tensor, aside: Tensor) -> Tensor:
    """y_r x_t - y_t |x| on the unit hyperboloid, how far y lies beyond x along x, without cancellation:
    [..., 1]."""
    radial, n = unit(x), safe_norm(x)
    step, y_r = ((y - x) * radial).sum(-1, keepdim=True), (y * radial).sum(-1, keepdim=True)
    x_t, y_t = (1 + square_norm(x)).sqrt(), (1 + square_norm(y)).sqrt()
    # For y_r > 0 through the conjugate: the difference of two large numbers is taken before they are squared.
    forward = (y_r > 0) & has_direction(square_norm(x))
    bottom = torch.where(forward, y_r * x_t + y_t * n, 1.0)
    return torch.where(forward, (step * (y_r + n) - square_norm(n * aside)) / bottom, y_r * x_t - y_t * n)
