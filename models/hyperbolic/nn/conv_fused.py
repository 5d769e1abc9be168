"""A whole hyperbolic convolution with one backward pass, written by hand; `conv.convolve` is the reference.

Of tensors of the size of its input and output it stores the input and asinh of the products with the hyperplanes. What
belongs to the weights is cheap beside them and computed again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from hyco.models.hyperbolic.nn.functional import Rate, radial_and_time
from hyco.models.hyperbolic.nn.hyperplane_ops import (
    MAX_OFFSET,
    differentiable_once,
    respond,
    respond_backward,
    square_slope,
)
from hyco.models.hyperbolic.ops import has_direction


class Geometry(NamedTuple):
    """The windows of a convolution, one number per dimension of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def options(self, groups: int) -> tuple[Any, ...]:
        """Arguments of torch's convolution and of its backward pass after the kernel."""
        return None, self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), groups


def window_sum(x: Tensor, windows: Geometry) -> Tensor:
    """Sum of each window of each channel, [B, C, *space] -> [B, C, *space']: a convolution with ones.

    Computed dimension by dimension, by slices: the backward pass of torch's convolution of single channels takes thirty
    times as long on a CPU.
    """
    around = windows.padding
    for dim, (size, apart, pad) in enumerate(zip(windows.kernel, windows.dilation, around, strict=True), 2):
        positions = x.shape[dim] + 2 * pad
        if positions <= apart * (size - 1):
            raise ValueError(
                f"a kernel of {size} with dilation {apart} does not fit into the {positions} positions of "
                f"dimension {dim}, padding included; padding={(size - 1) * apart // 2} is enough"
            )
    x = _padded(x, around)
    for dim, (size, step, apart) in enumerate(
        zip(windows.kernel, windows.stride, windows.dilation, strict=True), 2
    ):
        x = _taps(x, dim, size, apart, x.shape[dim] - apart * (size - 1), step)
    return x


def window_spread(x: Tensor, windows: Geometry, space: tuple[int, ...]) -> Tensor:
    """The adjoint of `window_sum` to a tensor of these sizes of space: its backward pass."""
    if max(windows.stride) > 1:
        spans = (
            n + 2 * p - a * (k - 1) for n, (k, _, p, a) in zip(space, zip(*windows, strict=True), strict=True)
        )
        sparse = x.new_zeros((*x.shape[:2], *spans))
        sparse[(..., *(slice(None, None, step) for step in windows.stride))] = x
        x = sparse
    x = _padded(x, tuple(a * (k - 1) - p for k, _, p, a in zip(*windows, strict=True)))
    for dim, (size, apart) in enumerate(zip(windows.kernel, windows.dilation, strict=True), 2):
        x = _taps(x, dim, size, apart, space[dim - 2], 1)
    return x


def _padded(x: Tensor, around: tuple[int, ...]) -> Tensor:
    """x with zeros on both sides of each dimension of space, or without its ends where the number is negative."""
    return F.pad(x, [n for pad in reversed(around) for n in (pad, pad)]) if any(around) else x


def _taps(x: Tensor, dim: int, size: int, apart: int, span: int, step: int) -> Tensor:
    """Sum of `size` slices of length `span`, each `apart` from the last, and of that every `step`-th position."""
    before = (slice(None),) * dim
    taps = [x[(*before, slice(i * apart, i * apart + span, step))] for i in range(size)]
    if size == 1:
        return taps[0]
    total = taps[0] + taps[1]
    for tap in taps[2:]:
        total.add_(tap)
    return total


class _Planes(NamedTuple):
    """Values of K hyperplanes, [K], as of `hyperplane_ops.planes`; the convolution takes factor weight."""

    size: Tensor  # length of the weight, 1 without a direction
    known: Tensor  # whether it has one
    factor: Tensor
    power: Tensor
    shift: Tensor | None = None
    cosh: Tensor | None = None  # of the offset's angle, whose sinh is the shift

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, rate: Rate, gain: float) -> "_Planes":
        """The hyperplanes of weights [K, ...] and offsets [K] or None."""
        square = weight.square().flatten(1).sum(1)
        known = has_direction(square)
        size = torch.where(known, square, 1.0).sqrt_()
        factor, power = (rate * gain) / size, (size * known).mul_(2)
        if bias is None:
            return cls(size, known, factor, power)
        offset = (bias * rate).clamp_(-MAX_OFFSET, MAX_OFFSET)
        cosh = offset.cosh()
        return cls(size, known, factor.mul_(cosh), power, offset.sinh(), cosh)

    def kernel(self, weight: Tensor) -> Tensor:
        """What the convolution takes: the weights times their factors."""
        return weight * self.factor.view(-1, *(1,) * (weight.dim() - 1))


