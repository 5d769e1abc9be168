"""What the layers share: tangent vectors to the unit hyperboloid and back, and the response of K hyperplanes.

Layers pass on *tangent vectors at the origin*, which are ordinary tensors, and compute on the unit
hyperboloid (t, s), t^2 - |s|^2 = 1. The one number that says what space a tensor lives in is its `rate`: a
tangent vector u reaches the hyperbolic angle rate |u|, so (t, s) = (cosh(rate |u|), sinh(rate |u|) u/|u|).
With curvature -c, rate = 2 sqrt(c) in the coordinates of the Poincare ball (d(0, exp u) = 2|u|) and sqrt(c)
in those of the hyperboloid (d(0, exp u) = |u|); one kernel serves both models and no ball projection is ever
needed.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from models.hyperbolic.ops import (
    asinh,
    asinh_and_root,
    asinhc,
    asinhc_slope,
    safe_norm,
    sinhc,
    sinhc_slope,
    square_norm,
    unit,
)

MAX_ANGLE = 12.0
"""Input points further out than this are drawn back to it along their ray: cosh(12)^2 is all float32 can
square."""
MAX_EXPONENT = 40.0
"""Largest |2 |z| asinh(a)| before sinh; the cap is straight-through, so a layer can come back from it."""

Rate = float | Tensor


def to_space(u: Tensor, rate: Rate, dim: int = -1) -> Tensor:
    """Space part on the unit hyperboloid, sinh(rate|u|) u/|u|, of tangent vectors along `dim`; same shape."""
    s = (rate * rate) * square_norm(u, dim)
    return u * (rate * _radial(s))


def to_tangent(s: Tensor, rate: Rate, dim: int = -1) -> Tensor:
    """Inverse of `to_space`, asinh|s| s / (rate |s|); same shape.

    Keeps its result for the backward pass, which the next layer keeps too, and finds s again from it.
    """
    return _ToTangent.apply(s, rate, dim)


class _ToTangent(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s, rate, dim):
        return s * (asinhc(square_norm(s, dim)) / rate)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, rate, ctx.dim = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.save_for_backward(output, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        out, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        angle2 = (rate * rate) * square_norm(out, ctx.dim)
        stretch = sinhc(angle2)
        n = angle2 * stretch * stretch
        along = (grad * out).sum(ctx.dim, keepdim=True)
        d_rate = -along.sum() / rate if ctx.needs_input_grad[1] else None
        # s = out rate stretch: both factors s of the outer product are written with out.
        outer = along * (2 * rate * asinhc_slope(n)) * stretch * stretch
        return torch.addcmul(grad * (asinhc(n) / rate), out, outer), d_rate, None


def cosh_sinhc(u: Tensor, rate: Rate, dim: int = -1) -> tuple[Tensor, Tensor]:
    """(t, f) of tangent vectors u, each with size 1 along `dim`: the time part t, and f with space part = f
    u."""
    s = (rate * rate) * square_norm(u, dim)
    radial = _radial(s)
    return (1 + s * radial * radial).sqrt(), rate * radial


def _radial(s: Tensor) -> Tensor:
    """sinh(min(r, MAX_ANGLE)) / r as a function of s = r^2."""
    return sinhc(s.clamp(max=MAX_ANGLE**2)) * (s / MAX_ANGLE**2).clamp(min=1).rsqrt()


def capped_share(u: Tensor, rate: Rate, dim: int = -1) -> Tensor:
    """Share of the points (0-dim) that lie beyond MAX_ANGLE; anything above zero deserves a look."""
    return ((rate * rate) * square_norm(u.detach(), dim) > MAX_ANGLE**2).float().mean()


def planes(
    weight: Tensor, bias: Tensor | None, rate: Rate, gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Directions, powers and shifts of K hyperplanes: weight [K, ...], bias [K] or None (tangent units).

    Returns directions [K, ...] = gain rate cosh(rate bias) z^ (so that one matrix product or convolution
    does all the work), powers [K] = 2|z| and shifts [K] = sinh(rate bias), or None without bias.
    """
    flat = weight.flatten(1)
    directions = unit(flat) * (rate * gain)
    powers = 2 * safe_norm(flat).squeeze(1)
    if bias is None:
        return directions.view_as(weight), powers, None
    r = rate * bias
    return (directions * torch.cosh(r).unsqueeze(1)).view_as(weight), powers, torch.sinh(r)


