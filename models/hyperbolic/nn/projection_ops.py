"""Hyperbolic linear layers of many points, as products of points with hyperplanes, and the points that they take.

The signed distance of a point to a hyperplane is the asinh of their Lorentz product, so K hyperplanes are one matrix
whose columns of times stand beside those of the weights. `linear` scales the outputs of a product of the weights
instead: that is less work where there are fewer points than hyperplanes, and more where there are many.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate, radial_part, radial_slope
from hyco.models.hyperbolic.nn.hyperplane_ops import MAX_EXPONENT, MAX_OFFSET
from hyco.models.hyperbolic.nn.native import projection as native
from hyco.models.hyperbolic.nn.native.library import concrete, usable
from hyco.models.hyperbolic.onednn import product
from hyco.models.hyperbolic.ops import asinh, asinhc, asinhc_slope, has_direction, square_norm


def lift(u: Tensor, rate: Rate, max_angle: float = MAX_ANGLE) -> tuple[Tensor, Tensor]:
    """Points of tangent vectors as (t - 1, 1, s), and sinh(angle) / length: [..., D] -> [..., 2 + D], [..., 1]."""
    square = square_norm(u)
    f = rate * radial_part((rate * rate) * square, max_angle)
    n = square * (f * f)
    beyond = n / ((1 + n).sqrt_().add_(1))
    point = torch.cat([beyond, torch.ones_like(beyond), u * f], -1)
    return point, f


def lift_slopes(
    u: Tensor,
    rate: Rate,
    point: Tensor,
    f: Tensor,
    by_time: Tensor,
    by_space: Tensor,
    max_angle: float = MAX_ANGLE,
) -> tuple[Tensor, Tensor]:
    """Slopes in u and rate (0-dim) from those in the time part and the space part of `lift`'s point."""
    # time^2 = 1 + n, n = f^2 |u|^2, f = rate radial(s), s = rate^2 |u|^2
    beyond = point[..., :1]
    square = beyond * (beyond + 2) / (f * f)
    by_n = by_time * f / (beyond + 1)
    by_f = (by_space * u).sum(-1, keepdim=True).addcmul_(by_n, square)
    by_s = by_f * rate * radial_slope((rate * rate) * square, f / rate, max_angle)
    by_rate = (by_f * f / rate + by_s * square * (2 * rate)).sum()
    return (by_space * f).addcmul_(u, by_n * f + by_s * (2 * rate * rate)), by_rate


def project(
    u: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate, groups: int, max_angle: float
) -> Tensor:
    """`linear` with several outputs: [..., I], [G O, I], [G O] or None -> [..., G, O]; differentiable once.

    Keeps u, the asinh of the products with the hyperplanes, and the result, which the next layer keeps too.
    """
    flat = _Project.apply(u.flatten(0, -2), weight, bias, rate, groups, max_angle)[0]
    return flat.unflatten(0, u.shape[:-1])


def _offsets(bias: Tensor | None, rate: Rate) -> tuple[Tensor, Tensor] | None:
    """cosh and sinh [K, 1] of the angles of hyperplanes from the origin."""
    if bias is None:
        return None
    r = (rate * bias).clamp(-MAX_OFFSET, MAX_OFFSET).unsqueeze(-1)
    return r.cosh(), r.sinh()


