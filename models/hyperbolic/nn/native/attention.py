"""The two passes of `attention_ops.attend` by C++ kernels, between matrix products of torch, for near points."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate
from hyco.models.hyperbolic.nn.native.library import address, kernels

BLOCK = 1 << 17
"""Pairs of points that are worked on at a time: two buffers of 0.5 MB, which stay in the cache of a core."""
MIRRORS = (False, True, False)
"""Which points of queries, keys and values are mirrored, so that their products with others are cosh(angle) - 1."""


class Heads:
    """Queries [B, N, E], keys and values [B, M, E] as L = B H heads of points, some heads at a time."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, mask: Tensor | None, rate: Rate
    ) -> None:
        self.kernels, self.rate, self.scale = kernels(), float(rate), scale.contiguous()
        self.inputs = [u if u.stride(-1) == 1 else u.contiguous() for u in (query, key, value)]
        batch, n, m, heads = len(query), query.shape[1], key.shape[1], len(scale)
        self.total, self.dim = batch * heads, query.shape[-1] // heads
        self.step = min(self.total, max(1, BLOCK // (n * m)))
        self.points = [query.new_empty(self.step, u.shape[1], 2 + self.dim) for u in self.inputs]
        self.sizes = [(heads, u.shape[1], self.dim) for u in self.inputs]
        self.pairs = query.new_empty(self.step, n, m)
        self.mask = None if mask is None else mask.expand(batch, heads, n, m)
        self.layout = heads, n, m, *((0, 0, 0, 0) if self.mask is None else self.mask.stride())

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The first of some heads and their number."""
        for first in range(0, self.total, self.step):
            yield first, min(self.step, self.total - first)

    def lift(self, first: int, count: int) -> tuple[list[Tensor], float]:
        """Points [L, N or M, 2 + D] of queries, keys (mirrored) and values, and the largest t - 1."""
        most = 0.0
        for u, point, sizes, mirror in zip(self.inputs, self.points, self.sizes, MIRRORS, strict=True):
            where = address(u), address(point), first, count, *sizes, u.stride(0), u.stride(1)
            most = max(most, self.kernels.lift_heads(*where, self.rate, MAX_ANGLE, mirror))
        return [point[:count] for point in self.points], most


def outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    rate: Rate,
    near: float,
    least: float,
) -> tuple[Tensor, Tensor] | None:
    """Outputs [B, N, E] and the time parts [B H, N, 1] of the sums of values; None where a t - 1 is not below near."""
    heads = Heads(query, key, value, scale, mask, rate)
    out = query.new_empty(query.shape)
    time, sums = query.new_empty(heads.total, query.shape[1], 1), torch.empty_like(heads.points[0])
    for first, count in heads.blocks():
        (q, k, v), most = heads.lift(first, count)
        if not most < near:
            return None
        share = torch.bmm(q, k.transpose(1, 2), out=heads.pairs[:count])
        pointers = map(address, (share, heads.scale, heads.mask))
        heads.kernels.shares(*pointers, first, count, *heads.layout)
        torch.bmm(share, v, out=sums[:count])
        pointers = map(address, (sums, out, time))
        heads.kernels.means(*pointers, first, count, *heads.sizes[0], heads.rate, least)
    return out, time


def slopes(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    rate: Rate,
    out: Tensor,
    time: Tensor,
    stacked: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Slopes in queries, keys and values (stacked: as one tensor [B, N, 3, E]), in scale and in rate of `outputs`."""
    heads = Heads(query, key, value, scale, mask, rate)
    native, grad, out = heads.kernels, grad.contiguous(), out.contiguous()
    if stacked:
        by = [query.new_empty(*query.shape[:2], 3, query.shape[2])]
        parts = by[0].unbind(-2)
    else:
        by = parts = [query.new_empty(u.shape) for u in heads.inputs]
    by_points, by_sums = [torch.empty_like(p) for p in heads.points], torch.empty_like(heads.points[0])
    by_scale, by_pairs = query.new_empty(heads.total, query.shape[1]), torch.empty_like(heads.pairs)
    factors, by_rate = (-heads.scale, -heads.scale, torch.ones_like(heads.scale)), 0.0
    for first, count in heads.blocks():
        (q, k, v), _ = heads.lift(first, count)
        by_sum, (by_q, by_k, by_v) = by_sums[:count], (p[:count] for p in by_points)
        pointers = map(address, (grad, out, time, by_sum))
        by_rate += native.mean_slopes(*pointers, first, count, *heads.sizes[0], heads.rate)
        share = torch.bmm(q, k.transpose(1, 2), out=heads.pairs[:count])
        slope = torch.bmm(by_sum, v.transpose(1, 2), out=by_pairs[:count])
        pointers = map(address, (share, slope, by_scale[first:], heads.scale, heads.mask))
        native.share_slopes(*pointers, first, count, *heads.layout)
        torch.bmm(share.transpose(1, 2), by_sum, out=by_v)
        torch.bmm(slope, k, out=by_q)
        torch.bmm(slope.transpose(1, 2), q, out=by_k)
        for u, by_point, factor, part, sizes, mirror in zip(
            heads.inputs, by_points, factors, parts, heads.sizes, MIRRORS, strict=True
        ):
            strides = u.stride(0), u.stride(1), part.stride(0), part.stride(1)
            pointers = map(address, (u, by_point, factor, part))
            by_rate += native.unlift_heads(
                *pointers, first, count, *sizes, *strides, heads.rate, MAX_ANGLE, mirror
            )
    by_scale = by_scale.view(-1, len(scale), query.shape[1]).sum((0, 2)).mul_(-0.5).view_as(scale)
    return by, by_scale, scale.new_tensor(by_rate)
