"""Means: the weighted midpoint (a closed form), the Frechet mean (Newton's method) and the variance about it.

Points are space parts of hyperboloid points; `midpoint` also exists for the two balls, where it is the same
point.
"""

import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz
from hyco.models.hyperbolic.ops import (
    CurvatureLike,
    asinhc,
    ball_square,
    expand_c,
    promote,
    safe_norm,
    safe_sqrt,
    sqrt_c,
    square_norm,
    unit,
)


def midpoint(x: Tensor, c: CurvatureLike, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Lorentz centroid over `dim` (negative, not -1): [..., N, D] -> [..., D].

    (sum w x_t, sum w x) brought back to the hyperboloid by dividing by sqrt((T - |S|)(T + |S|)) (Law et al.
    2019). The same point as the gyromidpoint of the ball and the Einstein midpoint of the Klein ball.

    Args:
        x: space parts of the points.
        c: float or 0-dim.
        weights: [..., N], not negative and not all 0; None weighs all points equally.
        dim: the dimension of the points.
    """
    _check_dim(dim)
    x, root_c = promote(x), expand_c(sqrt_c(c))
    x = x * root_c
    w = torch.ones_like(x[..., :1]) if weights is None else weights.unsqueeze(-1)
    space = (w * x).sum(dim, keepdim=True)
    axis = unit(space)
    # T - |S| = sum w (x_t - x.axis) cancels far out; (1 + |x_perp|^2) / (x_t + x.axis) is the same and does
    # not.
    x_t, along = lorentz.time(x, 1.0), (x * axis).sum(-1, keepdim=True)
    same_side = along > 0
    slack = (1 + square_norm(x - along * axis)) / torch.where(same_side, x_t + along, 1.0)
    less = (w * torch.where(same_side, slack, x_t - along)).sum(dim, keepdim=True)
    more = (w * x_t).sum(dim, keepdim=True) + safe_norm(space)
    known = more / more  # 1, or NaN where the squares overflowed: 1 / sqrt(inf) would be the origin
    return (space * (known * (less * more).rsqrt()) / root_c).squeeze(dim)


def _check_dim(dim: int) -> None:
    if dim >= -1:
        raise ValueError(f"dim must be negative and not -1, which holds the coordinates; got {dim}")


def midpoint_poincare(x: Tensor, c: CurvatureLike, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Weighted gyromidpoint on the ball: [..., N, D] -> [..., D] (Ungar 2008, definition 3.53; c: float or 0-dim).

    `midpoint` on the hyperboloid is exact. Here, at radius 12, the rounding error of the gamma factors is tens of times
    that of the coordinates of float32 points.
    """
    _check_dim(dim)
    x = promote(x)
    gamma = 2 / (1 - ball_square(x, c))
    w = 1.0 if weights is None else weights.unsqueeze(-1)
    frac = (w * gamma * x).sum(dim) / (w * (gamma - 1)).sum(dim)
    return frac / (1 + safe_sqrt(1 - expand_c(c) * square_norm(frac)))


def midpoint_klein(x: Tensor, c: CurvatureLike, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Einstein midpoint on the Klein ball, an average with Lorentz factors: [..., N, D] -> [..., D]."""
    _check_dim(dim)
    x = promote(x)
    gamma = (1 - ball_square(x, c)).rsqrt()
    w = gamma if weights is None else gamma * weights.unsqueeze(-1)
    return (w * x).sum(dim) / w.sum(dim)


def frechet_mean(x: Tensor, c: CurvatureLike, weights: Tensor | None = None, iterations: int = 12) -> Tensor:
    """The point with the smallest weighted mean squared distance: [..., N, D] -> [..., D].

    Newton's method from the midpoint, with a fixed number of steps. It converges quadratically: 12 steps are enough
    for points within 15 of the origin, whatever their weights. A step that would raise the variance is not taken, and
    the next one is a quarter as long. The last step is a whole one and carries the gradient in x, weights and c, which
    makes it the gradient of the implicit function.

    Args:
        x: space parts of the points.
        c: float or 0-dim.
        weights: [..., N]; None weighs all points equally.
        iterations: number of Newton steps.
    """
    x = promote(x)
    w = torch.ones_like(x[..., 0]) if weights is None else weights
    w = w / w.sum(-1, keepdim=True)
    with torch.no_grad():
        mean = midpoint(x, c, w)
        best = frechet_variance(x, c, mean, w)
        share = torch.ones_like(best)
        for _ in range(iterations):
            step = share.unsqueeze(-1) * _newton(mean, x, c, w)
            tried = lorentz.add(mean, lorentz.exp0(step, c), c)
            variance = frechet_variance(x, c, tried, w)
            better = variance <= best
            mean = torch.where(better.unsqueeze(-1), tried, mean)
            best = torch.where(better, variance, best)
            share = torch.where(better, (4 * share).clamp(max=1), share / 4)
    return lorentz.add(mean, lorentz.exp0(_newton(mean, x, c, w), c), c)


def _newton(mean: Tensor, x: Tensor, c: CurvatureLike, w: Tensor) -> Tensor:
    """A Newton step for the mean squared distance, by its Hessian, as seen from `mean`.

    The step is a tangent vector at the origin after the isometry that takes `mean` there.
    """
    v = lorentz.log0(lorentz.add(-mean.unsqueeze(-2), x, c), c)
    pull = (w.unsqueeze(-1) * v).sum(-2)
    with torch.no_grad():
        s = expand_c(c) * square_norm(v)
        theta = s.sqrt()
        # Hessian of d^2/2 at the mean: 1 along the direction n of the point, theta coth(theta) across it.
        across = torch.where(s < 1e-8, 1 + s / 3, theta / torch.tanh(torch.where(s < 1e-8, 1.0, theta)))
        n = v / torch.where(s == 0, 1.0, square_norm(v).sqrt())
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        outer = ((w.unsqueeze(-1) * (1 - across)) * n).transpose(-1, -2) @ n
        hessian = (w.unsqueeze(-1) * across).sum(-2).unsqueeze(-1) * eye + outer
    return torch.linalg.solve(hessian, pull.unsqueeze(-1)).squeeze(-1)


def frechet_variance(
    x: Tensor, c: CurvatureLike, mean: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Weighted mean squared distance to `mean` (default: the Frechet mean): [..., N, D] -> [...]."""
    x = promote(x)
    mean = frechet_mean(x, c, weights) if mean is None else promote(mean)
    q = lorentz.chord(x, mean.unsqueeze(-2), c).squeeze(-1)
    # d^2 = (4/c) asinh(sqrt(q)/2)^2 = (q/c) asinhc(q/4)^2: no root, so points at the mean need no special case.
    d2 = q * asinhc(q / 4) ** 2 / c
    return d2.mean(-1) if weights is None else (d2 * weights).sum(-1) / weights.sum(-1)
