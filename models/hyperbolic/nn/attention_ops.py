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

from hyco.models.hyperbolic.nn.functional import (
    Rate,
    cosh_sinhc,
    norm_and_shrink,
    normalise,
    to_tangent,
)
from hyco.models.hyperbolic.nn.native import attention as native
from hyco.models.hyperbolic.nn.native.library import usable
from hyco.models.hyperbolic.nn.projection_ops import lift, lift_slopes
from hyco.models.hyperbolic.ops import asinhc, asinhc_slope, square_norm, wide

LEAST = 0.5
"""Least Lorentz norm of a mean: it is at least 1, the sum of its shares, up to rounding."""
NEAR_TIME = 40.0
"""Largest cosh(angle) of points that are multiplied in float32, with errors of up to 6e-6; at 64 they reach 1e-4."""
BLOCK = 1 << 19
"""Pairs of points that a CPU works on at a time: four buffers of 2 MB in float32."""


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
    angle2 = (chord * asinhc(chord / 4).square()).unflatten(0, (query.shape[0], heads))
    share = wide(_masked(angle2 * (-scale / 2), mask).softmax(-1).flatten(0, 1))
    mean = to_tangent(normalise(share @ v_s, share @ v_t, LEAST, dim=-1), wide_rate)
    return _join(mean, query.shape[0], heads).to(query.dtype)


def attend(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    scale: Tensor,
    mask: Tensor | None,
    rate: Rate,
) -> Tensor:
    """Attention with the backward pass written by hand: [B, N, E], [B, M, E], [B, M, E] -> [B, N, E].

    Args:
        query: tangent vectors, all heads side by side; or those of queries, keys and values, [B, N, 3, E].
        key: the same of the keys; None where query has them.
        value: the same of the values; None where query has them.
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
    mirror[..., :1] = point[..., :1] + 1
    return mirror


def _join(u: Tensor, batch: int, heads: int) -> Tensor:
    """[L, N, D] -> [B, N, E]."""
    return u.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)


def _precise() -> bool:
    """Whether float32 products have all digits of float32."""
    return torch.get_float32_matmul_precision() == "highest"


def _far(points: Tensor) -> bool:
    """Whether the products of these points need float64."""
    if torch.compiler.is_compiling() or points.device.type != "cpu":
        return True  # the question would wait for the device, and products may be TF32 there
    return not (_precise() and bool((points[..., 0] < NEAR_TIME - 1).all()))


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
        if torch.compiler.is_compiling() or self.q.device.type != "cpu":
            yield slice(0, batch * heads), slice(0, batch), slice(0, heads)
            return
        count = max(1, BLOCK // max(1, n * m))
        rows, step = max(1, count // heads), min(heads, count)
        for b in range(0, batch, rows):
            for h in range(0, heads, step):
                last, end = min(batch, b + rows), min(heads, h + step)
                yield slice(b * heads + h, (last - 1) * heads + end), slice(b, last), slice(h, end)

    def shares(self, at: slice, rows: slice, heads: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Softmax over the keys, angles, their sinh, and a buffer of the products' type: [l, N, M]."""
        shape = (at.stop - at.start, *self.shape[2:])
        if not self.buffers:  # for all blocks, of which none is larger than the first
            self.buffers = [*self.q.new_empty((4, *shape), dtype=self.dtype).unbind(0)]
            if self.q.dtype != self.dtype:
                self.buffers[-1] = self.q.new_empty(shape)
        share, angle, sinh, product = (t[: shape[0]] for t in self.buffers)
        torch.bmm(self.q[at], self.k[at].transpose(1, 2), out=product)
        # Not 0, where angle / sinh(angle) would be 0 / 0.
        beyond = angle.copy_(product).clamp_(min=1e-30)
        torch.add(beyond, 2, out=sinh).mul_(beyond).sqrt_()
        angle = beyond.add_(sinh).log1p_()
        split = (rows.stop - rows.start, heads.stop - heads.start, *shape[1:])
        logits = torch.mul(angle, angle, out=share).view(split).mul_(self.scale[heads] * -0.5)
        if self.hidden is not None:
            logits.masked_fill_(self.hidden[rows, heads], torch.finfo(self.dtype).min)
        return torch.softmax(share, -1, out=share), angle, sinh, product


