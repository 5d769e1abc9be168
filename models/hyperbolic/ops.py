"""Scalar functions with correct values and finite gradients at zero, which sqrt and division do not have.

The quotients take the *squared* argument: sinh(u)/u is an even function, so in s = u^2 it is smooth through
zero, and no norm has to be computed, shifted or clamped. Below its threshold each uses a power series of float64
accuracy. Shapes: all functions are elementwise, except the norms, which reduce one dimension.
"""

import math

import torch
from torch import Tensor

from hyco.models.hyperbolic.transforms import scalar, transformed

CurvatureLike = float | Tensor
"""c > 0 means curvature -c: a float, a 0-dim tensor, or a tensor that broadcasts with the batch shape
x.shape[:-1]."""


def promote(x: Tensor) -> Tensor:
    """Float16 and bfloat16 to float32: hyperbolic geometry needs more digits than they have."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def wide(x: Tensor) -> Tensor:
    """Float64 where the device has it.

    A float32 (or TF32) product of points that lie close together and far out has no digit right.
    """
    return x if x.device.type == "mps" else x.double()


def sqrt_c(c: CurvatureLike) -> CurvatureLike:
    """Square root of a curvature, float or tensor."""
    return c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)


def expand_c(c: CurvatureLike) -> CurvatureLike:
    """c with a trailing axis, which broadcasts with tensors of shape [..., D]."""
    return c.unsqueeze(-1) if isinstance(c, Tensor) else c


def safe_sqrt(s: Tensor) -> Tensor:
    """Square root whose value and gradient are zero at (and below) zero; NaN stays NaN."""
    zero = s <= torch.finfo(s.dtype).tiny
    return torch.where(zero, 0.0, torch.where(zero, 1.0, s).sqrt())


def square_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Sum of squares over `dim`, as a dimension of size 1: [..., D] -> [..., 1]."""
    return x.square().sum(dim, keepdim=True) if transformed() else _SquareNorm.apply(x, dim)


class _SquareNorm(torch.autograd.Function):
    """One pass over the large tensor in the backward pass, where autograd's chain takes three."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, dim):
        return x.square().sum(dim, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return x * (2 * grad), None


def safe_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Euclidean norm over `dim`, with zero gradient at zero: [..., D] -> [..., 1]."""
    return safe_sqrt(square_norm(x, dim)) if transformed() else _Norm.apply(x, dim)


class _Norm(torch.autograd.Function):
    """Norm with a gradient of its own: through the root of the square, a small gradient on a long vector underflows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, dim):
        return safe_sqrt(x.square().sum(dim, keepdim=True))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, norm = ctx.saved_tensors
        return x / torch.where(norm > 0, norm, 1.0) * grad, None


def square_fits(x: Tensor) -> Tensor:
    """Shorten x along its ray until no coordinate exceeds 1e16: [..., D] -> [..., D].

    The squared norm of the result is finite in float32.
    """
    return x / (x.detach().abs().amax(-1, keepdim=True) / 1e16).clamp(min=1)


def ball_square(x: Tensor, c: CurvatureLike) -> Tensor:
    """c|x|^2 of a point in a ball, below 1; NaN where x is not inside: [..., D] -> [..., 1]."""
    s = expand_c(c) * square_norm(x)
    return torch.where(s < 1, s, torch.nan)


def has_direction(s: Tensor) -> Tensor:
    """Whether a squared norm is large enough for its power -3/2, which the gradient of a direction needs."""
    return s > torch.finfo(s.dtype).tiny ** 0.6


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x|; vectors without a direction (|x| below 4e-12 in float32) and their gradients are returned unchanged."""
    s = square_norm(x, dim)
    # Not times rsqrt, whose gradient takes the power -3/2: it overflows float32 beyond |x| = 1e12.
    return x / torch.where(has_direction(s), s, 1.0).sqrt()


def safe_atan2(a: Tensor, b: Tensor) -> Tensor:
    """atan2(a, b) with value and gradient zero where both arguments vanish; NaN stays NaN."""
    # The angle does not depend on the size, and squares of large arguments (in atan2's gradient) overflow.
    size = torch.maximum(a.detach().abs(), b.detach().abs()).clamp(min=1)
    a, b = a / size, b / size
    zero = a * a + b * b <= torch.finfo(a.dtype).tiny
    return torch.where(zero, 0.0, torch.atan2(torch.where(zero, 0.0, a), torch.where(zero, 1.0, b)))


