"""A product of k hyperbolic factors of dimension d, each with its own curvature, as one batched operation.

Points are [..., k*d] tensors of space parts; c is a [k] tensor (or one number for all factors). PHyCLIP
(ICLR 2026) uses the mean of the factors' distances; the Riemannian distance of the product is the root of the sum of
their squares.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz
from hyco.models.hyperbolic.ops import CurvatureLike

Reduce = str
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda d: d.mean(-1),
    "sum": lambda d: d.sum(-1),
    "l2": lambda d: torch.linalg.vector_norm(d, dim=-1),
}


def split(x: Tensor, factors: int) -> Tensor:
    """[..., k*d] -> [..., k, d].

    Raises:
        ValueError: the last dimension is not a multiple of `factors`.
    """
    if factors < 1 or x.shape[-1] % factors:
        raise ValueError(f"{x.shape[-1]} dimensions cannot be split into {factors} equal factors")
    return x.unflatten(-1, (factors, -1))


def exp0(v: Tensor, c: CurvatureLike, factors: int) -> Tensor:
    """Lift factor by factor: [..., k*d] -> [..., k*d]."""
    return lorentz.exp0(split(v, factors), c).flatten(-2)


def log0(x: Tensor, c: CurvatureLike, factors: int) -> Tensor:
    """Inverse of `exp0`: [..., k*d] -> [..., k*d]."""
    return lorentz.log0(split(x, factors), c).flatten(-2)


def distance(x: Tensor, y: Tensor, c: CurvatureLike, factors: int, reduce: Reduce = "mean") -> Tensor:
    """Distance of paired points: [..., k*d] x 2 -> [...]; reduce: "mean", "sum" or "l2"."""
    return _reduction(reduce)(lorentz.distance(split(x, factors), split(y, factors), c))


def pairwise_distance(
    x: Tensor, y: Tensor, c: CurvatureLike, factors: int, reduce: Reduce = "mean"
) -> Tensor:
    """Distances of all pairs, one batched matrix product: [B, k*d] x [K, k*d] -> [B, K]."""
    left, right = split(x, factors).transpose(-2, -3), split(y, factors).transpose(-2, -3)
    each = lorentz.pairwise_distance(left, right, c)
    return _reduction(reduce)(each.movedim(-3, -1))


def half_aperture(x: Tensor, c: CurvatureLike, factors: int, k: float = 0.1) -> Tensor:
    """Half-aperture of every factor's cone: [..., k*d] -> [..., k]."""
    return lorentz.half_aperture(split(x, factors), c, k)


def exterior_angle(x: Tensor, y: Tensor, c: CurvatureLike, factors: int) -> Tensor:
    """Exterior angle in every factor: [..., k*d] x 2 -> [..., k]."""
    return lorentz.exterior_angle(split(x, factors), split(y, factors), c)


def radii(x: Tensor, c: Tensor) -> Tensor:
    """sqrt(c_i)|x_i| of every factor, c 0-dim or [k]: [..., k*d] -> [..., k]."""
    return c.sqrt() * split(x, c.numel()).norm(dim=-1)


def _reduction(reduce: Reduce) -> Callable[[Tensor], Tensor]:
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(_REDUCTIONS)}; got {reduce!r}")
    return _REDUCTIONS[reduce]
