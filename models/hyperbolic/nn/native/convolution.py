"""The two passes of `conv_fused` by C++ kernels, around torch's convolution."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.nn.hyperplane_ops import MAX_EXPONENT, MAX_OFFSET
from hyco.models.hyperbolic.nn.native.library import address, kernels


class Windows(NamedTuple):
    """Groups, and sizes before and after, kernel, stride, padding and dilation of each dimension of space."""

    groups: int
    axes: tuple[tuple[int, ...], ...]

    def arguments(self, u: Tensor) -> tuple:
        """What the kernels take for u [B, C, *space]."""
        numbers = [n for axis in self.axes for n in axis]
        axes = (ctypes.c_int64 * len(numbers))(*numbers)
        return len(u), self.groups, u.shape[1] // self.groups, axes, len(self.axes)


def columns_of(weight: Tensor, bias: Tensor | None, rate: Rate) -> Tensor:
    """cosh(rate bias) / |z|, sinh(rate bias) and 2 |z| of weights z [K, ...] and bias [K] or None: [3, K]."""
    columns = weight.new_empty(3, len(weight))
    pointers = map(address, (weight, bias, columns))
    kernels().planes(*pointers, len(weight), weight[0].numel(), float(rate), MAX_OFFSET)
    return columns


def squares(u: Tensor, windows: Windows, factor: float, positions: int) -> Tensor:
    """factor times the sums over windows of the squared lengths: [B, C, *space] -> [B, G, N]."""
    s = u.new_empty(len(u), windows.groups, positions)
    kernels().window_squares(address(u), address(s), *windows.arguments(u), factor)
    return s


def add_square_slopes(u: Tensor, by_s: Tensor, by_u: Tensor, windows: Windows, factor: float) -> None:
    """Add the slopes of `squares` to by_u."""
    kernels().window_slopes(address(u), address(by_s), address(by_u), *windows.arguments(u), factor)


def respond(
    out: Tensor, s: Tensor, columns: Tensor, groups: int, rate: Rate, max_angle: float
) -> tuple[Tensor, Tensor]:
    """Outputs in place of products [B, K, *space]; the angles of the same shape, and the squared norms [B, N]."""
    angle, norm = torch.empty_like(out), s.new_empty(len(out), s.shape[-1])
    _, shift, power = columns
    pointers = map(address, (out, angle, s, shift, power, norm))
    sizes = len(out), groups, out.shape[1] // groups, s.shape[-1]
    kernels().respond(*pointers, *sizes, float(rate), max_angle, MAX_EXPONENT)
    return angle, norm


def respond_slopes(
    grad: Tensor,
    angle: Tensor,
    s: Tensor,
    columns: Tensor,
    norm: Tensor,
    groups: int,
    rate: Rate,
    max_angle: float,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Slopes in the products, in s, in powers and shifts [2, K], and in rate."""
    d, by_s, by_columns = torch.empty_like(grad), torch.empty_like(s), columns.new_empty(2, columns.shape[1])
    _, shift, power = columns
    pointers = map(address, (grad, angle, s, shift, power, norm, d, by_s, by_columns))
    sizes = len(grad), groups, grad.shape[1] // groups, s.shape[-1]
    by_rate = kernels().respond_slopes(*pointers, *sizes, float(rate), max_angle, MAX_EXPONENT)
    return d, by_s, by_columns, by_rate


def plane_slopes(
    weight: Tensor, bias: Tensor | None, by_columns: Tensor, by_weight: Tensor, rate: Rate
) -> tuple[Tensor | None, float]:
    """Slopes in bias and rate, from by_columns of `respond_slopes`.

    by_weight [K, ...] holds the slopes in weights times factors, times the factors, and becomes those in the weights.
    """
    by_bias = None if bias is None else torch.empty_like(bias)
    pointers = map(address, (weight, bias, by_columns, by_weight, by_bias))
    by_rate = kernels().plane_slopes(*pointers, len(weight), weight[0].numel(), float(rate), MAX_OFFSET)
    return by_bias, by_rate
