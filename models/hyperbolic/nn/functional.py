"""Common functions of the layers: tangent vectors to the unit hyperboloid and back.

Layers pass on *tangent vectors at the origin*, which are ordinary tensors, and compute on the unit
hyperboloid (t, s), t^2 - |s|^2 = 1. One number describes the space of a tensor, its `rate`: a tangent vector u
reaches the hyperbolic angle rate |u|, so (t, s) = (cosh(rate |u|), sinh(rate |u|) u/|u|). With curvature -c,
rate = 2 sqrt(c) in the coordinates of the Poincare ball (d(0, exp u) = 2|u|) and sqrt(c) in those of the hyperboloid
(d(0, exp u) = |u|); one kernel serves both models, and no projection onto the ball is ever needed.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.ops import (
    above,
    asinhc,
    asinhc_slope,
    cosh,
    sinh,
    sinhc,
    sinhc_slope,
    square_norm,
)
from hyco.models.hyperbolic.transforms import transformed

MAX_ANGLE = 12
"""Maximum hyperbolic angle of input points; points beyond are moved back to it along their ray.

The squares of larger time parts than cosh(12) are out of reach of float32.
"""

Rate = float | Tensor


def to_space(u: Tensor, rate: Rate, dim: int = -1) -> Tensor:
    """Space part on the unit hyperboloid, sinh(rate|u|) u/|u|, of tangent vectors along `dim`; same shape."""
    s = (rate * rate) * square_norm(u, dim)
    return u * (rate * radial_part(s))


def to_tangent(s: Tensor, rate: Rate, dim: int = -1) -> Tensor:
    """Inverse of `to_space`, asinh|s| s / (rate |s|); same shape.

    It stores only its result for the backward pass, which the next layer stores too, and recomputes s from it.
    """
    if transformed():
        return s * (asinhc(square_norm(s, dim)) / rate)
    return _ToTangent.apply(s, rate, dim)[0]


class _ToTangent(Function):
    @staticmethod
    def forward(s, rate, dim):
        n = square_norm(s, dim)
        shrink = asinhc(n)
        return s * (shrink / rate), n, shrink

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, rate, ctx.dim = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        out, n, shrink, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        if torch.is_grad_enabled():  # for a second derivative n and shrink must depend on out
            n, shrink = norm_and_shrink(out, rate, ctx.dim)
        along = (grad * out).sum(ctx.dim, keepdim=True)
        d_rate = -along.sum() / rate if ctx.needs_input_grad[1] else None
        # With s = out rate / shrink, the outer product s s^T is written with out.
        outer = along * (2 * rate) * asinhc_slope(n, shrink) / (shrink * shrink)
        return torch.addcmul(grad * (shrink / rate), out, outer), d_rate, None


def norm_and_shrink(out: Tensor, rate: Rate, dim: int) -> tuple[Tensor, Tensor]:
    """|s|^2 and asinh|s| / |s| of the space part s whose tangent vector is `out`."""
    angle2 = (rate * rate) * square_norm(out, dim)
    stretch = sinhc(angle2)
    return angle2 * stretch * stretch, 1 / stretch


def cosh_sinhc(u: Tensor, rate: Rate, dim: int = -1) -> tuple[Tensor, Tensor]:
    """(t, f) of tangent vectors u, each with size 1 along `dim`: the time part t, and f with space part = f u."""
    s = (rate * rate) * square_norm(u, dim)
    radial = radial_part(s)
    return (1 + s * radial * radial).sqrt(), rate * radial


def radial_part(s: Tensor, max_angle: float = MAX_ANGLE) -> Tensor:
    """sinh(min(r, max_angle)) / r as a function of s = r^2."""
    limit = max_angle**2
    return sinhc(s.clamp(max=limit)) * (s / limit).clamp(min=1).rsqrt()


def radial_and_time(s: Tensor, max_angle: float = MAX_ANGLE) -> tuple[Tensor, Tensor]:
    """(sinh(q) / r, cosh(q)), q = min(r, max_angle), without gradients."""
    r = s.clamp(min=1e-30).sqrt()
    angle = r.clamp(max=max_angle)
    return sinh(angle).div_(r), cosh(angle)


def radial_slope(s: Tensor, value: Tensor, max_angle: float = MAX_ANGLE) -> Tensor:
    """Derivative of `radial_part` in s from its value; beyond max_angle, where sinh is constant, -value / (2 s)."""
    limit = max_angle**2
    inside, beyond = s.clamp(max=limit), s.clamp(min=limit)
    return torch.lerp(sinhc_slope(inside, value), value / (-2 * beyond), above(s, limit))


# The next two cost a quarter of `radial_slope` and `asinhc_slope`, which they are with exact=True, and have an error of
# a rounding unit over s. They are for gradients that multiply them by two lengths of sqrt(s), after which a rounding
# unit is left. That of a curvature has s itself as a factor, and needs the exact ones.


def cheap_radial_slope(
    s: Tensor, radial: Tensor, time: Tensor, max_angle: float = MAX_ANGLE, exact: bool = False
) -> Tensor:
    """Derivative of the first of `radial_and_time` in s, from both."""
    if exact:
        return radial_slope(s, radial, max_angle)
    return free(time, s, max_angle).sub_(radial).div_(s.clamp(min=8 * torch.finfo(s.dtype).eps)).mul_(0.5)


def cheap_asinhc_slope(s: Tensor, value: Tensor, exact: bool = False) -> Tensor:
    """Derivative of `asinhc` in s, from its value."""
    if exact:
        return asinhc_slope(s, value)
    return (1 + s).rsqrt_().sub_(value).div_(s.clamp(min=8 * torch.finfo(s.dtype).eps)).mul_(0.5)


def free(x: Tensor, s: Tensor, max_angle: float = MAX_ANGLE) -> Tensor:
    """x where points of squared angle s are within max_angle, else 0; one pass, without torch.where."""
    return torch.ops.aten.hardtanh_backward(x, s, -1, max_angle**2)


def normalise(space: Tensor, total: Tensor, least: float | Tensor = 1.0, dim: int = 0) -> Tensor:
    """Unit-hyperboloid space part of the centroid, from summed space parts, summed time parts and summed weights.

    The Lorentz norm of a weighted sum is at least the sum of the weights, which bounds the rounding of T - |S|. In
    float32 the rounding shows from an angle of about 7 on (`mean.midpoint` has no such limit, at twice the cost).
    """
    n = square_norm(space, dim).clamp(min=1e-30).sqrt()
    square = (total - n) * (total + n)
    floor = least**2
    return (
        space
        * (torch.maximum(square, floor) if isinstance(floor, Tensor) else square.clamp(min=floor)).rsqrt()
    )
