"""The core of attention between points: softmax of -angle^2 / 2 times a scale, and the midpoints of the values.

cosh(angle) = q_t k_t - q_s.k_s and the norm of a weighted sum, T^2 - |S|^2, are differences of numbers up to
cosh(MAX_ANGLE)^2 = 7e9: in float32 a point's distance from itself would come out as 6. The matrix products of points,
N M D numbers, are therefore made in float64 (where the device has it); what is N M in size, angles and shares, is
float32: cosh(angle) - 1 is subtracted before it is rounded. Legend: B batch, H heads, N queries, M keys, D = E / H.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from models.hyperbolic.nn.functional import (
    Rate,
    cosh_sinhc,
    norm_and_shrink,
    normalise,
    radial_and_time,
    radial_slope,
    to_tangent,
)
from models.hyperbolic.ops import asinhc, asinhc_slope, square_norm

LEAST = 0.5
"""Least Lorentz norm of a mean: it is at least 1, the sum of its shares, up to rounding."""


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _wide_rate(rate: Rate) -> Rate:
    return _wide(rate) if isinstance(rate, Tensor) else rate


def _heads(u: Tensor, heads: int) -> Tensor:
    """[B, N, E] -> [B, H, N, D] in float64."""
    return _wide(u.unflatten(-1, (heads, -1)).transpose(1, 2))


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def attend_plain(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
) -> Tensor:
    """`attend` by autograd: differentiable any number of times."""
    points = []
    for u in (query, key, value):
        wide = _heads(u, len(scale))
        t, f = cosh_sinhc(wide, _wide_rate(rate))
        points.append((t, wide * f))
    (q_t, q_s), (k_t, k_s), (v_t, v_s) = points
    # 4 sinh^2(angle / 2): the squared angle is smooth in it, so coincident points are no exception.
    cosh = q_t @ k_t.transpose(-1, -2) - q_s @ k_s.transpose(-1, -2)
    chord = (2 * (cosh - 1)).clamp(min=0).to(query.dtype)
    angle2 = chord * asinhc(chord / 4).square()
    share = _wide(_masked(angle2 * (-scale / 2), mask).softmax(-1))
    mean = to_tangent(normalise(share @ v_s, share @ v_t, LEAST, dim=-1), _wide_rate(rate))
    return mean.transpose(1, 2).flatten(2).to(query.dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
) -> Tensor:
    """Attention with the backward pass written by hand: [B, N, E], [B, M, E], [B, M, E] -> [B, N, E].

    Args:
        query, key, value: tangent vectors, all heads side by side.
        scale: [H, 1, 1], factor of -angle^2 / 2.
        mask: boolean, broadcasting to [B, H, N, M], True where a query may look; or None.
        rate: angle per unit of the heads' tangent vectors, in and out.

    Keeps the three inputs, the output and what float32 cut off it: nothing that is N M in size. Differentiable once.
    """
    return _Attend.apply(query, key, value, scale, mask, rate)[0]


def _lift(u: Tensor, rate: Rate, sign: float = 1.0) -> Tensor:
    """Points of tangent vectors, their time part (times `sign`) first: [..., D] -> [..., 1 + D]."""
    radial, time = radial_and_time((rate * rate) * square_norm(u))
    return torch.cat([time * sign, u * (rate * radial)], -1)


def _lift_slopes(u: Tensor, rate: Rate, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes in u and rate (0-dim) from those in `_lift`'s result (sign 1)."""
    by_time, by_space = slopes[..., :1], slopes[..., 1:]
    square = square_norm(u)
    s = (rate * rate) * square
    radial, time = radial_and_time(s)
    along = (by_space * u).sum(-1, keepdim=True)
    # time^2 = 1 + s radial^2
    by_square = by_time * radial / (2 * time)
    by_radial = along * rate + by_square * (2 * s)
    by_s = torch.addcmul(by_square * radial, by_radial, radial_slope(s, radial))
    by_rate = (along * radial + by_s * square * (2 * rate)).sum()
    return torch.addcmul(by_space * (rate * radial), u, by_s * (2 * rate * rate)), by_rate


