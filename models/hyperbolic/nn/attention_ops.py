"""The core of attention between points: softmax of -angle^2 / 2 times a scale, and the midpoints of the values.

cosh(angle) = q_t k_t - q_s.k_s and the norm of a weighted sum, T^2 - |S|^2, are differences of numbers up to
cosh(MAX_ANGLE)^2: at an angle of 12 a point's distance from itself would come out as 6 in float32. The matrix
products of points are therefore made in float64 (where the device has it), unless all points lie within
`NEAR_TIME`, where float32 has the digits. What is done to each of the N M pairs stays in float32: the products give
cosh(angle) - 1, not cosh(angle).
Legend: B batch, H heads, L = B H, N queries, M keys, E features, D = E / H.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

from models.hyperbolic.nn.functional import (
    Rate,
    cosh_sinhc,
    norm_and_shrink,
    normalise,
    to_tangent,
)
from models.hyperbolic.nn.projection_ops import lift, lift_slopes
from models.hyperbolic.ops import asinhc, asinhc_slope, wide

LEAST = 0.5
"""Least Lorentz norm of a mean: it is at least 1, the sum of its shares, up to rounding."""
NEAR_TIME = 12.0
"""Largest cosh(angle) of points that are multiplied in float32: it loses its square in units of the last place."""
BLOCK = 1 << 17
"""Pairs of points that a CPU works on at a time, so that their buffers stay in its second-level cache."""


def _wide_rate(rate: Rate) -> Rate:
    return wide(rate) if isinstance(rate, Tensor) else rate


def _heads(u: Tensor, heads: int) -> Tensor:
    """[B, N, E] -> [L, N, D]."""
    return u.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    return logits if mask is None else logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def attend_plain(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
) -> Tensor:
    """`attend` by autograd: differentiable any number of times."""
    wide_rate, heads = _wide_rate(rate), len(scale)
    points = []
    for u in (query, key, value):
        u = wide(_heads(u, heads))
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


def _mirror(point: Tensor) -> Tensor:
    """(t, t - 1, -s) of `lift`'s point: its product with another is cosh(angle) - 1, which 1 is not taken off."""
    mirror = point.neg()
    mirror[..., 1:2] = point[..., :1]
    torch.add(point[..., :1], 1, out=mirror[..., :1])
    return mirror


def _join(heads: Tensor, batch: int) -> Tensor:
    """[L, N, D] -> [B, N, E]."""
    return heads.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)


def _far(*points: Tensor) -> bool:
    """Whether the products of these points need float64."""
    if torch.compiler.is_compiling() or points[0].device.type != "cpu":
        return True  # the question would wait for the device, and products may be TF32 there
    precise = torch.get_float32_matmul_precision() == "highest"
    return not (precise and all(bool(p[..., 0].max() < NEAR_TIME - 1) for p in points))


