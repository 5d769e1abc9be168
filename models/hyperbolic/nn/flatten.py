"""Joining and splitting the coordinates of points, with beta factors that preserve their size (Shimizu et al. 2021)."""

import math

import torch
from torch import Tensor, nn

from models.hyperbolic.transforms import fx_leaf


def log_beta(n: float) -> float:
    """Log of the beta function B(n/2, 1/2): the scale of a coordinate of a point in n dimensions."""
    return math.lgamma(n / 2) + math.lgamma(0.5) - math.lgamma((n + 1) / 2)


def beta_ratio(n: int, n_i: int) -> float:
    """B(n/2, 1/2) / B(n_i/2, 1/2): scale of n_i coordinates that become part of n."""
    return math.exp(log_beta(n) - log_beta(n_i))


@fx_leaf
def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = -1) -> Tensor:
    """Beta-concatenation of tangent vectors along their coordinates: sizes n_i along `dim` -> sum of n_i.

    For any other dimension use torch.cat.
    """
    n = sum(t.shape[dim] for t in tensors)
    return torch.cat([t * beta_ratio(n, t.shape[dim]) for t in tensors], dim)


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
