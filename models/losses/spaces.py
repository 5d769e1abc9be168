"""Spaces of the fused contrast: blocks of scores and the gradient of a loss by the points, given its slopes.

On the unit hyperboloid (x <- sqrt(c) x, u = x_t - 1 = |x|^2 / (1 + x_t)) the distance is arcosh(1 + h) with
    h = u_x u_y + u_x + u_y - x.y = [x, u_x, 1] . [-y, u_y + 1, u_y],
one product whose terms do not cancel near the origin, and arcosh(1 + h) = log1p(h + sqrt(h (h + 2))). Where
h is small beside u_x u_y + u_x + u_y the product cancels: such near pairs are computed one by one from
`lorentz.distance`, or, where a block has very many, the block is computed in float64.

A space scores the pairs of a span of queries and all keys of a set (`block`), takes the derivatives of the loss by
these scores over their scale (`accumulate_grad`), and at the end gives the gradients by everything it was made of
(`gradients`).
Legend: Q queries, K keys, k factors of d dimensions (1 of D in a plain hyperboloid), e = d + 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz

NEAR = 1e-2  # of u_x u_y + u_x + u_y: below it a float32 product has lost two of its seven digits


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
class Block:
    """Scores [q, K] of a span of queries and the values that their gradient needs.

    query [k, q, e] and key [k, K, e] are the charts that were multiplied (unit vectors on the sphere), `distance`
    [k, q, K] the distances in the factors (None where the scores are proportional to them), `stretch` dh / d distance,
    infinite at pairs that do not go through h.
    """

    span: tuple[int, int]
    scale: Tensor
    scores: Tensor
    query: Tensor
    key: Tensor
    distance: Tensor | None = None
    stretch: Tensor | None = None
    near_pairs: _Near | None = None


class Sphere:
    """Cosines of unit vectors, and the gradient computed from the derivatives of a loss by its scores.

    Attributes:
        deferred: whether `block` takes every pair for an ordinary one, without asking the device.
        lost: then, whether one of them was not, so that all blocks have to be computed again; None without blocks.
    """

    def __init__(self, points: Sequence[Tensor], factors: int = 1, deferred: bool = False) -> None:
        self.points, self.factors = points, factors
        self.deferred = deferred
        self.lost: Tensor | None = None
        # Sums per set of the points that it was multiplied with, weighted.
        self.pulled: dict[int, Tensor] = {}

    def block(self, pair: tuple[int, int], span: tuple[int, int], scale: Tensor) -> Block:
        """Scores of the queries of a span and all keys of a pair of sets."""
        query, key = self.points[pair[0]][None, slice(*span)], self.points[pair[1]][None]
        return Block(span, scale, (query @ key.transpose(1, 2))[0].mul_(scale), query, key)

    def accumulate_grad(self, pair: tuple[int, int], block: Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives [q, K] of the loss by its scores over the scale."""
        everything = (0, len(self.points[pair[1]]))
        self.gather(self.pulled, pair[0], block.span, slopes[None], block.key)
        self.gather(self.pulled, pair[1], everything, slopes.T[None], block.query)

    def ordinary(self, some: Tensor) -> bool:
        """Whether a block may be taken as it is, given whether it has some other pair (0-dim); waits, or defers it."""
        if not self.deferred:
            return not bool(some)
        self.lost = some if self.lost is None else self.lost | some
        return True

    def gradients(self) -> Iterator[Tensor]:
        """Gradients by the curvatures and every set of points, in this order."""
        yield self.points[0].new_zeros(0)
        for place, points in enumerate(self.points):
            yield self.pulled[place][0] if place in self.pulled else torch.zeros_like(points)

    def gather(
        self, held: dict[int, Tensor], place: int, span: tuple[int, int], weight: Tensor, with_: Tensor
    ) -> Tensor:
        """Add a product to the sum of a span of a set; returns the span's part."""
        if place not in held and span == (0, len(self.points[place])):
            held[place] = weight @ with_
            return held[place]
        if place not in held:
            held[place] = weight.new_zeros(self.factors, len(self.points[place]), with_.shape[-1])
        return held[place][:, slice(*span)].baddbmm_(weight, with_)

    def _add(self, place: int, span: tuple[int, int], values: Tensor) -> Tensor:
        """Add values to the sum of a span of a set; returns the span's part."""
        if place not in self.pulled and span == (0, len(self.points[place])):
            self.pulled[place] = values
            return values
        if place not in self.pulled:
            self.pulled[place] = values.new_zeros(self.factors, len(self.points[place]), values.shape[-1])
        return self.pulled[place][:, slice(*span)].add_(values)