def scores(m: Tensor, s: Tensor, shift: Tensor | None) -> Tensor:
    """a_k: sinh of the signed distance to hyperplane k on the unit hyperboloid; s = r^2 broadcasts against
    m."""
    a = m * _radial(s)
    return a if shift is None else a - _time(s) * shift


def _time(s: Tensor) -> Tensor:
    """cosh(min(r, MAX_ANGLE)) as a function of s = r^2, smooth at zero."""
    s = s.clamp(max=MAX_ANGLE**2)
    return (1 + s * sinhc(s) ** 2).sqrt()


def respond_plain(
    m: Tensor, s: Tensor, shift: Tensor | None, power: Tensor, rate: Rate, dims: tuple[int, ...]
) -> Tensor:
    """The fully connected layer behind its matrix product, by autograd: the twin of `respond`."""
    exponent = power * asinh(scores(m, s, shift))
    w = torch.sinh(exponent + (exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT) - exponent).detach())
    return w * (asinhc((w * w).sum(dims, keepdim=True)) / rate)


def respond(
    m: Tensor, s: Tensor, shift: Tensor | None, power: Tensor, rate: Rate, dims: tuple[int, ...]
) -> Tensor:
    """Tangent vectors out of hyperplane products (Shimizu et al. 2021, eqs. 6 and 7), with a hand-written
    backward.

    w_k = sinh(power_k asinh a_k), a_k = radial(s) m_k - cosh(sqrt s) shift_k, out = asinh|w| w / (rate |w|).

    Args:
        m: products of the tangent vectors with the directions of `planes`.
        s: squared hyperbolic angle of the input points; broadcasts against m.
        shift: of `planes`, broadcasting against m, or None.
        power: of `planes`, broadcasting against m.
        rate: rate of the output space (the same as the input's).
        dims: the dimensions of m that hold the coordinates of one output point.

    Keeps m and s for the backward pass, and nothing else of their size.
    """
    return _Respond.apply(m, s, shift, power, rate, dims)


class _Respond(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(m, s, shift, power, rate, dims):
        w, _, _, _ = _forward(m, s, shift, power)
        return w.mul_(asinhc(w.square().sum(dims, keepdim=True)) / rate)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        m, s, shift, power, rate, ctx.dims = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.save_for_backward(m, s, shift, power, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        m, s, shift, power, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the plain twin
            return _backward_plain(grad, m, s, shift, power, rate, ctx.dims)
        # Forward again, up to w: a pass of asinh and one of sinh are cheaper than keeping two more tensors.
        # From here on buffers are reused: half of the time of such a chain on a CPU is spent on fresh pages.
        w, angle, root, radial = _forward(m, s, shift, power)
        n = w.square().sum(ctx.dims, keepdim=True)
        shrink = asinhc(n) / rate
        along = (grad * w).sum(ctx.dims, keepdim=True)
        d_rate = -(along * shrink).sum() / rate if ctx.needs_input_grad[4] else None
        d = (grad * shrink).addcmul_(w, along * (2 / rate) * asinhc_slope(n))
        d.mul_(w.square_().add_(1).sqrt_())
        d_power = angle.mul_(d).sum_to_size(power.shape)
        d.mul_(power).div_(root)
        far = s > MAX_ANGLE**2
        inside = s.clamp(max=MAX_ANGLE**2)
        d_radial = torch.where(far, -radial / (2 * s), sinhc_slope(inside))
        d_s = torch.mul(d, m).sum_to_size(s.shape) * d_radial
        d_shift = None
        if shift is not None:
            d_time = (d * shift).sum_to_size(s.shape)
            d_s = d_s - torch.where(far, 0.0, d_time * sinhc(inside) / 2)
            d_shift = -(d * _time(s)).sum_to_size(shift.shape)
        return d.mul_(radial), d_s, d_shift, d_power, d_rate, None


def _forward(m, s, shift, power):
    """(w, asinh a, sqrt(1 + a^2), radial) without gradients."""
    radial = _radial(s)
    a = m * radial
    if shift is not None:
        a.addcmul_(_time(s), shift, value=-1)
    angle, root = asinh_and_root(a)
    return (angle * power).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_(), angle, root, radial


def _backward_plain(grad, m, s, shift, power, rate, dims):
    inputs = [m, s, shift, power, rate]
    wanted = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    out = respond_plain(m, s, shift, power, rate, dims)
    slopes = torch.autograd.grad(out, [inputs[i] for i in wanted], grad, create_graph=True)
    found = dict(zip(wanted, slopes, strict=True))
    return (*(found.get(i) for i in range(5)), None)