def _angles(points: Tensor, others: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles between all pairs of points and their sinh; the time parts of `others` are negated."""
    beyond = (points @ others.transpose(-1, -2)).add_(1).neg_().to(dtype).clamp_(min=0)  # cosh - 1
    sinh = (beyond + 2).mul_(beyond).sqrt_()
    return beyond.add_(sinh).log1p_(), sinh


def _shares(angles: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
    return _masked(angles.square().mul_(scale * -0.5), mask).softmax(-1)


def _join(heads: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, E]."""
    return heads.transpose(1, 2).flatten(2)


class _Attend(Function):
    @staticmethod
    def forward(query, key, value, scale, mask, rate):
        q, k, v = (_heads(u, len(scale)) for u in (query, key, value))
        wide = _wide_rate(rate)
        angles, _ = _angles(_lift(q, wide), _lift(k, wide, -1), query.dtype)
        total = _wide(_shares(angles, scale, mask)) @ _lift(v, wide)
        time, space = total[..., :1], total[..., 1:]
        point = normalise(space, time, LEAST, dim=-1)
        whole = _join(to_tangent(point, wide))
        out = whole.to(query.dtype)
        return out, (whole - out).to(query.dtype), time

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, rate = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attention is differentiable once; build it with fused=False for second derivatives"
            )
        query, key, value, scale, mask, out, rest, time, rate = ctx.saved_tensors
        rate = _wide_rate(ctx.rate if rate is None else rate)
        heads, dtype = len(scale), query.dtype
        # From the mean's tangent vector to the weighted sum (T, S), mean = S / sqrt(T^2 - |S|^2).
        by_out = _heads(grad, heads)
        mean = _heads(out, heads) + _heads(rest, heads)
        n, shrink = norm_and_shrink(mean, rate, -1)
        along = (by_out * mean).sum(-1, keepdim=True)
        by_rate = -along.sum() / rate
        outer = along * (2 * rate) * asinhc_slope(n, shrink) / (shrink * shrink)
        by_point = torch.addcmul(by_out * (shrink / rate), mean, outer)
        point = mean * (rate / shrink)
        point_time = (1 + n).sqrt()
        per_norm = point_time / time  # 1 / sqrt(T^2 - |S|^2)
        inward = (by_point * point).sum(-1, keepdim=True)
        by_total = torch.cat([-point_time * inward, torch.addcmul(by_point, point, inward)], -1) * per_norm
        # From shares to angles. The sum of share times slope is 0: the mean does not depend on the size of (T, S).
        q, k, v = (_heads(u, heads) for u in (query, key, value))
        points, others = _lift(q, rate), _lift(k, rate, -1)
        angles, sinh = _angles(points, others, dtype)
        share = _shares(angles, scale, mask)
        by_v, more = _lift_slopes(v, rate, _wide(share).transpose(-1, -2) @ by_total)
        by_rate = by_rate + more
        by_logit = (by_total @ _lift(v, rate).transpose(-1, -2)).to(dtype).mul_(share)
        by_scale = torch.mul(by_logit, angles).mul_(angles).sum((-1, -2), keepdim=True).mul_(-0.5)
        # d angle^2 / 2 by cosh: angle / sinh(angle), which is 1 at 0.
        by_cosh = angles.add_(1e-30).div_(sinh.add_(1e-30)).mul_(by_logit).mul_(scale)  # minus it
        by_cosh = _wide(by_cosh)
        by_q, more = _lift_slopes(q, rate, by_cosh @ others)
        by_rate = by_rate + more
        by_others = by_cosh.transpose(-1, -2) @ points
        by_k, more = _lift_slopes(k, rate, torch.cat([-by_others[..., :1], by_others[..., 1:]], -1))
        by_rate = by_rate + more
        by_q, by_k, by_v = (_join(by).to(dtype) for by in (by_q, by_k, by_v))
        by_scale = by_scale.sum_to_size(scale.shape)
        return by_q, by_k, by_v, by_scale, None, by_rate if ctx.needs_input_grad[5] else None