def convolve_fused(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    gain: float,
    windows: Geometry,
    groups: int,
    max_angle: float,
) -> Tensor:
    """`conv.convolve`, differentiable once; gain is the beta ratio of its patches."""
    return _Convolve.apply(u, weight, bias, rate, gain, windows, groups, max_angle)


class _Convolve(Function):
    # Numbers of points are [B, G, 1, N], coordinates [B, G, K / G, N].

    @staticmethod
    def forward(ctx: Any, u, weight, bias, rate, gain, windows, groups, max_angle):  # pyright: ignore[reportIncompatibleMethodOverride]
        p, split = _Planes.of(weight, bias, rate, gain), (groups, -1)
        square = u.square().unflatten(1, split).sum(2)
        s = (window_sum(square, windows) * (rate * gain) ** 2).flatten(2).unsqueeze(2)
        radial, time = radial_and_time(s, max_angle)
        out = torch.convolution(u, p.kernel(weight), *windows.options(groups))
        a = out.flatten(2).unflatten(1, split).mul_(radial)
        power = p.power.view(*split, 1)
        if p.shift is not None:
            a.addcmul_(time, p.shift.view(*split, 1), value=-1)
        _, *kept = respond(a, power, rate, (1, 2))
        ctx.rate, ctx.options = None if isinstance(rate, Tensor) else rate, (gain, windows, groups, max_angle)
        rate = rate if isinstance(rate, Tensor) else None
        ctx.save_for_backward(u, weight, bias, rate, s, radial, time, *kept, *p)
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        differentiable_once()
        u, weight, bias, rate, s, radial, time, angle, n, value, *p = ctx.saved_tensors
        (gain, windows, groups, max_angle), rate = ctx.options, ctx.rate if rate is None else rate
        by_u, *by_planes = ctx.needs_input_grad[:4]
        by_rate = by_planes[2]
        p, split, space = _Planes(*p), (groups, -1), grad.shape[2:]
        grad, power = grad.flatten(2).unflatten(1, split), p.power.view(*split, 1)
        d, slope, spare, d_power, d_rate = respond_backward(
            grad, angle, power, n, value, rate, (1, 2), by_rate
        )
        d_time = d_shift = d_square = None
        if p.shift is not None:
            d_time = torch.mul(d, p.shift.view(*split, 1), out=spare).sum(2, keepdim=True)
            d_shift = torch.mul(d, time, out=spare).sum((0, 3)).flatten()
        if by_u or by_rate:
            d_s = square_slope(s, radial, time, slope.sum(2, keepdim=True), d_time, max_angle, by_rate)
            d_rate = d_rate + (d_s * s).sum() * (2 / rate) if by_rate else None
            d_square = window_spread(d_s.squeeze(2).unflatten(2, space), windows, u.shape[2:])
            d_square.mul_(2 * (rate * gain) ** 2)
        d_u, d_kernel, _ = torch.ops.aten.convolution_backward(
            d.mul_(radial).flatten(1, 2).unflatten(2, space),
            *(u, p.kernel(weight), *windows.options(groups)),
            [by_u, any(by_planes), False],
        )
        if by_u and d_square is not None:
            d_u.unflatten(1, split).addcmul_(u.unflatten(1, split), d_square.unsqueeze(2))
        if not any(by_planes):
            return d_u, *(None,) * 7
        # kernel = factor weight, factor = rate gain cosh / size, power = 2 size
        flat, d_kernel = weight.flatten(1), d_kernel.flatten(1)
        by_factor = (d_kernel * flat).sum(1).mul_(p.factor)
        d_size = (2 * d_power.flatten()).sub_(by_factor / p.size).mul_(p.known).div_(p.size)
        d_weight = (d_kernel * p.factor.unsqueeze(1)).addcmul_(flat, d_size.unsqueeze(1)).view_as(weight)
        d_rate, d_bias = d_rate + by_factor.sum() / rate if by_rate else None, None
        if bias is not None:
            d_offset = (by_factor * p.shift).div_(p.cosh).addcmul_(d_shift, p.cosh, value=-1)
            d_bias, d_rate = d_offset * rate, d_rate + d_offset.dot(bias) if by_rate else None
        return d_u, d_weight, d_bias, d_rate, *(None,) * 4
