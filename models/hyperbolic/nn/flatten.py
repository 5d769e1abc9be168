"""Joining and splitting the coordinates of points, with factors that preserve their size."""

import math

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.nn.functional import Rate, to_space, to_tangent
from hyco.models.hyperbolic.transforms import fx_leaf

EULER = 0.5772156649015329


def log_beta(n: float) -> float:
    """Log of the beta function B(n/2, 1/2): the scale of a coordinate of a point in n dimensions."""
    return math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2)


def beta_ratio(n: int, n_i: int) -> float:
    """B(n/2, 1/2) / B(n_i/2, 1/2): scale of n_i coordinates that become part of n."""
    return math.exp(log_beta(n) - log_beta(n_i))


@fx_leaf
def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = -1) -> Tensor:
    """Beta-concatenation of tangent vectors (Shimizu et al. 2021): sizes n_i along `dim` -> sum of n_i.

    For any other dimension use torch.cat.
    """
    n = sum(t.shape[dim] for t in tensors)
    return torch.cat([t * beta_ratio(n, t.shape[dim]) for t in tensors], dim)


def digamma(n: int) -> float:
    """psi(n / 2), n at least 1: twice the mean of log |x| of n normal coordinates is psi(n / 2) + log 2."""
    first = 2 - n % 2
    return -EULER - (2 * math.log(2) if first == 1 else 0) + sum(2 / k for k in range(first, n, 2))


@fx_leaf
def log_radius_cat(tensors: list[Tensor] | tuple[Tensor, ...], rate: Rate, dim: int = -1) -> Tensor:
    """Log-radius concatenation of tangent vectors (Shi et al. 2026): sizes n_i along `dim` -> sum of n_i.

    Space parts side by side, each times exp((psi(n_i / 2) - psi(n / 2)) / 2): points whose space parts are normal with
    one variance keep their mean log radius. The time part follows. `cat` does this for tangent vectors and lengths.

    Args:
        tensors: tangent vectors at the origin.
        rate: their hyperbolic angle per unit of length, `HyperbolicModule.rate`.
        dim: the dimension of the coordinates.
    """
    n = sum(t.shape[dim] for t in tensors)
    scales = (math.exp((digamma(t.shape[dim]) - digamma(n)) / 2) for t in tensors)
    space = torch.cat([to_space(t, rate, dim) * s for t, s in zip(tensors, scales, strict=True)], dim)
    return to_tangent(space, rate, dim)


@fx_leaf
def split(u: Tensor, size: int, dim: int = -1) -> tuple[Tensor, ...]:
    """Inverse of `cat` into points of `size` coordinates each.

    Raises:
        ValueError: the dimension is not a multiple of `size`.
    """
    n = u.shape[dim]
    if size < 1 or n % size:
        raise ValueError(f"{n} coordinates cannot be split into points of {size}")
    return (u * beta_ratio(size, n)).split(size, dim)


class Flatten(nn.Module):
    """`torch.nn.Flatten` for points: tangent vectors with their coordinates in `point_dim`, flattened from start_dim.

    Where the flattened range contains point_dim, all its points become one, by beta-concatenation; elsewhere
    this is torch.flatten.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1, point_dim: int = 1) -> None:
        super().__init__()
        self.start_dim, self.end_dim, self.point_dim = start_dim, end_dim, point_dim

    @fx_leaf
    def forward(self, u: Tensor) -> Tensor:
        """Shape of torch.flatten(u, start_dim, end_dim)."""
        start, end, point = (d % u.dim() for d in (self.start_dim, self.end_dim, self.point_dim))
        flat = torch.flatten(u, start, end)
        return flat * beta_ratio(flat.shape[start], u.shape[point]) if start <= point <= end else flat

    def extra_repr(self) -> str:
        """The dimensions."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}, point_dim={self.point_dim}"
