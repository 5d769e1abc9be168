"""The core of attention between points: softmax of -angle^2 / 2 times a scale, and the midpoints of the values.

cosh(angle) = q_t k_t - q_s.k_s and the norm of a weighted sum, T^2 - |S|^2, are differences of numbers up to
cosh(MAX_ANGLE)^2: at an angle of 12 a point's distance from itself would come out as 6 in float32. The matrix
products of points are therefore made in float64 (where the device has it). What is done to each of the N M
pairs stays in float32: 1 is taken off cosh(angle) before it is rounded.
Legend: B batch, H heads, L = B H, N queries, M keys, E features, D = E / H.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.nn.functional import (
    Rate,
    cosh_sinhc,
    norm_and_shrink,
    normalise,
    radial_part,
    radial_slope,
    to_tangent,
)
from hyco.models.hyperbolic.ops import asinhc, asinhc_slope, square_norm, wide

LEAST = 0.5
"""Least Lorentz norm of a mean: it is at least 1, the sum of its shares, up to rounding."""


def _wide_rate(rate: Rate) -> Rate:
    return wide(rate) if isinstance(rate, Tensor) else rate


def _heads(u: Tensor, heads: int) -> Tensor:
    """[B, N, E] -> [L, N, D] in float64."""
    return wide(u.unflatten(-1, (heads, -1)).transpose(1, 2)).flatten(0, 1)


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def attend_plain(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
) -> Tensor:
    """`attend` by autograd: differentiable any number of times."""
    wide_rate, heads = _wide_rate(rate), len(scale)
    points = []
    for u in (query, key, value):
        u = _heads(u, heads)
        t, f = cosh_sinhc(u, wide_rate)
        points.append((t, u * f))
    (q_t, q_s), (k_t, k_s), (v_t, v_s) = points
    # 4 sinh^2(angle / 2): the squared angle is smooth in it, so coincident points are no exception.
    cosh = q_t @ k_t.transpose(-1, -2) - q_s @ k_s.transpose(-1, -2)
    chord = (2 * (cosh - 1)).clamp(min=0).to(query.dtype)
    angle2 = (chord * asinhc(chord / 4).square()).unflatten(0, (-1, heads))
    share = wide(_masked(angle2 * (-scale / 2), mask).softmax(-1).flatten(0, 1))
    mean = to_tangent(normalise(share @ v_s, share @ v_t, LEAST, dim=-1), wide_rate)
    return _join(mean, query.shape[0]).to(query.dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
) -> Tensor:
    """Attention with the backward pass written by hand: [B, N, E], [B, M, E], [B, M, E] -> [B, N, E].

    Args:
        query: tangent vectors, all heads side by side.
        key: the same of the keys.
        value: the same of the values.
        scale: [H, 1, 1], factor of -angle^2 / 2.
        mask: boolean, broadcasting to [B, H, N, M], True where a query may look; or None.
        rate: angle per unit of the heads' tangent vectors, in and out.

    Keeps the three inputs, the output and what float32 cut off it: nothing that is N M in size. Differentiable once.
    """
    return _Attend.apply(query, key, value, scale, mask, rate)[0]


def _lift(u: Tensor, rate: Rate) -> tuple[Tensor, Tensor]:
    """Points of tangent vectors, time part first, and sinh(angle) / length: [L, N, D] -> [L, N, 1 + D], [L, N, 1]."""
    radial = radial_part((rate * rate) * square_norm(u))
    f = rate * radial
    s = u * f
    return torch.cat([(1 + square_norm(s)).sqrt_(), s], -1), f


def _lift_slopes(u: Tensor, rate: Rate, point: Tensor, f: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes in u and rate (0-dim) from those in `_lift`'s point."""
    time = point[..., :1]
    # time^2 = 1 + f^2 |u|^2, f = rate radial(s), s = rate^2 |u|^2
    by_time = slopes[..., :1] * (f / time)
    by_space = torch.addcmul(slopes[..., 1:], u, by_time)
    square = square_norm(u)
    s = (rate * rate) * square
    by_f = (by_space * u).sum(-1, keepdim=True)
    by_s = by_f * rate * radial_slope(s, f / rate)
    by_rate = (by_f * f / rate + by_s * square * (2 * rate)).sum()
    return (by_space * f).addcmul_(u, by_s * (2 * rate * rate)), by_rate


