"""A whole hyperbolic convolution with one backward pass, written by hand; `conv.convolve` is the reference.

Of tensors of the size of its input and output it stores the input and asinh of the products with the hyperplanes. What
belongs to the weights is cheap beside them and computed again.

On a CPU all but torch's convolution is done by C++ kernels, where they can be had: native/convolution.py.
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
from hyco.models.hyperbolic.nn.native import convolution as native
from hyco.models.hyperbolic.nn.native.library import usable
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

    def check(self, x: Tensor) -> None:
        """Raise ValueError where a kernel does not fit into x [B, C, *space]."""
        for dim, (size, apart, pad) in enumerate(
            zip(self.kernel, self.dilation, self.padding, strict=True), 2
        ):
            positions = x.shape[dim] + 2 * pad
            if positions <= apart * (size - 1):
                raise ValueError(
                    f"a kernel of {size} with dilation {apart} does not fit into the {positions} positions of "
                    f"dimension {dim}, padding included; padding={(size - 1) * apart // 2} is enough"
                )

    def of(self, u: Tensor, out: Tensor, groups: int) -> native.Windows:
        """What the kernels take of the convolution from u to out."""
        return native.Windows(groups, tuple(zip(u.shape[2:], out.shape[2:], *self, strict=True)))


def window_sum(x: Tensor, windows: Geometry) -> Tensor:
    """Sum of each window of each channel, [B, C, *space] -> [B, C, *space']: a convolution with ones.

    Computed dimension by dimension, by slices: the backward pass of torch's convolution of single channels takes thirty
    times as long on a CPU.
    """
    windows.check(x)
    x = _padded(x, windows.padding)
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


class _Options(NamedTuple):
    """What of a convolution has no gradient; see `convolve_fused`."""

    gain: float
    windows: Geometry
    groups: int
    max_angle: float


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, u, weight, bias, rate, gain, windows, groups, max_angle):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.native = usable(u, weight, bias) and u.shape[1] == groups * weight.shape[1]
        ctx.native = ctx.native and (bias is None or bias.shape == weight.shape[:1])
        ctx.rate, ctx.options = (
            None if isinstance(rate, Tensor) else rate,
            _Options(gain, windows, groups, max_angle),
        )
        out, *kept = (_native if ctx.native else _plain)(u, weight, bias, rate, ctx.options)
        ctx.save_for_backward(u, weight, bias, rate if isinstance(rate, Tensor) else None, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        differentiable_once()
        u, weight, bias, rate, *kept = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        slopes = _native_slopes if ctx.native else _plain_slopes
        wanted = ctx.needs_input_grad[:4]
        return *slopes(grad, u, weight, bias, rate, kept, wanted, ctx.options), *(None,) * 4


def _native(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    o: _Options,
) -> tuple[Tensor, ...]:
    """Output, and the values for `_native_slopes`."""
    o.windows.check(u)
    columns = native.columns_of(weight.contiguous(), None if bias is None else bias.contiguous(), rate)
    out = torch.convolution(u, _times(weight, columns[0] * (rate * o.gain)), *o.windows.options(o.groups))
    # Kernels take channels before positions; channels-last tensors are copied, and results keep their order.
    flat = out.contiguous()
    factor, positions = float(rate * o.gain) ** 2, out[0, 0].numel()
    s = native.squares(u.contiguous(), o.windows.of(u, out, o.groups), factor, positions)
    angle, norm = native.respond(flat, s, columns, o.groups, rate, o.max_angle)
    return out if flat is out else out.copy_(flat), s, columns, angle, norm


def _native_slopes(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    kept: list[Tensor],
    wanted: tuple[bool, ...],
    o: _Options,
) -> tuple[Tensor | None, ...]:
    """Gradients by u, weight, bias and rate, from the values of `_native`."""
    grad, s, columns, angle, norm = (t.contiguous() for t in (grad, *kept))
    by_u, *by_planes = wanted
    factors, weight = columns[0] * (rate * o.gain), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    d, by_s, by_columns, by_rate = native.respond_slopes(
        grad, angle, s, columns, norm, o.groups, rate, o.max_angle
    )
    d_u, d_weight, _ = torch.ops.aten.convolution_backward(
        d, u, _times(weight, factors), *o.windows.options(o.groups), [by_u, any(by_planes), False]
    )
    if by_u:
        d_u = d_u.contiguous()
        factor = float(rate * o.gain) ** 2
        native.add_square_slopes(u.contiguous(), by_s, d_u, o.windows.of(u, grad, o.groups), factor)
    if not any(by_planes):
        return d_u, None, None, None
    d_weight = _times(d_weight.contiguous(), factors)
    d_bias, more = native.plane_slopes(weight, bias, by_columns, d_weight, rate)
    return d_u, d_weight, d_bias, weight.new_tensor(by_rate + more) if by_planes[2] else None


def _times(weight: Tensor, factors: Tensor) -> Tensor:
    """Weights [K, ...] times factors [K]."""
    return weight * factors.view(-1, *(1,) * (weight.dim() - 1))


# Plain torch. Numbers of points are [B, G, 1, N], coordinates [B, G, K / G, N].


def _plain(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    o: _Options,
) -> tuple[Any, ...]:
    """Output, and the values for `_plain_slopes`."""
    p, split = _Planes.of(weight, bias, rate, o.gain), (o.groups, -1)
    square = u.square().unflatten(1, split).sum(2)
    s = (window_sum(square, o.windows) * (rate * o.gain) ** 2).flatten(2).unsqueeze(2)
    radial, time = radial_and_time(s, o.max_angle)
    out = torch.convolution(u, _times(weight, p.factor), *o.windows.options(o.groups))
    a = out.flatten(2).unflatten(1, split).mul_(radial)
    power = p.power.view(*split, 1)
    if p.shift is not None:
        a.addcmul_(time, p.shift.view(*split, 1), value=-1)
    _, *kept = respond(a, power, rate, (1, 2))
    return out, s, radial, time, *kept, *p


def _plain_slopes(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    kept: list[Any],
    wanted: tuple[bool, ...],
    o: _Options,
) -> tuple[Tensor | None, ...]:
    """Gradients by u, weight, bias and rate, from the values of `_plain`."""
    s, radial, time, angle, n, value, *p = kept
    by_u, *by_planes = wanted
    by_rate = by_planes[2]
    p, split, space = _Planes(*p), (o.groups, -1), grad.shape[2:]
    grad, power = grad.flatten(2).unflatten(1, split), p.power.view(*split, 1)
    d, slope, spare, d_power, d_rate = respond_backward(grad, angle, power, n, value, rate, (1, 2), by_rate)
    d_time = d_shift = d_square = None
    if p.shift is not None:
        d_time = torch.mul(d, p.shift.view(*split, 1), out=spare).sum(2, keepdim=True)
        d_shift = torch.mul(d, time, out=spare).sum((0, 3)).flatten()
    if by_u or by_rate:
        d_s = square_slope(s, radial, time, slope.sum(2, keepdim=True), d_time, o.max_angle, by_rate)
        d_rate = d_rate + (d_s * s).sum() * (2 / rate) if by_rate else None
        d_square = window_spread(d_s.squeeze(2).unflatten(2, space), o.windows, u.shape[2:])
        d_square.mul_(2 * (rate * o.gain) ** 2)
    d_u, d_kernel, _ = torch.ops.aten.convolution_backward(
        d.mul_(radial).flatten(1, 2).unflatten(2, space),
        *(u, _times(weight, p.factor), *o.windows.options(o.groups)),
        [by_u, any(by_planes), False],
    )
    if by_u and d_square is not None:
        d_u.unflatten(1, split).addcmul_(u.unflatten(1, split), d_square.unsqueeze(2))
    if not any(by_planes):
        return d_u, None, None, None
    # kernel = factor weight, factor = rate gain cosh / size, power = 2 size
    flat, d_kernel = weight.flatten(1), d_kernel.flatten(1)
    by_factor = (d_kernel * flat).sum(1).mul_(p.factor)
    d_size = (2 * d_power.flatten()).sub_(by_factor / p.size).mul_(p.known).div_(p.size)
    d_weight = (d_kernel * p.factor.unsqueeze(1)).addcmul_(flat, d_size.unsqueeze(1)).view_as(weight)
    d_rate, d_bias = d_rate + by_factor.sum() / rate if by_rate else None, None
    if bias is not None:
        d_offset = (by_factor * p.shift).div_(p.cosh).addcmul_(d_shift, p.cosh, value=-1)
        d_bias, d_rate = d_offset * rate, d_rate + d_offset.dot(bias) if by_rate else None
    return d_u, d_weight, d_bias, d_rate
