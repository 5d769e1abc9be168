"""The response of K hyperplanes to a point: the part of linear layers and convolutions after their products."""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.nn.functional import (
    MAX_ANGLE,
    Rate,
    cheap_asinhc_slope,
    cheap_radial_slope,
    free,
    radial_and_time,
    radial_part,
)
from hyco.models.hyperbolic.ops import asinh, asinhc, asinhc_value, has_direction, safe_sqrt
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
    if transformed() or torch.compiler.is_exporting():
        return hyperplane_outputs_plain(m, s, scale, shift, power, rate, dims, max_angle)
    return _Respond.apply(m, s, scale, shift, power, rate, dims, max_angle)[0]


class _Respond(Function):
    @staticmethod
    def forward(m, s, scale, shift, power, rate, dims, max_angle):
        radial, time = radial_and_time(s, max_angle)
        a = m * radial
        if scale is not None:
            a.mul_(scale)
        if shift is not None:
            a.addcmul_(time, shift, value=-1)
        return *respond(a, power, rate, dims), radial, time

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
        differentiable_once()
        s, scale, shift, power, angle, n, value, radial, time, rate = ctx.saved_tensors
        # The scale, the shift and s depend on the rate, too.
        rate, exact = ctx.rate if rate is None else rate, ctx.needs_input_grad[5]
        d, slope, spare, d_power, d_rate = respond_backward(
            grad, angle, power, n, value, rate, ctx.dims, exact
        )
        # The products m are (a + time shift) / (radial scale), and enter in sums only.
        d_shift = d_scale = d_time = None
        d_s = slope.sum_to_size(s.shape)
        if shift is not None:
            d_time = torch.mul(d, shift, out=spare).sum_to_size(s.shape)
            d_shift = -torch.mul(d, time, out=spare).sum_to_size(shift.shape)
        if scale is not None:
            d_scale = slope.sum_to_size(scale.shape)
            d_scale = (d_scale if shift is None else d_scale - d_shift * shift) / scale
            d.mul_(scale)
        d_s = square_slope(s, radial, time, d_s, d_time, ctx.max_angle, exact)
        return d.mul_(radial), d_s, d_scale, d_shift, d_power, d_rate, None, None


def differentiable_once() -> None:
    """Raise RuntimeError where the backward pass that calls it is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this layer is differentiable once; build it with fused=False for second derivatives"
        )


# The chains below reuse buffers: new memory pages take half of the time of such a chain on a CPU.


def respond(
    a: Tensor, power: Tensor, rate: Rate, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tangent vectors in the memory of a, and asinh a, |w|^2 and asinh|w| / |w| of w = sinh(power asinh a)."""
    spare = torch.addcmul(a.new_ones(()), a, a).sqrt_().add_(1)
    angle = a.abs().addcmul_(torch.div(a, spare, out=spare), a).log1p_().copysign_(a)
    w = torch.mul(angle, power, out=a).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_()
    n = torch.mul(w, w, out=spare).sum(dims, keepdim=True)
    value = asinhc_value(n)
    return w.mul_(value / rate), angle, n, value


def respond_backward(
    grad: Tensor,
    angle: Tensor,
    power: Tensor,
    n: Tensor,
    value: Tensor,
    rate: Rate,
    dims: tuple[int, ...],
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Slopes in a of `respond`, these times a, an empty buffer of their size, and slopes in power and rate (0-dim).

    exact: see `functional.cheap_asinhc_slope`.
    """
    one, shrink = grad.new_ones(()), value / rate
    w = (angle * power).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_()
    d = grad * w
    along = d.sum(dims, keepdim=True)
    d_rate = -(along * shrink).sum() / rate if exact else None
    turn = cheap_asinhc_slope(n, value, exact).mul_(along).mul_(2 / rate)
    d = torch.mul(grad, shrink, out=d).addcmul_(w, turn)
    d.mul_(torch.addcmul(one, w, w, out=w).sqrt_())
    d_power = torch.mul(d, angle, out=w).sum_to_size(power.shape)
    # sinh is needed below, and a root is cheaper than cosh.
    a = torch.sinh(angle, out=w)
    spare = torch.addcmul(one, a, a)
    d.mul_(power).mul_(spare.rsqrt_())
    return d, a.mul_(d), spare, d_power, d_rate


def square_slope(
    s: Tensor,
    radial: Tensor,
    time: Tensor,
    by_product: Tensor,
    by_time: Tensor | None,
    max_angle: float,
    exact: bool,
) -> Tensor:
    """Slope in s of a = radial m - time shift, from the sums over k of d_k a_k and of d_k shift_k."""
    slope = cheap_radial_slope(s, radial, time, max_angle, exact).div_(radial)
    if by_time is None:
        return slope.mul_(by_product)
    slope.mul_(torch.addcmul(by_product, by_time, time))
    return slope.addcmul_(by_time, free(radial, s, max_angle), value=-0.5)
