"""The contrastive loss of all rows at the cost of CLIP's: per block one matrix product and one pointwise pass.

Every matrix of scores serves the cross-entropies of its rows and, where the queries are found among the keys
too, of its columns. The gradient is computed in the forward pass, while a block is in the cache; the activation
memory of the loss is a gradient of the size of the points. A matrix that fits into one block is computed once; a
larger one is streamed: computed again for the gradient if it has columns, with memory for one block at a time.

The spaces are those of models/losses/spaces.py and models/losses/cones.py.
Legend: Q queries, K keys, k factors of d dimensions (1 of D in a plain hyperboloid), e = d + 2.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hyco.models.losses.cones import Cones
from hyco.models.losses.spaces import Block, Hyperboloids, Sphere

DEFERRED = {"cuda"}
"""Types of devices that are asked once, at the end, whether a pair of points needs float64, and not for every block.

By then the whole loss is in the device's queue, so that it computes while the host waits. Where a pair needs it, which
is rare, all blocks are computed again, and each one asks.
"""


@dataclass(frozen=True)
class PairLoss:
    """Cross-entropies on one matrix of scores between two sets of points, given by their indices.

    The target of row i is key `target[i]` [Q]; all rows have the weight `weight` (0-dim), times `factor[i]` [Q] where
    there is one. With `reverse_target` [K], the target of key j among the rows is `reverse_target[j]`, with the weight
    `reverse_weight`. `scale` is the index of its inverse temperature.

    With `sigmoid` a row is the sum of K binary cross-entropies instead, of score + bias (Zhai et al. 2023, SigLIP), or
    with `balanced` the target's, halved, and half the mean of the others'; it has no reverse. `bias` is the first and
    the last index + 1 of its biases: one, or one per row. With `cosine` the scores are the cosines of the directions,
    whatever the others are.
    """

    query: int
    key: int
    target: Tensor
    weight: Tensor
    reverse_target: Tensor | None = None
    reverse_weight: Tensor | None = None
    factor: Tensor | None = None
    sigmoid: bool = False
    scale: int = 0
    balanced: bool = False
    bias: tuple[int, int] = (0, 1)
    cosine: bool = False

    def __post_init__(self) -> None:
        assert self.reverse_target is None or not (self.sigmoid or self.factor is not None)


def contrast(
    points: Sequence[Tensor],
    tables: Sequence[PairLoss],
    scale: Tensor,
    curvature: Tensor | None,
    pairs_at_once: int = 1 << 20,
    cones: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of all cross-entropies (0-dim, differentiable once), and their plain sums over the rows.

    Args:
        points: sets of points [N, D], float32 or float64, all of one type.
        tables: pairs of sets to compare, with their targets.
        scale: inverse temperatures, [S] or 0-dim.
        curvature: c > 0 of the hyperboloid, or [k] of a product's factors; None for cosines of unit vectors.
        pairs_at_once: maximum number of entries of k x Q x K in memory.
        cones: scores are minus the exterior angle of the key at the query, not minus their distance. Tables of cosines
            need it; such a table and one of angles that follow each other share the products of the same two sets.
        bias: added to the scores of sigmoid tables, [N] or 0-dim; 0 without.

    Returns:
        The total, and [tables, 2] sums of the cross-entropies of rows, times their factors, and of columns (detached;
        0 without).
    """
    c = points[0].new_zeros(0) if curvature is None else curvature.to(points[0].dtype).reshape(-1)
    shift = points[0].new_zeros(1) if bias is None else bias.to(points[0].dtype).reshape(-1)
    inputs = (scale.to(points[0].dtype).reshape(-1), shift, c, *points)
    wants = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    total, sums = _Contrast.apply(wants, tuple(tables), pairs_at_once, cones, *inputs)  # pyright: ignore[reportGeneralTypeIssues]
    return total, sums


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wants: bool,
        tables: tuple[PairLoss, ...],
        pairs_at_once: int,
        cones: bool,
        scale,
        bias,
        c,
        *points,
    ):
        def passed(space: Sphere) -> tuple[Tensor, Tensor, list[Tensor]]:
            """The total, the sums and the gradients by every input."""
            by_scale, by_bias = torch.zeros_like(scale), torch.zeros_like(bias)
            sums, total = scale.new_zeros(len(tables), 2), scale.new_zeros(())
            for number, table in enumerate(tables):
                own, inverse = slice(*table.bias), scale[table.scale]
                to = _Slopes(space, table, by_scale[table.scale], by_bias[own], wants)
                if table.sigmoid:
                    _run_sigmoid(to, inverse, bias[own], sums[number], pairs_at_once)
                else:
                    _run(to, inverse, sums[number], pairs_at_once)
                total = total + sums[number, 0] * table.weight
                if table.reverse_weight is not None:
                    total = total + sums[number, 1] * table.reverse_weight
            return total, sums, [by_scale, by_bias, *space.gradients()] if wants else []

        curved, deferred = Cones if cones else Hyperboloids, points[0].device.type in DEFERRED
        with _full_precision():
            space = curved(c, points, deferred) if len(c) else Sphere(points)
            total, sums, found = passed(space)
            if space.lost is not None and bool(space.lost):
                total, sums, found = passed(curved(c, points))
            ctx.save_for_backward(*found)
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, *(grad * saved for saved in ctx.saved_tensors)


