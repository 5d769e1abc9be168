"""The contrastive loss of all rows at the cost of CLIP's: per block one matrix product and one pointwise pass.

Every matrix of scores serves the cross-entropies of its rows and, where the queries are found among the keys
too, of its columns. The gradient is computed in the forward pass, while a block is in the cache; the activation
memory of the loss is a gradient of the size of the points. A matrix that fits into one block is computed once; a
larger one is streamed: computed again for the gradient if it has columns, with memory for one block at a time.

On the unit hyperboloid (x <- sqrt(c) x, u = x_t - 1 = |x|^2 / (1 + x_t)) the distance is arcosh(1 + h) with
    h = u_x u_y + u_x + u_y - x.y = [x, u_x, 1] . [-y, u_y + 1, u_y],
one product whose terms do not cancel near the origin, and arcosh(1 + h) = log1p(h + sqrt(h (h + 2))). Where
h is small beside u_x u_y + u_x + u_y the product cancels: such near pairs are computed one by one from
`lorentz.distance`, or, where a block has very many, the block is computed in float64.
Legend: Q queries, K keys, k factors of d dimensions (1 of D in a plain hyperboloid), e = d + 2.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.hyperbolic import lorentz

NEAR = 1e-2  # of u_x u_y + u_x + u_y: below it a float32 product has lost two of its seven digits


@dataclass(frozen=True)
class PairLoss:
    """Cross-entropies on one matrix of scores between two sets of points, given by their indices.

    The target of row i is key `target[i]` [Q]; all rows have the weight `weight` (0-dim). With `reverse_target` [K],
    the target of key j among the rows is `reverse_target[j]`, with the weight `reverse_weight`.
    """

    query: int
    key: int
    target: Tensor
    weight: Tensor
    reverse_target: Tensor | None = None
    reverse_weight: Tensor | None = None


def contrast(
    points: Sequence[Tensor],
    tables: Sequence[PairLoss],
    scale: Tensor,
    curvature: Tensor | None,
    pairs_at_once: int = 1 << 20,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of all cross-entropies (0-dim, differentiable once), and their plain sums over the rows.

    Args:
        points: sets of points [N, D], float32 or float64, all of one type.
        tables: pairs of sets to compare, with their targets.
        scale: inverse temperature, 0-dim.
        curvature: c > 0 of the hyperboloid, or [k] of a product's factors; None for cosines of unit vectors.
        pairs_at_once: maximum number of entries of k x Q x K in memory.

    Returns:
        The total, and [tables, 2] sums of the cross-entropies of rows and of columns (detached; 0 without).
    """
    c = points[0].new_zeros(0) if curvature is None else curvature.to(points[0].dtype).reshape(-1)
    inputs = (scale.to(points[0].dtype), c, *points)
    wants = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    total, sums = _Contrast.apply(wants, tuple(tables), pairs_at_once, *inputs)  # pyright: ignore[reportGeneralTypeIssues]
    return total, sums


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wants: bool, tables: tuple[PairLoss, ...], pairs_at_once: int, scale, c, *points):
        space = _Hyperboloids(c, scale, points) if len(c) else _Sphere(scale, points)
        sums = scale.new_zeros(len(tables), 2)
        total = scale.new_zeros(())
        with _full_precision():
            for number, table in enumerate(tables):
                _run(space, table, sums[number], pairs_at_once, wants)
                total = total + sums[number, 0] * table.weight
                if table.reverse_weight is not None:
                    total = total + sums[number, 1] * table.reverse_weight
            if wants:
                ctx.save_for_backward(*space.gradients())
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, *(grad * saved for saved in ctx.saved_tensors)