class _Pairs:
    """The pairs of queries and keys of `attend`, a block of them at a time."""

    def __init__(self, q: Tensor, k: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype) -> None:
        self.q, self.k, self.scale, self.dtype = q, _mirror(k), scale, dtype
        self.shape = (q.shape[0] // len(scale), len(scale), q.shape[1], k.shape[1])
        self.hidden = None if mask is None else (~mask).expand(self.shape)
        self.buffers: list[Tensor] = []

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of L, of B and of H: whole batch items, or some heads of one. One block where there is no cache."""
        batch, heads, n, m = self.shape
        rows, step = batch, heads
        if not torch.compiler.is_compiling() and self.q.device.type == "cpu":
            count = max(1, BLOCK // max(1, n * m))
            rows, step = max(1, count // heads), min(heads, count)
        for b in range(0, batch, rows):
            for h in range(0, heads, step):
                last, end = min(batch, b + rows), min(heads, h + step)
                yield slice(b * heads + h, (last - 1) * heads + end), slice(b, last), slice(h, end)

    def shares(self, at: slice, rows: slice, heads: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Softmax over the keys, squared angles, angle / sinh(angle) and a buffer of the products' type: [l, N, M]."""
        shape = (at.stop - at.start, *self.shape[2:])
        if not self.buffers:  # for all blocks, of which none is larger than the first
            self.buffers = [self.q.new_empty(shape, dtype=self.dtype) for _ in range(3)]
            far = self.q.dtype != self.dtype
            self.buffers.append(self.q.new_empty(shape) if far else torch.empty_like(self.buffers[0]))
        share, square, ratio, product = (t[: shape[0]] for t in self.buffers)
        torch.bmm(self.q[at], self.k[at].transpose(1, 2), out=product)
        # Not 0, where angle / sinh(angle) would be 0 / 0.
        beyond = square.copy_(product).clamp_(min=1e-30)
        sinh = torch.add(beyond, 2, out=ratio).mul_(beyond).sqrt_()
        square = beyond.add_(sinh).log1p_()
        torch.div(square, sinh, out=ratio)
        square.mul_(square)
        split = (-1, heads.stop - heads.start, *shape[1:])
        logits = torch.mul(square.view(split), self.scale[heads] * -0.5, out=share.view(split))
        if self.hidden is not None:
            logits.masked_fill_(self.hidden[rows, heads], torch.finfo(self.dtype).min)
        return torch.softmax(share, -1, out=share), square, ratio, product


class _Attend(Function):
    # Products of points are torch.bmm of contiguous tensors, and what is N M in size is overwritten: a fresh
    # page costs as much as an operation on it.

    @staticmethod
    def forward(query, key, value, scale, mask, rate):
        batch, dtype, heads = query.shape[0], query.dtype, len(scale)
        tangents = [_heads(u, heads) for u in (query, key, value)]
        lifted = [lift(u, rate)[0] for u in tangents]
        far = _far(*lifted)
        if far:
            rate = _wide_rate(rate)
            lifted = [lift(wide(u), rate)[0] for u in tangents]
        q, k, v = lifted
        pairs, total = _Pairs(q, k, scale, mask, dtype), torch.empty_like(q)
        for block in pairs.blocks():
            share, _, _, product = pairs.shares(*block)
            torch.bmm(product.copy_(share), v[block[0]], out=total[block[0]])
        # The sums are of (t - 1, 1, s).
        time, space = total[..., :1] + total[..., 1:2], total[..., 2:]
        whole = _join(to_tangent(normalise(space, time, LEAST, dim=-1), rate), batch)
        out = whole.to(dtype)
        return out, (whole - out).to(dtype) if far else None, time, far

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, rate = inputs
        out, rest, time, ctx.far = output
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*(t for t in (rest, time) if t is not None))
        ctx.save_for_backward(*tensors, out, rest, time, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attention is differentiable once; build it with fused=False for second derivatives"
            )
        query, key, value, scale, mask, out, rest, time, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        heads, dtype, batch = len(scale), query.dtype, query.shape[0]
        by_out, mean, *tangents = (_heads(u, heads) for u in (grad, out, query, key, value))
        if ctx.far:
            rate = _wide_rate(rate)
            by_out, mean, *tangents = (wide(u) for u in (by_out, mean, *tangents))
            mean = mean + _heads(rest, heads)
        by_total, by_rate = _mean_slopes(by_out, mean, time, rate)
        (q, q_f), (k, k_f), (v, v_f) = (lift(u, rate) for u in tangents)
        pairs = _Pairs(q, k, scale, mask, dtype)
        by_q, by_k, by_v = (torch.empty_like(p) for p in (q, k, v))
        by_v = by_v[..., 1:].contiguous()
        flat_v = v[..., 1:].contiguous()
        flat_v[..., 0] = v[..., 0] + 1
        by_scale = scale.new_empty(q.shape[0])
        for block in pairs.blocks():
            at = block[0]
            share, square, ratio, product = pairs.shares(*block)
            torch.bmm(product.copy_(share).transpose(1, 2), by_total[at], out=by_v[at])
            torch.bmm(by_total[at], flat_v[at].transpose(1, 2), out=product)
            # The sum of share times slope is 0: the mean does not depend on the size of (T, S).
            by_logit = share.mul_(product)
            if pairs.hidden is not None:  # the shares of a row that may look nowhere do not depend on its angles
                by_logit.unflatten(0, (-1, block[2].stop - block[2].start)).masked_fill_(
                    pairs.hidden[block[1], block[2]], 0
                )
            torch.sum(square.mul_(by_logit), (1, 2), out=by_scale[at])
            # d (angle^2 / 2) by cosh is angle / sinh(angle), 1 at 0.
            product.copy_(ratio.mul_(by_logit))
            torch.bmm(product, pairs.k[at], out=by_q[at])
            torch.bmm(product.transpose(1, 2), pairs.q[at], out=by_k[at])
        # The factor of the logits, left out of the pairs.
        factor = -scale.repeat(batch, 1, 1).to(by_q.dtype)
        by_q.mul_(factor)
        by_k.mul_(factor)
        times = by_q[..., :1], by_k[..., :1] + by_k[..., 1:2], by_v[..., :1]
        spaces = by_q[..., 2:], by_k[..., 2:].neg(), by_v[..., 1:]
        results = []
        for u, *given in zip(tangents, (q, k, v), (q_f, k_f, v_f), times, spaces, strict=True):
            by_u, more = lift_slopes(u, rate, *given)
            results.append(_join(by_u, batch).to(dtype))
            by_rate = by_rate + more
        by_scale = by_scale.unflatten(0, (-1, heads)).sum(0).mul_(-0.5).view_as(scale)
        return *results, by_scale, None, by_rate if ctx.needs_input_grad[5] else None


def _mean_slopes(by_out: Tensor, mean: Tensor, time: Tensor, rate: Rate) -> tuple[Tensor, Tensor]:
    """Slopes in the weighted sum (T, S), whose mean S / sqrt(T^2 - |S|^2) has this tangent vector, and in rate."""
    n, shrink = norm_and_shrink(mean, rate, -1)
    along = (by_out * mean).sum(-1, keepdim=True)
    by_rate = -along.sum() / rate
    outer = along * (2 * rate) * asinhc_slope(n, shrink) / (shrink * shrink)
    by_point = (by_out * (shrink / rate)).addcmul_(mean, outer)
    point, point_time = mean * (rate / shrink), (1 + n).sqrt_()
    per_norm = point_time / time  # 1 / sqrt(T^2 - |S|^2)
    inward = (by_point * point).sum(-1, keepdim=True)
    return torch.cat([-point_time * inward, by_point.addcmul_(point, inward)], -1).mul_(per_norm), by_rate