@dataclass
class _Slopes:
    """Where the derivatives of one table's loss go: the space, and the gradients by its scale and the bias."""

    space: Sphere
    table: PairLoss
    by_scale: Tensor
    by_bias: Tensor
    wanted: bool

    @property
    def pair(self) -> tuple[int, int]:
        return self.table.query, self.table.key

    def block(self, span: tuple[int, int], scale: Tensor) -> Block:
        """Scores of the table's queries of a span."""
        if self.table.cosine:
            assert isinstance(self.space, Cones), "cosines among other scores are those of the cones' points"
            return self.space.cosines(self.pair, span, scale)
        return self.space.block(self.pair, span, scale)

    def add(self, block: Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives of the loss by its scores, times the scale."""
        self.by_scale += torch.dot(block.scores.flatten(), slopes.flatten()) / block.scale.square()
        self.space.accumulate_grad(self.pair, block, slopes)


def _spans(space: Sphere, table: PairLoss, pairs_at_once: int) -> list[tuple[int, int]]:
    """Ranges of queries whose scores fit into memory; none without keys."""
    count, keys = (len(space.points[place]) for place in (table.query, table.key))
    rows = max(1, pairs_at_once // max(1, keys * space.factors))
    return [(low, min(low + rows, count)) for low in range(0, count, rows)] if keys else []


def _softplus(logits: Tensor) -> Tensor:
    """log(1 + exp(logit)), to all digits of float64."""
    return F.softplus(logits, threshold=40)


def _row_weight(table: PairLoss, span: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors ([q, 1], or 0-dim 1) of the rows of a span, and these times the weight of the table."""
    weight = table.weight.to(dtype)
    factor = torch.ones_like(weight) if table.factor is None else table.factor[slice(*span), None].to(dtype)
    return factor, factor * weight


def _run_sigmoid(to: _Slopes, scale: Tensor, bias: Tensor, sums: Tensor, pairs_at_once: int) -> None:
    """Add the binary cross-entropies of one table to `sums`, and their gradients where they are wanted."""
    space, table = to.space, to.table
    positive = negative = 1.0
    if table.balanced:
        positive, negative = 0.5, 0.5 / max(1, len(space.points[table.key]) - 1)
    for span in _spans(space, table, pairs_at_once):
        block, target = to.block(span, scale), table.target[slice(*span), None]
        factor, weight = _row_weight(table, span, sums.dtype)
        rows = slice(*span) if len(bias) > 1 else slice(None)
        logits = block.scores + bias[rows, None]
        own = logits.gather(1, target)
        others = _softplus(logits).sum(1, keepdim=True) - _softplus(own)
        sums[0] += (factor * (positive * _softplus(-own) + negative * others)).sum()
        if to.wanted:
            slopes = logits.sigmoid_().mul_(negative).scatter_(1, target, -positive * torch.sigmoid(-own))
            slopes = slopes.mul_(weight * scale)
            by_rows = slopes.sum(1) / scale
            to.by_bias[rows] += by_rows if len(bias) > 1 else by_rows.sum()
            to.add(block, slopes)


def _run(to: _Slopes, scale: Tensor, sums: Tensor, pairs_at_once: int) -> None:
    """Add the cross-entropies of one table to `sums`, and their gradients where they are wanted."""
    space, table = to.space, to.table
    keys, spans = len(space.points[table.key]), _spans(space, table, pairs_at_once)
    if table.reverse_target is None or table.reverse_weight is None:
        for span in spans:
            block, target = to.block(span, scale), table.target[slice(*span), None]
            factor, weight = _row_weight(table, span, sums.dtype)
            logs = torch.log_softmax(block.scores, 1)
            sums[0] -= (logs.gather(1, target) * factor).sum()
            if to.wanted:
                slopes = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
                to.add(block, slopes.mul_(weight * scale))
        return
    weight = table.weight.to(sums.dtype) * scale
    reverse_weight = table.reverse_weight.to(sums.dtype) * scale
    row_lse, column_lse = [], scale.new_full((1, keys), -torch.inf)
    kept: tuple[Block, Tensor, Tensor] | None = None
    for span in spans:
        block = to.block(span, scale)
        logs, column_logs = (torch.log_softmax(block.scores, dim) for dim in (1, 0))
        sums[0] -= logs.gather(1, table.target[slice(*span), None]).sum()
        row, inside = _inside(table.reverse_target, span)
        sums[1] -= (block.scores.gather(0, row[None])[0] * inside).sum()
        # log_softmax is one fused pass, logsumexp four: the normaliser is read off the largest entry.
        row_lse.append(block.scores.amax(1, keepdim=True) - logs.amax(1, keepdim=True))
        own_lse = block.scores.amax(0, keepdim=True) - column_logs.amax(0, keepdim=True)
        column_lse = torch.logaddexp(column_lse, own_lse)
        kept = (block, logs, column_logs) if len(spans) == 1 else None
    sums[1] += column_lse.sum()
    for span, lse in zip(spans, row_lse, strict=True) if to.wanted else ():
        if kept:
            block, logs, column_logs = kept
        else:
            block = to.block(span, scale)
            logs, column_logs = block.scores - lse, block.scores - column_lse
        slopes = logs.exp_().mul_(weight).add_(column_logs.exp_().mul_(reverse_weight))
        slopes.scatter_add_(1, table.target[slice(*span), None], -weight.expand_as(lse))
        row, inside = _inside(table.reverse_target, span)
        slopes.scatter_add_(0, row[None], (-reverse_weight * inside)[None])
        to.add(block, slopes)


def _inside(reverse_target: Tensor, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row within the span of the target of every key, [K], and whether it lies there (1) or beyond the span (0).

    A list of the keys whose target lies there would have a length that the host has to wait for.
    """
    row = reverse_target - span[0]
    inside = (row >= 0) & (row < span[1] - span[0])
    return row.clamp(0, span[1] - span[0] - 1), inside


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, whatever the caller allows for the towers."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
