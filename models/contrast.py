"""The contrast of all rows at the cost of CLIP's: block by block one matrix product and one pointwise pass.

Every matrix of scores serves the cross-entropies of its rows and, where the queries are found among the keys
too, of its columns. The gradient is made on the way forward, while a block is in the cache; what is kept for
backward is a gradient the size of the points. A matrix that fits into one block is computed once; a larger one
is streamed: computed again for the gradient if it has columns, with memory for one block at a time.

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
class Table:
    """Cross-entropies on one matrix of scores between two sets of points, given by their places.

    Row i picks key `target[i]` [Q], each with the weight `weight` (0-dim); if `back` [K] is given, key j also
    picks query `back[j]` among the rows, with the weight `back_weight`.
    """

    query: int
    key: int
    target: Tensor
    weight: Tensor
    back: Tensor | None = None
    back_weight: Tensor | None = None


def contrast(
    points: Sequence[Tensor],
    tables: Sequence[Table],
    scale: Tensor,
    curvature: Tensor | None,
    pairs_at_once: int = 1 << 20,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of all cross-entropies (0-dim, differentiable once), and their plain sums over the rows.

    Args:
        points: sets of points [N, D], float32 or float64, all of one type.
        tables: which of them are compared.
        scale: inverse temperature, 0-dim.
        curvature: c > 0 of the hyperboloid, or [k] of a product's factors; None for cosines of unit vectors.
        pairs_at_once: most entries of k x Q x K held at once.

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
    def forward(ctx: Any, wants: bool, tables: tuple[Table, ...], pairs_at_once: int, scale, c, *points):
        space = _Hyperboloids(c, scale, points) if len(c) else _Sphere(scale, points)
        sums = scale.new_zeros(len(tables), 2)
        total = scale.new_zeros(())
        with _full_precision():
            for number, table in enumerate(tables):
                _run(space, table, sums[number], pairs_at_once, wants)
                total = total + sums[number, 0] * table.weight
                if table.back_weight is not None:
                    total = total + sums[number, 1] * table.back_weight
            if wants:
                ctx.save_for_backward(*space.gradients())
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, *(grad * saved for saved in ctx.saved_tensors)


def _run(space: "_Sphere", table: Table, sums: Tensor, pairs_at_once: int, wants: bool) -> None:
    """Add the cross-entropies of one table to `sums` and its gradient to the space's."""
    count, keys = (len(space.points[place]) for place in (table.query, table.key))
    rows = max(1, pairs_at_once // max(1, keys * space.factors))
    spans = [(low, min(low + rows, count)) for low in range(0, count, rows)]
    if table.back is None or table.back_weight is None:
        for span in spans:
            block, target = space.block(table, span), table.target[slice(*span), None]
            logs = torch.log_softmax(block.scores, 1)
            sums[0] -= logs.gather(1, target).sum()
            if wants:
                slopes = logs.exp_().scatter_add_(1, target, logs.new_full(target.shape, -1.0))
                space.pull(table, block, slopes.mul_(table.weight))
        return
    row_lse, column_lse = [], space.scale.new_full((1, keys), -torch.inf)
    kept: tuple[_Block, Tensor, Tensor] | None = None
    for span in spans:
        block = space.block(table, span)
        logs, column_logs = (torch.log_softmax(block.scores, dim) for dim in (1, 0))
        sums[0] -= logs.gather(1, table.target[slice(*span), None]).sum()
        sums[1] -= block.scores[_inside(table.back, span)].sum()
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
        slopes = logs.exp_().mul_(table.weight).add_(column_logs.exp_().mul_(table.back_weight))
        slopes.scatter_add_(1, table.target[slice(*span), None], -table.weight.expand_as(lse))
        inside = _inside(table.back, span)
        slopes.index_put_(inside, -table.back_weight.expand(len(inside[0])), accumulate=True)
        space.pull(table, block, slopes)


def _inside(back: Tensor, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Place in the span of the queries that keys pick there, and those keys."""
    keys = ((back >= span[0]) & (back < span[1])).nonzero()[:, 0]
    return back[keys] - span[0], keys


@dataclass
class _Near:
    """Pairs too close for the matrix product: (factor, query, key), their points [P, d] and distances."""

    index: tuple[Tensor, Tensor, Tensor]
    x: Tensor
    y: Tensor
    distance: Tensor  # with a graph down to x and y

    @classmethod
    def of(cls, index: tuple[Tensor, Tensor, Tensor], rows: Tensor, keys: Tensor, root_c: Tensor) -> "_Near":
        """In float64, so that not even sqrt(c) x is rounded."""
        (factor, row, column), size = index, (len(root_c), -1)
        wide = root_c.double()[factor, None]
        x = rows.unflatten(1, size)[row, factor].double() * wide
        y = keys.unflatten(1, size)[column, factor].double() * wide
        with torch.enable_grad():
            x, y = x.requires_grad_(), y.requires_grad_()
            return cls(index, x, y, lorentz.distance(x, y, 1.0))


@dataclass
class _Block:
    """Scores [q, K] of a span of queries and what their gradient needs.

    query [k, q, e] and key [k, K, e] are the charts whose product was taken, `far` [k, q, K] the distances in
    the factors (None where the scores stand for them), `stretch` dh / d far, infinite at pairs that do not go
    through h.
    """

    span: tuple[int, int]
    scores: Tensor
    query: Tensor
    key: Tensor
    far: Tensor | None = None
    stretch: Tensor | None = None
    near: _Near | None = None


class _Sphere:
    """Cosines of unit vectors, and the gradient of a loss that its slopes in the scores make."""

    def __init__(self, scale: Tensor, points: Sequence[Tensor], factors: int = 1) -> None:
        self.scale, self.points, self.factors = scale, points, factors
        self.moment = scale.new_zeros(factors)  # sum over all pairs of slope times distance, or times score
        # The gradient of a set's chart, gathered while it was queries and while it was keys.
        self.as_query: dict[int, Tensor] = {}
        self.as_key: dict[int, Tensor] = {}

    def block(self, table: Table, span: tuple[int, int]) -> _Block:
        query, key = self.points[table.query][None, slice(*span)], self.points[table.key][None]
        cosine = query @ key.transpose(1, 2)
        return _Block(span, cosine[0].mul_(self.scale), query, key)

    def pull(self, table: Table, block: _Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives [q, K] of the loss by its scores."""
        far = block.scores[None] if block.far is None else block.far
        self.moment += torch.mv(far.flatten(1), slopes.to(far.dtype).flatten()).to(slopes.dtype)
        weight = slopes[None]
        if block.stretch is not None:
            weight = torch.div(weight, block.stretch, out=block.stretch)
        query, key = block.query, block.key
        columns_of = weight.transpose(1, 2)
        if weight.dtype == self.scale.dtype:
            rows = self._gather(self.as_query, table.query, block.span, weight, key)
            columns = self._gather(self.as_key, table.key, (0, len(self.points[table.key])), columns_of, query)
        else:
            # So near to each other that what these products have in common must go before float32.
            rows = self._buffer(self.as_query, table.query, query)[:, slice(*block.span)]
            columns = self._buffer(self.as_key, table.key, key)
            rows[..., :-2] += _by_place(weight @ key, query)
            columns[..., :-2] -= _by_place(_turned(columns_of @ query), _from_key(key))
        if block.near is not None:
            factor, row, column = block.near.index
            ends = (block.near.x, block.near.y)
            weights = slopes[row, column].to(block.near.distance.dtype)
            by_x, by_y = torch.autograd.grad(block.near.distance, ends, weights)
            rows[..., :-2].index_put_((factor, row), by_x.to(rows.dtype), accumulate=True)
            columns[..., :-2].index_put_((factor, column), -by_y.to(rows.dtype), accumulate=True)

    def gradients(self) -> Iterator[Tensor]:
        """By the scale, the curvatures and every set of points."""
        yield self.moment[0] / self.scale
        yield self.scale.new_zeros(0)
        for place, points in enumerate(self.points):
            held = [grads[place][0] for grads in (self.as_query, self.as_key) if place in grads]
            yield (sum(held[1:], start=held[0]) if held else torch.zeros_like(points)) * self.scale

    def _gather(
        self, held: dict[int, Tensor], place: int, span: tuple[int, int], left: Tensor, right: Tensor
    ) -> Tensor:
        """Add a product to the gradient of a span of a set; returns the span's gradient."""
        if place not in held and span == (0, len(self.points[place])):
            held[place] = left @ right
            return held[place]
        return self._buffer(held, place, right)[:, slice(*span)].baddbmm_(left, right)

    def _buffer(self, held: dict[int, Tensor], place: int, like: Tensor) -> Tensor:
        if place not in held:
            shape = (self.factors, len(self.points[place]), like.shape[-1])
            held[place] = self.points[place].new_zeros(shape)
        return held[place]


class _Hyperboloids(_Sphere):
    """Minus the mean of the distances in k hyperboloids."""

    def __init__(self, c: Tensor, scale: Tensor, points: Sequence[Tensor]) -> None:
        super().__init__(scale, points, len(c))
        self.root_c = c.sqrt()
        self.share = 1 / (self.factors * self.root_c)  # of a factor's distance in the mean
        self.charts: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}

    def block(self, table: Table, span: tuple[int, int]) -> _Block:
        if table.key not in self.keys:
            self.keys[table.key] = _as_key(self._chart(table.key))
        query, key = self._chart(table.query)[:, slice(*span)], self.keys[table.key]
        rows, keys = self.points[table.query][slice(*span)], self.points[table.key]
        h = query @ key.transpose(1, 2)
        index, near = _close(h, query, key), None
        many = index is not None and len(index[0]) > max(h.shape[1:])
        if many:
            wide = self.root_c.double()
            query, key = _chart(rows.double(), wide), _as_key(_chart(keys.double(), wide))
            h, index = (query @ key.transpose(1, 2)).clamp_(min=0), None
        stretch = (h + 2).mul_(h).sqrt_()
        far = h.add_(stretch).log1p_()
        if index is not None:
            near = _Near.of(index, rows, keys, self.root_c)
            far[index], stretch[index] = near.distance.detach().to(far.dtype), torch.inf
        elif many:
            stretch.masked_fill_(stretch == 0, torch.inf)
        share, far = -self.scale * self.share, far.to(self.scale.dtype)
        if self.factors == 1:
            return _Block(span, far[0].mul_(share), query, key, None, stretch, near)
        return _Block(span, torch.tensordot(share, far, 1), query, key, far, stretch, near)

    def gradients(self) -> Iterator[Tensor]:
        # Where the moment is of scores, these are -scale * share times the distance.
        moment = self.moment / (-self.scale * self.share) if self.factors == 1 else self.moment
        by_root = self.scale * moment * self.share / self.root_c
        by_points = []
        for place, points in enumerate(self.points):
            chart, total = self._chart(place), self.as_query.pop(place, None)
            if total is None:
                total = torch.zeros_like(chart)
            if place in self.as_key:
                turned = self.as_key.pop(place)
                total[..., :-2] -= turned[..., :-2]
                total[..., -2] += turned[..., -2:].sum(-1)
            # All scores are -scale * share times the distance.
            total = _by_place(total, chart).mul_((-self.scale * self.share)[:, None, None])
            by_root += torch.linalg.vecdot(total, chart[..., :-2]).sum(1) / self.root_c
            total *= self.root_c[:, None, None]
            by_points.append(total.transpose(0, 1).reshape(points.shape))
        yield -torch.dot(self.share, moment)
        yield by_root / (2 * self.root_c)
        yield from by_points

    def _chart(self, place: int) -> Tensor:
        if place not in self.charts:
            self.charts[place] = _chart(self.points[place], self.root_c)
        return self.charts[place]


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


def _from_key(key: Tensor) -> Tensor:
    """[y, u, 1] of its key form."""
    return torch.cat([-key[..., :-2], key[..., -1:], torch.ones_like(key[..., -1:])], -1)


def _turned(by_key: Tensor) -> Tensor:
    """The gradient of [y, u, 1] from that of its key form; the last column stays 0."""
    by_u = by_key[..., -2:].sum(-1, keepdim=True)
    return torch.cat([-by_key[..., :-2], by_u, torch.zeros_like(by_u)], -1)


def _by_place(by_chart: Tensor, chart: Tensor) -> Tensor:
    """The gradient of x from that of its chart: u = x_t - 1, so du/dx = x / x_t. [k, N, e] -> [k, N, d]."""
    x, x_t = chart[..., :-2], 1 + chart[..., -2]
    return torch.addcmul(by_chart[..., :-2], x, (by_chart[..., -2] / x_t)[..., None])


def _close(h: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Index (factor, query, key) of the pairs whose h is lost to cancellation; None without any."""
    u, v = query[..., -2, None], key[..., -1]
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
    """No TF32 and no bfloat16 inside float32 products, whatever the caller has allowed for the towers."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
