"""The entailment hinge of aligned pairs as one node of the graph: a few passes over the points, and row sums.

On the unit hyperboloid write the specific y = y_r e + a f with e = x / |x|, f orthogonal to e, n = |x|. The
exterior angle at the general x is theta = atan2(a, b) with b = y_r x_t - y_t n, and a^2 + b^2 = sinh^2 D for
their distance D. Its gradient lies in the plane of e and f:
    by y: ((b + a^2 n / y_t) f - a cosh D / y_t e) / sinh^2 D
    by x: (-(b y_r + a^2 x_t) / n f + a cosh D / x_t e) / sinh^2 D.
That of the distance is (a x_t f + b e) / (y_t sinh D) by y and -(a f + b / x_t e) / sinh D by x.
The half-aperture is asin(2K / n), so its derivative by n is -2K / (n sqrt(n^2 - 4K^2)) (Ganea et al. 2018; MERU,
Desai et al. 2023). Cancelling terms are computed from y - x as in `lorentz.exterior_angle`, the reference
implementation by autograd.
"""

from typing import Any

import torch
from torch import Tensor

from hyco.models.hyperbolic.ops import has_direction


def cone_excess(general: Tensor, specific: Tensor, curvature: Tensor, eta: float, k: float) -> Tensor:
    """max(0, exterior angle of the specific at the general - eta * half-aperture): [..., D] x 2 -> [...].

    Points are space parts, float32 or float64; curvature 0-dim or of the last batch dimension (factors of a
    product: [N, k, d] and c [k]). Differentiable once. Coincident points have the angle 0, a general at the
    origin pi/2.
    """
    return _ConeExcess.apply(general, specific, curvature.to(general.dtype), eta, k)[0]  # pyright: ignore[reportReturnType, reportOptionalSubscript]


def angle_and_distance(general: Tensor, specific: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Exterior angle of the specific at the general, and their distance: [..., D] x 2 -> [...] x 2.

    Types, curvature and the cases without an angle as in `cone_excess`. Coincident points have the distance 0 with the
    gradient 0.
    """
    return _ConeExcess.apply(general, specific, curvature.to(general.dtype), 0.0, 0.0)  # pyright: ignore[reportReturnType]


class _ConeExcess(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: Tensor, eta: float, k: float) -> tuple[Tensor, Tensor]:
        # Row sums; from here on tensors [...] are float64, at no measurable cost.
        xx, xy = _square(x), torch.linalg.vecdot(x, y).double()
        directed = has_direction(xx.to(x.dtype))
        inverse = torch.where(directed, xx, 1.0).reciprocal()
        # The shorter of y - x and y: the part across x is computed from it, and so is the rounding error.
        near = xy > 0.5 * xx
        short = torch.addcmul(y, x, -near.to(x.dtype)[..., None])
        along_x, ss = torch.linalg.vecdot(short, x).double(), _square(short)
        share = torch.where(directed, along_x * inverse, 0.0)
        aside = short.addcmul_(x, share.to(x.dtype)[..., None], value=-1)
        # As in `chord.across`: a rounding error along x counts exp(radius) times.
        for _ in range(2):
            left = torch.linalg.vecdot(aside, x).double() * inverse * directed
            aside = aside.addcmul_(x, left.to(x.dtype)[..., None], value=-1)
        aa = c * _square(aside)
        n, a = (c * xx).sqrt(), aa.sqrt()
        yy = c * (ss + near * (xx + 2 * along_x)).clamp(min=0)
        part = c.sqrt() * along_x * inverse.sqrt()
        step, y_r = part - ~near * n, part + near * n
        x_t, y_t = (1 + c * xx).sqrt(), (1 + yy).sqrt()
        forward = y_r > 0
        bottom = torch.where(forward, y_r * x_t + y_t * n, 1.0)
        # Roots before products: n^2 a^2 and b^2 overflow float64 beyond radius 178.
        beyond = step * ((y_r + n) / bottom) - (n * (a / bottom.sqrt())).square()
        b = torch.where(forward, beyond, y_r * x_t - y_t * n)
        sinh = torch.hypot(a, b)
        apart = sinh > torch.finfo(x.dtype).tiny ** 0.5
        angle = torch.atan2(torch.where(apart, a, 0.0), torch.where(apart, b, 1.0))
        edge = torch.full_like(n, 2 * k)
        outside = (n - edge) * (n + edge)
        aperture = torch.atan2(edge, outside.clamp(min=1e-30).sqrt())
        excess = angle - eta * aperture
        # Factors of f and e in the gradient, over the lengths of the vectors used for f and e.
        each = torch.where(apart, sinh, 1.0).reciprocal() * (apart & directed)
        coth = torch.hypot(sinh, torch.ones_like(sinh)) * each
        along = torch.where(directed, n, 1.0).reciprocal() * directed
        across = torch.where(aa > 0, a, 1.0).reciprocal() * (aa > 0)
        y_f, y_e = (b + a * n * (a / y_t)) * each * each, -a / y_t * coth * each
        x_f, x_e = -(b * each * y_r + a * each * a * x_t) * along * each, a / x_t * coth * each
        narrowing = eta * edge * along * outside.clamp(min=1e-30).rsqrt() * (outside > 0)
        x_e = x_e + narrowing
        active = excess > 0
        turn = [side * active for side in (x_f, x_e, y_f, y_e)]
        inner = torch.where(apart, sinh, 1.0).reciprocal() * apart
        move = [-a * inner, -b / x_t * inner, a * x_t / y_t * inner, b / y_t * inner]
        distance = torch.asinh(sinh) * apart / c.sqrt()
        saved = []
        for f_x, e_x, f_y, e_y in (turn, move):
            by_c = (e_x * n + f_y * a + e_y * y_r) / (2 * c)
            factors = (across * f_x, along * e_x, across * f_y, along * e_y)
            saved.append((by_c, *(c * factor for factor in factors)))
        # The distance is that on the unit hyperboloid over sqrt(c).
        saved[1] = [each / c.sqrt() for each in saved[1]]
        saved[1][0] = saved[1][0] - distance / (2 * c)
        ctx.save_for_backward(x, aside, *saved[0], *saved[1])
        ctx.curvature = c
        return excess.clamp(min=0).to(x.dtype), distance.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_excess: Tensor, by_distance: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, aside, *saved = ctx.saved_tensors
        by_c, *factors = (
            by_excess * turn + by_distance * move for turn, move in zip(saved[:5], saved[5:], strict=True)
        )
        x_f, x_e, y_f, y_e = (factor.to(x.dtype)[..., None] for factor in factors)
        by_x, by_y = (x_f * aside).addcmul_(x_e, x), (y_f * aside).addcmul_(y_e, x)
        c = ctx.curvature
        return by_x, by_y, by_c.sum_to_size(c.shape).to(c.dtype), None, None


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1).double().square()
