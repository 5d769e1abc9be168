"""The response of K hyperplanes to a point: the part of linear layers and convolutions after their products."""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate, radial_and_time, radial_part, radial_slope
from hyco.models.hyperbolic.ops import above, asinh, asinhc, asinhc_slope, has_direction, safe_sqrt
from hyco.models.hyperbolic.transforms import transformed

FEATURE_ANGLE = 3
"""Default of `max_angle`: the maximum angle of the input points of linear layers, convolutions and MLR.

Points beyond (at a distance of more than max_angle / sqrt(c) from the origin) are moved back to it along their ray, and
pass no gradient along it. At an angle r a layer magnifies a change of direction by sinh(r) / r: 3.3 at 3, 40 at HypLL's
6.2, 6,800 at `MAX_ANGLE`. Nets in which this happens layer by layer do not train: docs/hyperbolic_training.md has the
measurements. Below the cap nothing changes.
"""
MAX_EXPONENT = 40
"""Largest |2 |z| asinh(a)| before sinh; the cap is straight-through, so a layer can leave it again."""
MAX_OFFSET = 30
"""Maximum hyperbolic distance of a hyperplane from the origin, also straight-through.

Together with MAX_ANGLE it bounds the argument of `asinh`.
"""


def planes(
    weight: Tensor, bias: Tensor | None, rate: Rate, gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scales, powers and shifts of K hyperplanes: weight [K, ...], bias [K] or None (tangent units).

    Returns scales [K] = gain rate cosh(rate bias) / |z|, by which products with the weights are to be
    multiplied, powers [K] = 2|z| and shifts [K] = sinh(rate bias), or None without bias.
    """
    square = weight.square().flatten(1).sum(1)
    size = torch.where(has_direction(square), square, 1.0)
    scales, powers = size.rsqrt() * (rate * gain), 2 * safe_sqrt(square)
    if bias is None:
        return scales, powers, None
    r = rate * bias
    r = r + (r.clamp(-MAX_OFFSET, MAX_OFFSET) - r).detach()
    return scales * torch.cosh(r), powers, torch.sinh(r)


def check_max_angle(max_angle: float) -> float:
    """Return max_angle; ValueError unless it is positive and at most `MAX_ANGLE`."""
    if not 0 < max_angle <= MAX_ANGLE:
        raise ValueError(
            f"max_angle must be positive and at most {MAX_ANGLE:g}, the limit of float32; got {max_angle}: "
            "leave it out for the default"
        )
    # A whole number stays an integer: under torch.compile(dynamic=True) the floats of a module become graph inputs,
    # which an autograd.Function does not take.
    return int(max_angle) if max_angle == int(max_angle) else max_angle


def scores(
    m: Tensor, s: Tensor, scale: Tensor | None, shift: Tensor | None, max_angle: float = FEATURE_ANGLE
) -> Tensor:
    """a_k: sinh of the signed distance to hyperplane k on the unit hyperboloid; s = r^2 broadcasts against m."""
    radial = radial_part(s, max_angle)
    a = m * radial
    a = a if scale is None else a * scale
    # cosh(min(r, max_angle)), smooth at zero.
    return a if shift is None else a - (1 + s * radial * radial).sqrt() * shift


def hyperplane_outputs_plain(
    m: Tensor,
    s: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    power: Tensor,
    rate: Rate,
    dims: tuple[int, ...],
    max_angle: float = FEATURE_ANGLE,
) -> Tensor:
    """The reference implementation of `hyperplane_outputs`, by plain autograd."""
    exponent = power * asinh(scores(m, s, scale, shift, max_angle))
    w = torch.sinh(exponent + (exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT) - exponent).detach())
    return w * (asinhc((w * w).sum(dims, keepdim=True)) / rate)


def hyperplane_outputs(
    m: Tensor,
    s: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    power: Tensor,
    rate: Rate,
    dims: tuple[int, ...],
    max_angle: float = FEATURE_ANGLE,
) -> Tensor:
    """Tangent vectors out of hyperplane products, with a hand-written backward (Shimizu et al. 2021, eqs. 6 and 7).

    w_k = sinh(power_k asinh a_k), a_k = radial(s) scale_k m_k - cosh(sqrt s) shift_k, out = asinh|w| w / (rate |w|).

    Of tensors of its size it stores only asinh a for the backward pass: a, the products and w follow from it by sinh,
    which is cheap where asinh is not. Differentiable once; `hyperplane_outputs_plain` any number of times.

    Args:
        m: products of the tangent vectors with the hyperplanes' weights.
        s: squared hyperbolic angle of the input points; broadcasts against m.
        scale: of `planes`, broadcasting against m; None where the weights of m had it in them.
        shift: of `planes`, broadcasting against m, or None.
        power: of `planes`, broadcasting against m.
        rate: rate of the output space (the same as the input's).
        dims: the dimensions of m that hold the coordinates of one output point.
        max_angle: see `FEATURE_ANGLE`.
    """
    if transformed():
        return hyperplane_outputs_plain(m, s, scale, shift, power, rate, dims, max_angle)
    return _Respond.apply(m, s, scale, shift, power, rate, dims, max_angle)[0]


class _Respond(Function):
    # Both passes reuse buffers: new memory pages take half of the time of such a chain on a CPU.

    @staticmethod
    def forward(m, s, scale, shift, power, rate, dims, max_angle):
        radial, time = radial_and_time(s, max_angle)
        a = m * radial
        if scale is not None:
            a.mul_(scale)
        if shift is not None:
            a.addcmul_(time, shift, value=-1)
        angle = asinh(a)
        w = (angle * power).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_()
        n = w.square().sum(dims, keepdim=True)
        value = asinhc(n)
        return w.mul_(value / rate), angle, n, value, radial, time

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, s, scale, shift, power, rate, ctx.dims, ctx.max_angle = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        if (
            not torch.compiler.is_compiling()
        ):  # the compiler refuses the call, and drops unused zeros by itself
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(s, scale, shift, power, *output[1:], rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 8
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this layer is differentiable once; build it with fused=False for second derivatives"
            )
        s, scale, shift, power, angle, n, value, radial, time, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        w = (angle * power).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_()
        shrink = value / rate
        along = (grad * w).sum(ctx.dims, keepdim=True)
        d_rate = -(along * shrink).sum() / rate if ctx.needs_input_grad[5] else None
        d = (grad * shrink).addcmul_(w, along * (2 / rate) * asinhc_slope(n, value))
        d.mul_(w.square_().add_(1).sqrt_())
        d_power = torch.mul(d, angle, out=w).sum_to_size(power.shape)
        # sinh is needed below, and a root is cheaper than cosh.
        a = torch.sinh(angle)
        d.mul_(power).mul_(torch.mul(a, a, out=w).add_(1).rsqrt_())
        # d is now the slope in a; the products m are (a + time shift) / (radial scale), and enter in sums
        # only.
        slope = a.mul_(d)
        d_shift = d_scale = d_time = None
        d_s = slope.sum_to_size(s.shape)
        if shift is not None:
            d_time = torch.mul(d, shift, out=w).sum_to_size(s.shape)
            d_s = d_s + d_time * time
            d_shift = -torch.mul(d, time, out=w).sum_to_size(shift.shape)
        if scale is not None:
            d_scale = slope.sum_to_size(scale.shape)
            d_scale = (d_scale if shift is None else d_scale - d_shift * shift) / scale
            d.mul_(scale)
        d_s = d_s / radial * radial_slope(s, radial, ctx.max_angle)
        if d_time is not None:
            d_s = torch.addcmul(d_s, d_time * radial, 1 - above(s, ctx.max_angle**2), value=-0.5)
        return d.mul_(radial), d_s, d_scale, d_shift, d_power, d_rate, None, None