def sinh(x: Tensor) -> Tensor:
    """torch.sinh; in an exported float64 graph by exp and tanh, which ONNX Runtime has in float64."""
    return torch.tanh(x) * cosh(x) if _exports_float64(x) else torch.sinh(x)


def cosh(x: Tensor) -> Tensor:
    """torch.cosh; in an exported float64 graph by exp."""
    return (torch.exp(x) + torch.exp(-x)) / 2 if _exports_float64(x) else torch.cosh(x)


def one_minus_exp(x: Tensor) -> Tensor:
    """1 - exp(-x) for x >= 0, elementwise, also of small x.

    Not by torch.expm1: Inductor computes it as exp(x) - 1 on CPUs, which is 0 for small x.
    """
    half = torch.tanh(x / 2)
    return 2 * half / (1 + half)


def _exports_float64(x: Tensor) -> bool:
    return torch.compiler.is_exporting() and x.dtype == torch.float64


def _exported_asinh(x: Tensor) -> Tensor:
    """asinh(x) by what ONNX Runtime has: its Asinh in float32; no log1p at all, so in float64 by the log of 1 + x."""
    if not _exports_float64(x):
        return torch.asinh(x)
    size = x.abs()
    more = size + size * size / (1 + (1 + size * size).sqrt())
    one_more = 1 + more
    rounded = one_more - 1  # the logarithm is that of 1 + rounded
    return x.sign() * torch.where(
        rounded == 0, more, one_more.log() * (more / torch.where(rounded == 0, 1.0, rounded))
    )


# Coefficients of the derivatives' series. Literals, and integers as defaults: torch.compile(dynamic=True) makes inputs
# of all other floats of a module, and fails where two autograd.Functions use the same.
def _sinh_series() -> tuple[float, ...]:
    """n / (2 n + 1)! for n = 1, 2, ...."""
    return (
        0.16666666666666666, 0.016666666666666666, 0.0005952380952380953, 1.1022927689594357e-05,
        1.252605419272086e-07, 9.635426302092969e-10, 5.353014612273871e-12, 2.2491658034764165e-14,
        7.398571721961897e-17,
    )  # fmt: skip


def _asinh_series() -> tuple[float, ...]:
    """n (-1)^n C(2 n, n) / (4^n (2 n + 1))."""
    return (
        -0.16666666666666666, 0.15, -0.13392857142857142, 0.12152777777777778, -0.11186079545454546,
        0.10411658653846154, -0.09775390625, 0.09241440716911764, -0.08785448576274671, 0.08390335809616815,
    )  # fmt: skip


def _tanh_series() -> tuple[float, ...]:
    """n times the coefficients of tanh(u) / u in u^2."""
    return (
        -0.3333333333333333, 0.26666666666666666, -0.1619047619047619, 0.08747795414462081,
        -0.044316177649510985, 0.021552768219434887, -0.010190840709359227, 0.004720219527564688,
        -0.002152162028191972,
    )  # fmt: skip


def _atanh_series() -> tuple[float, ...]:
    """n / (2 n + 1)."""
    return (
        0.3333333333333333, 0.4, 0.42857142857142855, 0.4444444444444444, 0.45454545454545453,
        0.46153846153846156, 0.4666666666666667, 0.47058823529411764, 0.47368421052631576, 0.47619047619047616,
        0.4782608695652174, 0.48,
    )  # fmt: skip


def _positive_root(s: Tensor) -> Tensor:
    """sqrt(s), or at least a number so small that it equals its sinh, asinh, tanh and atanh."""
    return s.clamp(min=1e-30).sqrt()


def above(s: Tensor, threshold: float) -> Tensor:
    """1 where s > threshold, else 0; a blend by it takes a fifth of the time of torch.where on CPUs."""
    return (s.detach() - threshold).sign().clamp(min=0)


def _slope(
    s: Tensor, exact: Tensor, series: tuple[float, ...], threshold: float, by: Tensor | float
) -> Tensor:
    """by * exact / (2 s), where `exact` is a difference that cancels near zero; there the derivative's series.

    `by` is the incoming gradient: where it is large, exact / (2 s) alone may underflow.
    """
    # The coefficients are cut for float64 at the threshold; float32 needs 5 of them.
    used = series if s.dtype == torch.float64 else series[:5]
    base = s.clamp(max=threshold)
    near = base * used[-1]
    for coefficient in reversed(used[1:-1]):
        near = (near + coefficient) * base
    return torch.lerp((near + used[0]) * by, by / (2 * s.clamp(min=threshold)) * exact, above(s, threshold))