def _tangents(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Tangent vectors of the heads' queries, keys and values, one after the other: [L, N + 2 M, D]."""
    return torch.cat([_heads(u, heads) for u in (query, key, value)], 1)


def _three(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, of one tensor or of three."""
    if key is None or value is None:
        query, key, value = query.unbind(-2)
    return query, key, value


def _native(
    query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, *more: Tensor
) -> bool:
    """Whether the kernels take these. They trust the sizes that they are given; torch names those that do not fit."""
    fit = key.shape == value.shape and query.shape[::2] == key.shape[::2]
    return fit and (mask is None or mask.device.type == "cpu") and usable(query, key, value, scale, *more)


class _Attend(Function):
    # Products of points are torch.bmm, and what is N M in size is overwritten: a fresh page costs as much as an
    # operation on it.

    @staticmethod
    def forward(query, key, value, scale, mask, rate):
        query, key, value = _three(query, key, value)
        if _native(query, key, value, scale, mask) and _precise():
            near = native.outputs(query, key, value, scale, mask, rate, NEAR_TIME - 1, LEAST)
            if near is not None:
                return near[0], None, near[1], False
        dtype, n, m = query.dtype, query.shape[1], key.shape[1]
        tangents = _tangents(query, key, value, len(scale))
        points, _ = lift(tangents, rate)
        far = _far(points)
        if far:
            rate = _wide_rate(rate)
            points, _ = lift(wide(tangents), rate)
        q, k, v = points.split((n, m, m), 1)
        pairs, total = _Pairs(q, k, scale, mask, dtype), points.new_empty(q.shape)
        for block in pairs.blocks():
            share, _, _, product = pairs.shares(*block)
            torch.bmm(product.copy_(share), v[block[0]], out=total[block[0]])
        # The sums are of (t - 1, 1, s).
        time, space = total[..., :1] + total[..., 1:2], total[..., 2:]
        length2 = square_norm(space)
        length = length2.sqrt()
        norm2 = ((time - length) * (time + length)).clamp_(min=LEAST**2)
        whole = _join(space * (asinhc(length2 / norm2) * norm2.rsqrt() / rate), len(query), len(scale))
        out = whole.to(dtype)
        return out, (whole - out).to(dtype) if far else None, time, far

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, rate = inputs
        out, rest, time, ctx.far = output
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*(t for t in (rest, time) if t is not None))
        if not torch.compiler.is_compiling():  # as in `_Project`
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, out, rest, time, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            raise RuntimeError(
                "attention is differentiable once; build it with fused=False for second derivatives"
            )
        *inputs, scale, mask, out, rest, time, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        one, (query, key, value) = inputs[1] is None, _three(*inputs)
        if not ctx.far and _native(query, key, value, scale, mask, grad):
            by, by_scale, by_rate = native.slopes(grad, query, key, value, scale, mask, rate, out, time, one)
            by += [None, None] if one else []
            return *by, by_scale, None, by_rate if ctx.needs_input_grad[5] else None
        heads, dtype, batch = len(scale), query.dtype, query.shape[0]
        sizes = query.shape[1], key.shape[1], value.shape[1]
        tangents, by_out, mean = _tangents(query, key, value, heads), _heads(grad, heads), _heads(out, heads)
        if ctx.far:
            rate = _wide_rate(rate)
            tangents, by_out, mean = wide(tangents), wide(by_out), wide(mean) + _heads(rest, heads)
        by_total, by_rate = _mean_slopes(by_out, mean, time, rate)
        points, f = lift(tangents, rate)
        q, k, v = points.split(sizes, 1)
        by_q, by_k, by_v = (points.new_empty(p.shape) for p in (q, k, v))
        pairs, by_scale = _Pairs(q, k, scale, mask, dtype), scale.new_empty(len(points))
        for block in pairs.blocks():
            at, rows, some = block
            share, angle, sinh, product = pairs.shares(*block)
            torch.bmm(product.copy_(share).transpose(1, 2), by_total[at], out=by_v[at])
            torch.bmm(by_total[at], v[at].transpose(1, 2), out=product)
            # The sum of share times slope is 0: the mean does not depend on the size of (T, S).
            by_logit = share.mul_(product)
            if (
                pairs.hidden is not None
            ):  # the shares of a row that may look nowhere do not depend on its angles
                by_logit.view(pairs.hidden[rows, some].shape).masked_fill_(pairs.hidden[rows, some], 0)
            by_angle = by_logit.mul_(angle)
            torch.sum(angle.mul_(by_angle), (1, 2), out=by_scale[at])
            # d (angle^2 / 2) by cosh is angle / sinh(angle), 1 at 0.
            torch.div(by_angle, sinh, out=product)
            torch.bmm(product, pairs.k[at], out=by_q[at])
            torch.bmm(product.transpose(1, 2), q[at], out=by_k[at])
        # Slopes of keys are those of their mirror images; the factor of the logits was left out of the pairs.
        by_k[..., 0].add_(by_k[..., 1])
        by_k[..., 2:].neg_()
        slopes = torch.cat([by_q, by_k, by_v], 1)
        factor = -scale.repeat(batch, 1, 1).to(slopes.dtype)
        slopes[:, : sizes[0] + sizes[1]].mul_(factor)
        by_u, more = lift_slopes(tangents, rate, points, f, slopes[..., :1], slopes[..., 2:])
        by_scale = by_scale.view(batch, heads).sum(0).mul_(-0.5).view_as(scale)
        results = [_join(t, batch, heads).to(dtype) for t in by_u.split(sizes, 1)]
        results = (torch.stack(results, -2), None, None) if one else results
        return *results, by_scale, None, by_rate + more if ctx.needs_input_grad[5] else None


def _mean_slopes(by_out: Tensor, mean: Tensor, time: Tensor, rate: Rate) -> tuple[Tensor, Tensor]:
    """Slopes in the weighted sum of points (t - 1, 1, s) that has this mean, a tangent vector, and in rate (0-dim)."""
    n, shrink = norm_and_shrink(mean, rate, -1)
    along = (by_out * mean).sum(-1, keepdim=True)
    by_rate = -along.sum() / rate
    outer = along * (2 * rate) * asinhc_slope(n, shrink) / (shrink * shrink)
    by_point = (by_out * (shrink / rate)).addcmul_(mean, outer)
    point, point_time = mean * (rate / shrink), (1 + n).sqrt_()
    per_norm = point_time / time  # 1 / sqrt(T^2 - |S|^2)
    inward = (by_point * point).sum(-1, keepdim=True)
    by_time = -point_time * inward
    return torch.cat([by_time, by_time, by_point.addcmul_(point, inward)], -1).mul_(per_norm), by_rate