class Hyperboloids(Sphere):
    """Minus the mean of the distances in k hyperboloids."""

    def __init__(self, c: Tensor, points: Sequence[Tensor], deferred: bool = False) -> None:
        super().__init__(points, len(c), deferred)
        self.moment = torch.zeros_like(c)  # sum over all pairs of slope times distance
        self.root_c = c.sqrt()
        self.share = 1 / (self.factors * self.root_c)  # of a factor's distance in the mean
        self.charts = [_chart(each, self.root_c) for each in points]
        self.keys: dict[int, Tensor] = {}
        self.times: dict[int, Tensor] = {}  # as `pulled`, of time parts

    def block(self, pair: tuple[int, int], span: tuple[int, int], scale: Tensor) -> Block:
        """Scores of the queries of a span and all keys of a pair of sets."""
        query, key = self.charts[pair[0]][:, slice(*span)], self.charts[pair[1]]
        if pair[1] not in self.keys:
            self.keys[pair[1]] = _as_key(key)
        rows, keys = self.points[pair[0]][slice(*span)], self.points[pair[1]]
        h = query @ self.keys[pair[1]].transpose(1, 2)
        some, bound = _some_close(h, query, key)
        index, near_pairs = None if self.ordinary(some) else _close(h, bound, query, key), None
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
        share, distance = -scale * self.share, distance.to(scale.dtype)
        if self.factors == 1:
            return Block(span, scale, distance[0].mul_(share), query, key, None, stretch, near_pairs)
        return Block(
            span, scale, torch.tensordot(share, distance, 1), query, key, distance, stretch, near_pairs
        )

    def accumulate_grad(self, pair: tuple[int, int], block: Block, slopes: Tensor) -> None:
        """Add the gradient of a block, given the derivatives [q, K] of the loss by its scores over the scale."""
        assert block.stretch is not None, "a block of hyperboloids has one"
        if block.distance is None:
            self.moment += torch.dot(block.scores.flatten(), slopes.flatten()) / (-block.scale * self.share)
        else:
            self.moment += torch.mv(block.distance.flatten(1), slopes.flatten())
        weight = torch.div(slopes[None], block.stretch, out=block.stretch)
        everything = (0, len(self.points[pair[1]]))
        parts = []
        for place, span, own, other, pairs in (
            (pair[0], block.span, block.query, block.key, weight),
            (pair[1], everything, block.key, block.query, weight.transpose(1, 2)),
        ):
            x, x_t, y, y_t = own[..., :-2], own[..., -2:-1] + 1, other[..., :-2], other[..., -2:-1] + 1
            if pairs.dtype != slopes.dtype:
                # So close to each other that the common part of both sums must cancel before float32.
                apart = torch.addcmul(pairs @ y, x, (pairs @ y_t) / x_t, value=-1).to(slopes.dtype)
                parts.append(self._add(place, span, apart))
            else:
                self.gather(self.times, place, span, pairs, y_t)
                parts.append(self.gather(self.pulled, place, span, pairs, y))
        if block.near_pairs is not None:
            factor, row, column = block.near_pairs.index
            ends = (block.near_pairs.x, block.near_pairs.y)
            weights = slopes[row, column].to(block.near_pairs.distance.dtype)
            by_ends = torch.autograd.grad(block.near_pairs.distance, ends, weights)
            for part, end, by_end in zip(parts, (row, column), by_ends, strict=True):
                part.index_put_((factor, end), -by_end.to(part.dtype), accumulate=True)

    def gradients(self) -> Iterator[Tensor]:
        """Gradients by the curvatures and every set of points, in this order."""
        by_root = self.moment * self.share / self.root_c
        by_points = []
        for place, points in enumerate(self.points):
            chart = self.charts[place]
            x, x_t = chart[..., :-2], 1 + chart[..., -2:-1]
            # dh/dx = y_t x / x_t - y, and the slopes are by the scores over the scale, -share times the distance.
            total = self.pulled.pop(place, None)
            total = torch.zeros_like(x) if total is None else total
            if place in self.times:
                total.addcmul_(x, self.times.pop(place) / x_t, value=-1)
            total *= self.share[:, None, None]
            by_root += torch.linalg.vecdot(total, x).sum(1) / self.root_c
            total *= self.root_c[:, None, None]
            by_points.append(total.transpose(0, 1).reshape(points.shape))
        yield by_root / (2 * self.root_c)
        yield from by_points


def _chart(points: Tensor, root_c: Tensor) -> Tensor:
    """[x, u, 1] on the unit hyperboloid: [N, k*d], [k] -> [k, N, d + 2]."""
    factors, dim = len(root_c), points.shape[1] // len(root_c)
    chart = points.new_empty(factors, len(points), dim + 2)
    x = chart[..., :dim]
    torch.mul(points.unflatten(1, (factors, dim)).transpose(0, 1), root_c[:, None, None], out=x)
    xx = torch.linalg.vecdot(x, x)
    chart[..., dim] = xx / (1 + (1 + xx).sqrt())
    chart[..., dim + 1].fill_(1)
    return chart


def _as_key(chart: Tensor) -> Tensor:
    """[-y, u + 1, u] of [y, u, 1]."""
    key = torch.neg(chart)
    key[..., -2], key[..., -1] = chart[..., -2] + 1, chart[..., -2]
    return key


def _some_close(h: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Whether there may be pairs whose h is lost to cancellation (0-dim), and a bound of theirs for each row."""
    u, v = query[..., -2, None], key[..., -2]
    most = v.amax(-1)[:, None, None]
    bound = NEAR * (u * (1 + most) + most)  # at least the bound of each pair of a row
    return (h.amin(-1, keepdim=True) <= bound).any(), bound


def _close(h: Tensor, bound: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index (factor, query, key) of the pairs whose h is lost to cancellation."""
    u, v = query[..., -2, None], key[..., -2]
    factor, row, column = (h <= bound).nonzero(as_tuple=True)
    u, v = u[factor, row, 0], v[factor, column]
    close = h[factor, row, column] <= NEAR * (u * (1 + v) + v)
    return factor[close], row[close], column[close]