def _sizes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [K, 1] of the weights, 1 for those without a direction, and whether they have one."""
    square = square_norm(weight)
    known = has_direction(square)
    return torch.where(known, square, 1.0).sqrt(), known


def _columns(size: Tensor, known: Tensor, offsets: tuple[Tensor, Tensor] | None) -> Tensor:
    """Of each hyperplane the factor of its weights, the sinh of its offset, and its power: [3, K]."""
    cosh, sinh = (torch.ones_like(size), torch.zeros_like(size)) if offsets is None else offsets
    return torch.cat([cosh / size, sinh, torch.where(known, 2 * size, 0.0)], 1).t()


def _planes(weight: Tensor, columns: Tensor) -> Tensor:
    """Hyperplanes [K, 2 + I], to be multiplied by `lift`'s points."""
    factor, shift, _ = columns.unsqueeze(-1)
    return torch.cat([-shift, -shift, weight * factor], 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T: [N, K], [M, K] -> [N, M]."""
    return product(a, b) if concrete(a, b) else a @ b.t()


def _native(weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> bool:
    """Whether the kernels take these; they read a bias as far as the weights reach."""
    return usable(weight, bias, *tensors) and (bias is None or bias.shape == weight.shape[:1])


def _outputs(
    u: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate, groups: int, max_angle: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`native.outputs` with plain torch."""
    columns = _columns(*_sizes(weight), _offsets(bias, rate))
    angle = asinh(_product(lift(u, rate, max_angle)[0], _planes(weight, columns)))
    w = (angle * columns[2]).clamp_(-MAX_EXPONENT, MAX_EXPONENT).sinh_().unflatten(-1, (groups, -1))
    n = w.square().sum(-1, keepdim=True)
    value = asinhc(n)
    return w.mul_(value / rate), angle, n, value


def _slopes(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    angle: Tensor,
    n: Tensor,
    value: Tensor,
    rate: Rate,
    max_angle: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """`native.slopes` with plain torch."""
    (size, known), offsets = _sizes(weight), _offsets(bias, rate)
    columns = _columns(size, known, offsets)
    # From the tangent vectors to w = sinh(power angle), as in `hyperplane_outputs`.
    w = out * (rate / value)
    along = (grad * w).sum(-1, keepdim=True)
    d_rate = -(along * value).sum() / (rate * rate)
    d = (grad * (value / rate)).addcmul_(w, along * (2 / rate) * asinhc_slope(n, value))
    d, w = d.mul_(w.square_().add_(1).sqrt_()).flatten(1), w.flatten(1)
    d_power = torch.mul(d, angle, out=w).sum(0).unsqueeze(-1)
    d.mul_(columns[2])
    d.mul_(torch.sinh(angle, out=w).square_().add_(1).rsqrt_())
    # To points and hyperplanes.
    point, f = lift(u, rate, max_angle)
    by_point, by_plane = _product(d, _planes(weight, columns).t()), _product(d.t(), point.t())
    d_u, more = lift_slopes(u, rate, point, f, by_point[:, :1], by_point[:, 2:], max_angle)
    d_rate = d_rate + more
    d_weight = by_plane[:, 2:] * columns[0].unsqueeze(-1)
    along = (d_weight * weight).sum(-1, keepdim=True)
    by_size = torch.where(known, 2 * d_power - along / size, 0.0)
    d_weight.addcmul_(weight, by_size / size)
    d_bias = None
    if bias is not None and offsets is not None:
        cosh, sinh = offsets
        d_r = (along * sinh / cosh - by_plane[:, :2].sum(-1, keepdim=True) * cosh).squeeze(-1)
        d_bias, d_rate = d_r * rate, d_rate + (d_r * bias).sum()
    return d_u, d_weight, d_bias, d_rate


class _Project(Function):
    @staticmethod
    def forward(u, weight, bias, rate, groups, max_angle):
        outputs = native.outputs if _native(weight, bias, u) else _outputs
        return outputs(u, weight, bias, rate, groups, max_angle)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        u, weight, bias, rate, _, ctx.max_angle = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        if (
            not torch.compiler.is_compiling()
        ):  # the compiler refuses the call, and drops unused zeros by itself
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, weight, bias, *output, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this layer is differentiable once; build it with fused=False for second derivatives"
            )
        u, weight, bias, out, angle, n, value, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        slopes = native.slopes if _native(weight, bias, u, grad) else _slopes
        *by, by_rate = slopes(grad, u, weight, bias, out, angle, n, value, rate, ctx.max_angle)
        return *by, by_rate if ctx.needs_input_grad[3] else None, None, None