def sinhc_slope(s: Tensor, value: Tensor, by: Tensor | float = 1) -> Tensor:
    """Derivative of `sinhc` in s, (cosh(u) - sinh(u)/u) / (2 s), from its value; times `by`."""
    # cosh(u) as value sqrt(s + 1 / value^2): sinh(u)^2 overflows at half the u of sinh(u).
    return _slope(s, value * (s + value.reciprocal().square()).sqrt() - value, _sinh_series(), 1.0, by)


def asinhc_slope(s: Tensor, value: Tensor, by: Tensor | float = 1) -> Tensor:
    """Derivative of `asinhc` in s, (1/sqrt(1 + s) - asinh(u)/u) / (2 s), from its value; times `by`."""
    return _slope(s, (1 + s).rsqrt() - value, _asinh_series(), 0.02, by)


def _tanhc_slope(s: Tensor, value: Tensor, by: Tensor) -> Tensor:
    return _slope(s, 1 - s * value * value - value, _tanh_series(), 0.05, by)


def _atanhc_slope(s: Tensor, value: Tensor, by: Tensor) -> Tensor:
    return _slope(s, 1 / (1 - s) - value, _atanh_series(), 0.05, by)


def _sinhc(s: Tensor) -> Tensor:
    u = _positive_root(s)
    return sinh(u) / u


def _asinhc(s: Tensor) -> Tensor:
    if torch.compiler.is_exporting():
        u = _positive_root(s)
        return _exported_asinh(u) / u
    # As `_asinh`, of a number whose square is known and whose sign is.
    u = _positive_root(s)
    return (s / ((1 + s).sqrt_() + 1) + u).log1p_() / u


def _tanhc(s: Tensor) -> Tensor:
    u = _positive_root(s)
    return torch.tanh(u) / u


def _atanhc(s: Tensor) -> Tensor:
    u = _positive_root(s)
    if torch.compiler.is_exporting():
        return torch.atanh(u) / u
    # Not torch.atanh: Inductor computes it as log((1 + u) / (1 - u)) / 2 on CPUs, which is 0 for small u.
    return (2 * u / (1 - u)).log1p_() / (2 * u)


def sinhc(s: Tensor) -> Tensor:
    """sinh(u)/u as a function of s = u^2."""
    return scalar(s, _sinhc, sinhc_slope)


def log_sinhc(s: Tensor) -> Tensor:
    """log(sinh(u)/u) as a function of s = u^2, also where sinh overflows."""
    near, u = sinhc(s.clamp(max=400.0)).log(), s.clamp(min=400.0).sqrt()
    return torch.where(s < 400.0, near, u - (2 * u).log())


def asinhc(s: Tensor) -> Tensor:
    """asinh(u)/u as a function of s = u^2."""
    return scalar(s, _asinhc, asinhc_slope)


def tanhc(s: Tensor) -> Tensor:
    """tanh(u)/u as a function of s = u^2."""
    return scalar(s, _tanhc, _tanhc_slope)


def atanhc(s: Tensor) -> Tensor:
    """atanh(u)/u as a function of s = u^2 < 1."""
    return scalar(s, _atanhc, _atanhc_slope)


def _asinh(x: Tensor) -> Tensor:
    """asinh(x) without a gradient; |x| below 1e19 in float32.

    torch.asinh is not vectorised on CPUs and takes ten times as long. The same digits by log1p(|x| + x^2 / (1 + root)).
    """
    if torch.compiler.is_exporting():
        return _exported_asinh(x)
    # Two buffers: on a CPU a new one costs as much as an operation.
    root = torch.addcmul(x.new_ones(()), x, x).sqrt_().add_(1)
    size = x.abs()
    return root.reciprocal_().mul_(size).mul_(size).add_(size).log1p_().copysign_(x)


def _asinh_slope(x: Tensor, value: Tensor, by: Tensor) -> Tensor:
    return by * (1 + x * x).rsqrt()


def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine for |x| below 1e19 (float32), elementwise."""
    return scalar(x, _asinh, _asinh_slope)
