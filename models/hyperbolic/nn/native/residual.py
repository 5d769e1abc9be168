"""The two passes of `residual_add` by C++ kernels."""

import torch
from torch import Tensor

from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate
from hyco.models.hyperbolic.nn.native.library import address, kernels


def _sizes(x: Tensor, dim: int, rate: Rate) -> tuple[int, int, int, float, int]:
    """Sizes before, of and behind the coordinates, rate and the largest angle, for x contiguous."""
    before, width = x.shape[:dim].numel(), x.shape[dim]
    return before, width, x.numel() // (before * width), float(rate), MAX_ANGLE


def outputs(x: Tensor, y: Tensor, rate: Rate, dim: int) -> tuple[Tensor, Tensor]:
    """The sum, and the numbers of the points for `slopes`: [before, 4, behind]."""
    sizes = _sizes(x, dim, rate)
    out, numbers = torch.empty_like(x), x.new_empty(sizes[0], 4, sizes[2])
    kernels().mobius_sums(*map(address, (x, y, out, numbers)), *sizes)
    return out, numbers


def slopes(
    grad: Tensor, x: Tensor, y: Tensor, numbers: Tensor, rate: Rate, dim: int
) -> tuple[Tensor, Tensor, float]:
    """Slopes in x, y and rate."""
    given = grad, x, y, numbers = tuple(t.contiguous() for t in (grad, x, y, numbers))
    by_x, by_y = torch.empty_like(x), torch.empty_like(y)
    pointers = map(address, (*given, by_x, by_y))
    by_rate = kernels().mobius_slopes(*pointers, *_sizes(x, dim, rate))
    return by_x, by_y, by_rate