def _angles(cosh: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles and their sinh from their cosh, which is overwritten: 1 is taken off before it is rounded to dtype."""
    beyond = cosh.sub_(1).to(dtype).clamp_(min=0)
    sinh = (beyond + 2).mul_(beyond).sqrt_()
    return torch.add(beyond, sinh).log1p_(), sinh


def _shares(angles: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys: [L, N, M] -> the same."""
    logits = (angles * angles).unflatten(0, (-1, len(scale))).mul_(scale * -0.5)
    return _masked(logits, mask).softmax(-1).flatten(0, 1)


def _join(heads: Tensor, batch: int) -> Tensor:
    """[L, N, D] -> [B, N, E]."""
    return heads.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)


def _mirror(points: Tensor) -> Tensor:
    """The transposed points with their space part negated: a product with it is cosh(angle)."""
    return torch.cat([points[..., :1], -points[..., 1:]], -1).transpose(-1, -2)


class _Attend(Function):
    # Products of points are torch.bmm of contiguous tensors, and what is N M in size is overwritten: a fresh
    # page costs as much as an operation on it.

    @staticmethod
    def forward(query, key, value, scale, mask, rate):
        batch, wide_rate = query.shape[0], _wide_rate(rate)
        (q, _), (k, _), (v, _) = (_lift(_heads(u, len(scale)), wide_rate) for u in (query, key, value))
        cosh = q @ _mirror(k)
        angles, _ = _angles(cosh, query.dtype)
        total = cosh.copy_(_shares(angles, scale, mask)) @ v
        time, space = total[..., :1], total[..., 1:]
        point = normalise(space, time, LEAST, dim=-1)
        whole = _join(to_tangent(point, wide_rate), batch)
        out = whole.to(query.dtype)
        return out, (whole - out).to(query.dtype), time.contiguous()

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
        by_point = (by_out * (shrink / rate)).addcmul_(mean, outer)
        point, point_time = mean * (rate / shrink), (1 + n).sqrt_()
        per_norm = point_time / time  # 1 / sqrt(T^2 - |S|^2)
        inward = (by_point * point).sum(-1, keepdim=True)
        by_total = torch.cat([-point_time * inward, by_point.addcmul_(point, inward)], -1).mul_(per_norm)
        # From shares to angles. The sum of share times slope is 0: the mean does not depend on the size of (T, S).
        tangents = [_heads(u, heads) for u in (query, key, value)]
        (q, q_f), (k, k_f), (v, v_f) = (_lift(u, rate) for u in tangents)
        mirror = _mirror(k)
        cosh = q @ mirror
        angles, sinh = _angles(cosh, dtype)
        share = _shares(angles, scale, mask)
        by_v = cosh.copy_(share).transpose(-1, -2) @ by_total
        torch.matmul(by_total, v.transpose(-1, -2), out=cosh)
        by_logit = share.mul_(cosh)
        if mask is not None:  # the shares of a row that may look nowhere do not depend on its angles
            by_logit.unflatten(0, (-1, heads)).masked_fill_(~mask, 0)
        by_scale = torch.mul(by_logit, angles).mul_(angles).sum((-1, -2)).mul_(-0.5)
        # d (angle^2 / 2) by cosh is angle / sinh(angle), 1 at 0.
        angles.add_(1e-30).div_(sinh.add_(1e-30)).mul_(by_logit).unflatten(0, (-1, heads)).mul_(-scale)
        cosh.copy_(angles)
        by_q = cosh @ mirror.transpose(-1, -2)
        by_k = cosh.transpose(-1, -2) @ q
        by_k[..., 1:].neg_()
        results = []
        for u, *rest in zip(tangents, (q, k, v), (q_f, k_f, v_f), (by_q, by_k, by_v), strict=True):
            by_u, more = _lift_slopes(u, rate, *rest)
            results.append(_join(by_u, query.shape[0]).to(dtype))
            by_rate = by_rate + more
        by_scale = by_scale.unflatten(0, (-1, heads)).sum(0).view_as(scale)
        return *results, by_scale, None, by_rate if ctx.needs_input_grad[5] else None
