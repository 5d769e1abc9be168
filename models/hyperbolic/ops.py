"""Scalar building blocks with right values and finite gradients at zero, which sqrt and division do not have.

The quotients take the *squared* argument: sinh(u)/u is an even function, so in s = u^2 it is smooth through
zero and no norm has to be taken, shifted or clamped. Below the threshold of each a power series is used, at
float64 accuracy. Shapes: everything here is elementwise, except the norms, which reduce one dimension.
"""

import math

import torch
from torch import Tensor

Curvature = float | Tensor
"""c > 0 means curvature -c: a float, a 0-dim tensor, or a tensor that broadcasts with the batch shape
x.shape[:-1]."""


def promote(x: Tensor) -> Tensor:
    """Float16 and bfloat16 to float32: hyperbolic geometry has no meaning in eight bits of mantissa."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def root(c: Curvature) -> Curvature:
    """Square root of a curvature, whichever type it has."""
    return c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)


def keep(c: Curvature) -> Curvature:
    """C with a trailing axis, ready to meet tensors of shape [..., D]."""
    return c.unsqueeze(-1) if isinstance(c, Tensor) else c


def safe_sqrt(s: Tensor) -> Tensor:
    """Square root whose value and gradient are zero at (and below) zero."""
    positive = s > torch.finfo(s.dtype).tiny
    return torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)


def square_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Sum of squares over `dim`, kept: [..., D] -> [..., 1]."""
    return x.square().sum(dim, keepdim=True)


def safe_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm over `dim`, kept, with zero gradient at zero: [..., D] -> [..., 1]."""
    return safe_sqrt(square_norm(x, dim))


def has_direction(s: Tensor) -> Tensor:
    """Whether a squared norm is large enough for its power -3/2, which the gradient of a direction needs."""
    return s > torch.finfo(s.dtype).tiny ** 0.6


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x|; vectors without a direction (|x| below 4e-12 in float32) stay and pass their gradient
    unchanged."""
    s = square_norm(x, dim)
    return x * torch.where(has_direction(s), s, 1.0).rsqrt()


def safe_atan2(a: Tensor, b: Tensor) -> Tensor:
    """atan2(a, b) with value and gradient zero where both arguments vanish."""
    nonzero = a * a + b * b > torch.finfo(a.dtype).tiny
    return torch.where(nonzero, torch.atan2(torch.where(nonzero, a, 0.0), torch.where(nonzero, b, 1.0)), 0.0)


def _quotient(s: Tensor, near: list[float], function, threshold: float) -> Tensor:
    """function(u)/u at u = sqrt(s), by the series with coefficients `near` in s where |s| < threshold."""
    small = s < threshold
    t = torch.where(small, s, 0.0)
    u = torch.where(small, threshold, s).sqrt()
    return torch.where(small, _horner(t, near), function(u) / u)


_SINH = [1 / math.factorial(2 * n + 1) for n in range(9)]
_ASINH = [(-1) ** n * math.comb(2 * n, n) / (4**n * (2 * n + 1)) for n in range(10)]
_ATANH = [1 / (2 * n + 1) for n in range(11)]
_TANH = [1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875,
         6404582 / 10854718875, -443861162 / 1856156927625]  # fmt: skip


def sinhc(s: Tensor) -> Tensor:
    """sinh(u)/u as a function of s = u^2."""
    return _quotient(s, _SINH, torch.sinh, 1.0)


def asinhc(s: Tensor) -> Tensor:
    """asinh(u)/u as a function of s = u^2."""
    return _quotient(s, _ASINH, asinh, 0.02)


def tanhc(s: Tensor) -> Tensor:
    """tanh(u)/u as a function of s = u^2."""
    return _quotient(s, _TANH, torch.tanh, 0.05)


def atanhc(s: Tensor) -> Tensor:
    """atanh(u)/u as a function of s = u^2 < 1."""
    return _quotient(s, _ATANH, torch.atanh, 0.03)


def sinhc_slope(s: Tensor) -> Tensor:
    """Derivative of `sinhc` in s, (cosh(u) - sinh(u)/u) / (2 s)."""
    small = s < 1.0
    t = torch.where(small, 1.0, s)
    u = t.sqrt()
    return torch.where(small, _horner(s, _slope(_SINH)), (torch.cosh(u) - torch.sinh(u) / u) / (2 * t))


def asinhc_slope(s: Tensor) -> Tensor:
    """Derivative of `asinhc` in s, (1/sqrt(1 + s) - asinh(u)/u) / (2 s)."""
    small = s < 0.02
    t = torch.where(small, 1.0, s)
    return torch.where(small, _horner(s, _slope(_ASINH)), ((1 + t).rsqrt() - asinhc(t)) / (2 * t))


def _slope(coefficients: list[float]) -> list[float]:
    return [n * coefficient for n, coefficient in enumerate(coefficients)][1:]


def _horner(s: Tensor, coefficients: list[float]) -> Tensor:
    series = torch.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        series = series * s + coefficient
    return series


def asinh_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """(asinh(x), sqrt(1 + x^2)) without gradients, in place on its own buffers; |x| below 1e19 in float32.

    torch.asinh is not vectorised on CPUs (ten times the cost of this); same digits: log1p(|x| + x^2 / (1 +
    root)).
    """
    root = torch.addcmul(x.new_ones(()), x, x).sqrt_()
    size = x.abs()
    return (root + 1).reciprocal_().mul_(size).add_(1).mul_(size).log1p_().copysign_(x), root


class _Asinh(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return asinh_and_root(x)[0]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return grad * (1 + x * x).rsqrt()


def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine for |x| below 1e19 (float32), elementwise."""
    return _Asinh.apply(x)