def _run(space: "_Sphere", table: PairLoss, sums: Tensor, pairs_at_once: int, wants: bool) -> None:
    """Add the cross-entropies of one table to `sums` and its gradient to the space's."""
    count, keys = (len(space.points[place]) for place in (table.query, table.key))
    weight = table.weight.to(sums.dtype)
    rows = max(1, pairs_at_once // max(1, keys * space.factors))
    spans = [(low, min(low + rows, count)) for low in range(0, count, rows)]
    if table.reverse_target is None or table.reverse_weight is None:
        for span in spans:
            block, target = space.block(table, span), table.target[slice(*span), None]
            logs = torch.log_softmax(block.scores, 1)
            sums[0] -= logs.gather(1, target).sum()
            if wants:
                slopes = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
                space.accumulate_grad(table, block, slopes.mul_(weight))
        return
    reverse_weight = table.reverse_weight.to(sums.dtype)
    row_lse, column_lse = [], space.scale.new_full((1, keys), -torch.inf)
    kept: tuple[_Block, Tensor, Tensor] | None = None
    for span in spans:
        block = space.block(table, span)
        logs, column_logs = (torch.log_softmax(block.scores, dim) for dim in (1, 0))
        sums[0] -= logs.gather(1, table.target[slice(*span), None]).sum()
        sums[1] -= block.scores[_inside(table.reverse_target, span)].sum()
        # log_softmax is one fused pass, logsumexp four: the normaliser is read off the largest entry.
        row_lse.append(block.scores.amax(1, keepdim=True) - logs.amax(1, keepdim=True))
        own_lse = block.scores.amax(0, keepdim=True) - column_logs.amax(0, keepdim=True)
        column_lse = torch.logaddexp(column_lse, own_lse)
        kept = (block, logs, column_logs) if len(spans) == 1 else None
    sums[1] += column_lse.sum()
    for span, lse in zip(spans, row_lse, strict=True) if wants else ():
        if kept:
            block, logs, column_logs = kept
        else:
            block = space.block(table, span)
            logs, column_logs = block.scores - lse, block.scores - column_lse
        slopes = logs.exp_().mul_(weight).add_(column_logs.exp_().mul_(reverse_weight))
        slopes.scatter_add_(1, table.target[slice(*span), None], -weight.expand_as(lse))
        inside = _inside(table.reverse_target, span)
        slopes.index_put_(inside, -reverse_weight.expand(len(inside[0])), accumulate=True)
        space.accumulate_grad(table, block, slopes)


def _inside(reverse_target: Tensor, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Positions within the span of the queries that are targets of keys, and those keys."""
    keys = ((reverse_target >= span[0]) & (reverse_target < span[1])).nonzero()[:, 0]
    return reverse_target[keys] - span[0], keys


@dataclass
class _Near:
    """Pairs too close for the matrix product: (factor, query, key), their points [P, d] and distances."""

    index: tuple[Tensor, Tensor, Tensor]
    x: Tensor
    y: Tensor
    distance: Tensor  # with a graph down to x and y

    @classmethod
    def of(cls, index: tuple[Tensor, Tensor, Tensor], rows: Tensor, keys: Tensor, root_c: Tensor) -> "_Near":
        """Build it in float64, so that not even sqrt(c) x is rounded."""
        (factor, row, column), size = index, (len(root_c), -1)
        wide = root_c.double()[factor, None]
        x = rows.unflatten(1, size)[row, factor].double() * wide
        y = keys.unflatten(1, size)[column, factor].double() * wide
        with torch.enable_grad():
            x, y = x.requires_grad_(), y.requires_grad_()
            return cls(index, x, y, lorentz.distance(x, y, 1.0))


@dataclass
class _Block:
    """Scores [q, K] of a span of queries and the values that their gradient needs.

    query [k, q, e] and key [k, K, e] are the charts that were multiplied (unit vectors on the sphere), `distance`
    [k, q, K] the distances in the factors (None where the scores are proportional to them), `stretch` dh / d distance,
    infinite at pairs that do not go through h.
    """

    span: tuple[int, int]
    scores: Tensor
    query: Tensor
    key: Tensor
    distance: Tensor | None = None
    stretch: Tensor | None = None
    near_pairs: _Near | None = None


class _Sphere:
    """Cosines of unit vectors, and the gradient computed from the derivatives of a loss by its scores."""

    def __init__(self, scale: Tensor, points: Sequence[Tensor], factors: int = 1) -> None:
        self.scale, self.points, self.factors = scale, points, factors
        self.moment = scale.new_zeros(factors)  # sum over all pairs of slope times distance, or times score
        # Sums per set of the points that it was multiplied with, weighted.
        self.pulled: dict[int, Tensor] = {}

    def block(self, table: PairLoss, span: tuple[int, int]) -> _Block:
        query, key = self.points[table.query][None, slice(*span)], self.points[table.key][None]
        return _Block(span, (query @ key.transpose(1, 2))[0].mul_(self.scale), query, key)

    def accumulate_grad(self, table: PairLoss, block: _Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives [q, K] of the loss by its scores."""
        self.moment += torch.dot(block.scores.flatten(), slopes.flatten())
        everything = (0, len(self.points[table.key]))
        self._gather(self.pulled, table.query, block.span, slopes[None], block.key)
        self._gather(self.pulled, table.key, everything, slopes.T[None], block.query)

    def gradients(self) -> Iterator[Tensor]:
        """Gradients by the scale, the curvatures and every set of points, in this order."""
        yield self.moment[0] / self.scale
        yield self.scale.new_zeros(0)
        for place, points in enumerate(self.points):
            yield self.pulled[place][0] * self.scale if place in self.pulled else torch.zeros_like(points)

    def _gather(
        self, held: dict[int, Tensor], place: int, span: tuple[int, int], weight: Tensor, with_: Tensor
    ) -> Tensor:
        """Add a product to the sum of a span of a set; returns the span's part."""
        if place not in held and span == (0, len(self.points[place])):
            held[place] = weight @ with_
            return held[place]
        if place not in held:
            held[place] = weight.new_zeros(self.factors, len(self.points[place]), with_.shape[-1])
        return held[place][:, slice(*span)].baddbmm_(weight, with_)


class _Hyperboloids(_Sphere):
    """Minus the mean of the distances in k hyperboloids."""

    def __init__(self, c: Tensor, scale: Tensor, points: Sequence[Tensor]) -> None:
        super().__init__(scale, points, len(c))
        self.root_c = c.sqrt()
        self.share = 1 / (self.factors * self.root_c)  # of a factor's distance in the mean
        self.charts = [_chart(each, self.root_c) for each in points]
        self.keys: dict[int, Tensor] = {}
        self.times: dict[int, Tensor] = {}  # as `pulled`, of time parts

    def block(self, table: PairLoss, span: tuple[int, int]) -> _Block:
        query, key = self.charts[table.query][:, slice(*span)], self.charts[table.key]
        if table.key not in self.keys:
            self.keys[table.key] = _as_key(key)
        rows, keys = self.points[table.query][slice(*span)], self.points[table.key]
        h = query @ self.keys[table.key].transpose(1, 2)
        index, near_pairs = _close(h, query, key), None
        many = index is not None and len(index[0]) > max(h.shape[1:])
        if many:
            wide = self.root_c.double()
            query, key = _chart(rows.double(), wide), _chart(keys.double(), wide)
            h, index = (query @ _as_key(key).transpose(1, 2)).clamp_(min=0), None
        stretch = (h + 2).mul_(h).sqrt_()
        distance = h.add_(stretch).log1p_()
        if index is not None:
            near_pairs = _Near.of(index, rows, keys, self.root_c)
            distance[index], stretch[index] = near_pairs.distance.detach().to(distance.dtype), torch.inf
        elif many:
            stretch.masked_fill_(stretch == 0, torch.inf)
        share, distance = -self.scale * self.share, distance.to(self.scale.dtype)
        if self.factors == 1:
            return _Block(span, distance[0].mul_(share), query, key, None, stretch, near_pairs)
        return _Block(span, torch.tensordot(share, distance, 1), query, key, distance, stretch, near_pairs)

    def accumulate_grad(self, table: PairLoss, block: _Block, slopes: Tensor) -> None:
        assert block.stretch is not None, "a block of hyperboloids has one"
        distance = block.scores[None] if block.distance is None else block.distance
        self.moment += torch.mv(distance.flatten(1), slopes.flatten())
        weight = torch.div(slopes[None], block.stretch, out=block.stretch)
        everything = (0, len(self.points[table.key]))
        parts = []
        for place, span, own, other, pairs in (
            (table.query, block.span, block.query, block.key, weight),
            (table.key, everything, block.key, block.query, weight.transpose(1, 2)),
        ):
            x, x_t, y, y_t = own[..., :-2], own[..., -2:-1] + 1, other[..., :-2], other[..., -2:-1] + 1
            if pairs.dtype != slopes.dtype:
                # So close to each other that the common part of both sums must cancel before float32.
                apart = torch.addcmul(pairs @ y, x, (pairs @ y_t) / x_t, value=-1).to(slopes.dtype)
                parts.append(self._add(place, span, apart))
            else:
                self._gather(self.times, place, span, pairs, y_t)
                parts.append(self._gather(self.pulled, place, span, pairs, y))
        if block.near_pairs is not None:
            factor, row, column = block.near_pairs.index
            ends = (block.near_pairs.x, block.near_pairs.y)
            weights = slopes[row, column].to(block.near_pairs.distance.dtype)
            by_ends = torch.autograd.grad(block.near_pairs.distance, ends, weights)
            for part, end, by_end in zip(parts, (row, column), by_ends, strict=True):
                part.index_put_((factor, end), -by_end.to(part.dtype), accumulate=True)

    def gradients(self) -> Iterator[Tensor]:
        # Where the moment is of scores, these are -scale * share times the distance.
        moment = self.moment / (-self.scale * self.share) if self.factors == 1 else self.moment
        by_root = self.scale * moment * self.share / self.root_c
        by_points = []
        for place, points in enumerate(self.points):
            chart = self.charts[place]
            x, x_t = chart[..., :-2], 1 + chart[..., -2:-1]
            # dh/dx = y_t x / x_t - y, and all scores are -scale * share times the distance.
            total = self.pulled.pop(place, None)
            total = torch.zeros_like(x) if total is None else total
            if place in self.times:
                total.addcmul_(x, self.times.pop(place) / x_t, value=-1)
            total *= (self.scale * self.share)[:, None, None]
            by_root += torch.linalg.vecdot(total, x).sum(1) / self.root_c
            total *= self.root_c[:, None, None]
            by_points.append(total.transpose(0, 1).reshape(points.shape))
        yield -torch.dot(self.share, moment)
        yield by_root / (2 * self.root_c)
        yield from by_points

    def _add(self, place: int, span: tuple[int, int], values: Tensor) -> Tensor:
        if place not in self.pulled:
            self.pulled[place] = values.new_zeros(self.factors, len(self.points[place]), values.shape[-1])
        part = self.pulled[place][:, slice(*span)]
        return part.add_(values)


def _chart(points: Tensor, root_c: Tensor) -> Tensor:
    """[x, u, 1] on the unit hyperboloid: [N, k*d], [k] -> [k, N, d + 2]."""
    factors, dim = len(root_c), points.shape[1] // len(root_c)
    chart = points.new_empty(factors, len(points), dim + 2)
    x = chart[..., :dim]
    torch.mul(points.unflatten(1, (factors, dim)).transpose(0, 1), root_c[:, None, None], out=x)
    xx = torch.linalg.vecdot(x, x)
    chart[..., dim], chart[..., dim + 1] = xx / (1 + (1 + xx).sqrt()), 1
    return chart


def _as_key(chart: Tensor) -> Tensor:
    """[-y, u + 1, u] of [y, u, 1]."""
    key = torch.neg(chart)
    key[..., -2], key[..., -1] = chart[..., -2] + 1, chart[..., -2]
    return key


def _close(h: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Index (factor, query, key) of the pairs whose h is lost to cancellation; None without such pairs."""
    u, v = query[..., -2, None], key[..., -2]
    most = v.amax(-1)[:, None, None]
    bound = NEAR * (u * (1 + most) + most)  # at least the bound of each pair of a row
    if not bool((h.amin(-1, keepdim=True) <= bound).any()):
        return None
    factor, row, column = (h <= bound).nonzero(as_tuple=True)
    u, v = u[factor, row, 0], v[factor, column]
    close = h[factor, row, column] <= NEAR * (u * (1 + v) + v)
    return factor[close], row[close], column[close]


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
