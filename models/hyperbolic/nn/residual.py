"""Residual connection: the gyrovector (Mobius) sum of two points, over their coordinates.

The boost that takes the origin to x, applied to y, is a sum a x + b y whose factors depend only on |x|^2, |y|^2 and
x.y. So the backward pass needs two dot products with the incoming gradient and sums of three tensors; all other
values are one number per point. On a CPU C++ kernels do it, where they can be had: native/residual.py.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import (
    Rate,
    cheap_asinhc_slope,
    cheap_radial_slope,
    cosh_sinhc,
    free,
    radial_and_time,
    to_tangent,
)
from hyco.models.hyperbolic.nn.module import HyperbolicModule, accepts_lean, full_precision
from hyco.models.hyperbolic.nn.native import residual as native
from hyco.models.hyperbolic.nn.native.library import usable
from hyco.models.hyperbolic.ops import asinhc_value
from hyco.models.hyperbolic.transforms import fx_leaf, transformed


@fx_leaf
def residual_add(x: Tensor, y: Tensor, rate: Rate, dim: int = 1, fused: bool = True) -> Tensor:
    """log_0(exp_0(x) + exp_0(y)) by Mobius addition, for tangent vectors with coordinates along `dim`; same shape.

    The boost that takes the origin to x, applied to y: s = y_s + x_s (y_t + <y_s, x_s> / (1 + x_t)). Not commutative:
    y is moved by x.

    Args:
        x: tangent vectors, which give the boost.
        y: tangent vectors, which are moved; broadcast with x.
        rate: angle per unit of tangent length.
        dim: the dimension of the coordinates.
        fused: hand-written backward, differentiable once, which stores x, y and nothing else of their size; False:
            plain autograd.
    """
    if x.shape != y.shape:
        x, y = torch.broadcast_tensors(x, y)
    if fused and not transformed():
        return _ResidualAdd.apply(x, y, rate, dim)[0]
    x_t, x_f = cosh_sinhc(x, rate, dim)
    y_t, y_f = cosh_sinhc(y, rate, dim)
    inner = (x * y).sum(dim, keepdim=True) * (x_f * y_f)
    return to_tangent(y * y_f + x * (x_f * (y_t + inner / (1 + x_t))), rate, dim)


class _ResidualAdd(Function):
    @staticmethod
    def forward(x, y, rate, dim):
        kernels = _native(x, y, rate, dim)
        return native.outputs(x, y, rate, dim % x.dim()) if kernels else _outputs(x, y, rate, dim)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, y, rate, ctx.dim = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        if not torch.compiler.is_compiling():  # the compiler refuses the call
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, *output[1:], rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 4
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this sum is differentiable once; build it with fused=False for second derivatives"
            )
        x, y, *kept, rate = ctx.saved_tensors
        rate, exact = ctx.rate if rate is None else rate, ctx.needs_input_grad[2]
        if len(kept) == 1:
            d_x, d_y, d_rate = native.slopes(grad, x, y, kept[0], rate, ctx.dim % x.dim())
            return d_x, d_y, x.new_tensor(d_rate) if exact else None, None
        return *_slopes(grad, x, y, kept, rate, ctx.dim, exact), None


def _native(x: Tensor, y: Tensor, rate: Rate, dim: int) -> bool:
    """Whether the kernels take these; they work on vectors of points, so that coordinates must not be adjacent."""
    one_rate = not (isinstance(rate, Tensor) and rate.dim())
    return usable(x, y) and one_rate and x.is_contiguous() and y.is_contiguous() and x.stride(dim) > 1


# Plain torch. p, q and d are rate^2 |x|^2, rate^2 |y|^2 and rate^2 x.y; f is sinh(r) / r and t is cosh(r).


def _outputs(x: Tensor, y: Tensor, rate: Rate, dim: int) -> tuple[Tensor, ...]:
    """The sum, and the values for `_slopes`."""
    scale, buffer = rate * rate, x * x
    p = buffer.sum(dim, keepdim=True).mul_(scale)
    q = torch.mul(y, y, out=buffer).sum(dim, keepdim=True).mul_(scale)
    d = torch.mul(x, y, out=buffer).sum(dim, keepdim=True).mul_(scale)
    (x_f, x_t), (y_f, y_t) = radial_and_time(p), radial_and_time(q)
    # s / rate = a x + b y
    a = torch.addcdiv(y_t, x_f * y_f * d, 1 + x_t).mul_(x_f)
    out = (y * y_f).addcmul_(x, a)
    n = torch.mul(out, out, out=buffer).sum(dim, keepdim=True).mul_(scale)
    value = asinhc_value(n)
    return out.mul_(value), p, q, d, x_f, x_t, y_f, y_t, a, n, value


def _slopes(
    grad: Tensor, x: Tensor, y: Tensor, kept: list[Tensor], rate: Rate, dim: int, exact: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Slopes in x, y and, where exact, in rate."""
    p, q, d, x_f, x_t, y_f, y_t, a, n, value = kept
    scale, buffer = rate * rate, grad * x
    along_x = buffer.sum(dim, keepdim=True)
    along_y = torch.mul(grad, y, out=buffer).sum(dim, keepdim=True)
    # The slope in s / rate is value grad + rate turn s; its products with x and y follow from p, q and d.
    turn = cheap_asinhc_slope(n, value, exact).mul_((a * along_x).addcmul_(y_f, along_y)).mul_(2)
    d_a = (a * p).addcmul_(y_f, d).mul_(turn).addcmul_(value, along_x)
    d_y_f = (a * d).addcmul_(y_f, q).mul_(turn).addcmul_(value, along_y)
    # a = x_f (y_t + x_f y_f d / (1 + x_t))
    share = x_f / (1 + x_t)
    d_d = (d_a * x_f).mul_(share)
    d_y_f.addcmul_(d_d, d)
    d_d.mul_(y_f)
    together = (share * y_f).mul_(d)
    d_p = torch.add(y_t, together, alpha=2).mul_(cheap_radial_slope(p, x_f, x_t, exact=exact)).mul_(d_a)
    d_p.sub_(free(d_d * d, p).mul_(share), alpha=0.5)
    d_q = d_y_f.mul_(cheap_radial_slope(q, y_f, y_t, exact=exact))
    d_q.add_(free(d_a.mul_(x_f).mul_(y_f), q), alpha=0.5)
    d_rate = None
    if exact:
        # n contains rate^2, as p, q and d do.
        d_rate = (d_p * p + d_q * q + d_d * d + turn * n / 2).sum() * (2 / rate)
    cross = (turn * a).mul_(y_f).add_(d_d).mul_(scale)
    d_x = torch.mul(grad, a * value, out=buffer).addcmul_(y, cross)
    d_x.addcmul_(x, (a * a).mul_(turn).add_(d_p, alpha=2).mul_(scale))
    d_y = (grad * (y_f * value)).addcmul_(x, cross)
    d_y.addcmul_(y, (y_f * y_f).mul_(turn).add_(d_q, alpha=2).mul_(scale))
    return d_x, d_y, d_rate


class ResidualAdd(HyperbolicModule):
    """`residual_add` as a layer: two tensors of one shape, points' coordinates along `dim` (default: channels)."""

    @accepts_lean
    def __init__(
        self, dim: int = 1, c: float | Curvature = 1.0, model: str = "poincare", fused: bool = True
    ) -> None:
        super().__init__(c, model)
        self.dim, self.fused = dim, fused

    @full_precision
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, y moved by x; same shape."""
        if x.shape != y.shape:
            raise ValueError(f"a residual sum needs equal shapes, got {list(x.shape)} and {list(y.shape)}")
        return residual_add(x, y, self.rate(), self.dim, self.fused)
