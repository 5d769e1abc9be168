"""Exact ranks on the hyperboloid at the cost of one float32 matrix product.

Seen from a query x, items y lie in the order of the Lorentz product, x.y - x_t y_t. Both are boosted so that the
centre of the gallery is the origin, where x.y - x_t (y_t - 1) is small and loses few digits; it is one product of
[x, -x_t] and [y, y_t - 1]. Its rounding error has a bound (Higham 2002, section 3.5). Only items that the bound cannot
tell from the best right one are computed again in float64, and what float64 cannot tell either by the squared chord
(models.hyperbolic.chord), which does not cancel. So the ranks are those of float64 distances.
Legend: Q queries, G gallery, P pairs, D dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.models.hyperbolic.chord import beyond_one, chord
from hyco.pipeline.embedder import Embedder

Score = Callable[[Tensor, Tensor], Tensor]
"""Scores [Q, G] of points [Q, D] and [G, D]; larger is nearer."""

Finer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores [P] of pairs (queries [P], items [P]), and the width [Q] as in `Scored`."""

ROWS = 4096  # widened at once
MANY = 1 / 64  # of the pairs of a block: more undecided ones are scored again all together
ROUNDING = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}  # of torch's float32 products


@dataclass(frozen=True)
class Scored:
    """Scores of a block of queries, and how to tell apart what they do not.

    Attributes:
        scores: of all pairs.
        width: two scores of a query that differ by more are in the right order; 0 where scores are taken as exact.
        wide: the same in float64, for a block where many pairs are undecided.
        finer: finer and finer scores of single pairs.
    """

    scores: Float[Tensor, "Q G"]
    width: Float[Tensor, " Q"]
    wide: Callable[[], "Scored"] | None = None
    finer: Sequence[Finer] = ()


def order_of(embedder: Embedder) -> "Score | LorentzOrder":
    """How a model's points compare: by distance on its hyperboloid, otherwise (also if it is polar) by its score."""
    c = embedder.curvatures
    if c is None or len(c) > 1 or embedder.polar:
        return embedder.score
    return LorentzOrder(float(c))


class Plain:
    """A gallery with a score that is taken as exact."""

    def __init__(self, score: Score, gallery: Float[Tensor, "G D"]) -> None:
        self.score, self.gallery = score, gallery

    def scored(self, queries: Float[Tensor, "Q D"]) -> Scored:
        """Scores of a block of queries."""
        scores = self.score(queries, self.gallery)
        return Scored(scores, scores.new_zeros(len(queries)))


@dataclass(frozen=True)
class LorentzOrder:
    """The order of distances on the hyperboloid of curvature -c."""

    c: float

    def over(self, gallery: Float[Tensor, "G D"]) -> "LorentzGallery":
        """The order of these items."""
        return LorentzGallery(gallery, self.c)


class LorentzGallery:
    """Points of the hyperboloid of curvature -c, ranked by their distance from queries."""

    def __init__(self, points: Float[Tensor, "G D"], c: float) -> None:
        self.points, self.root_c = points, c**0.5
        dim = points.shape[1]
        time, space = 0.0, points.new_zeros(dim, dtype=torch.float64)
        for rows in points.split(ROWS):
            y = rows.double() * self.root_c
            time, space = time + float((1 + y.square().sum(-1)).sqrt().sum()), space + y.sum(0)
        # The sum of N points of the unit hyperboloid has a Lorentz norm of at least N.
        norm = max(time**2 - float(space.square().sum()), float(len(points) ** 2)) ** 0.5
        self.centre = space / max(norm, 1.0)
        self.centre_time = float((1 + self.centre.square().sum()).sqrt())
        self.chart = points.new_empty(len(points), dim + 1, dtype=torch.float32)
        self.beyond = points.new_empty(len(points), dtype=torch.float64)
        lengths, times = [torch.zeros(1)], [torch.zeros(1)]
        for rows, chart, beyond in zip(
            *(each.split(ROWS) for each in (points, self.chart, self.beyond)), strict=True
        ):
            y, far, slip = self._boost(rows)
            chart[:, :dim], chart[:, dim], beyond[:] = y, far[:, 0], far[:, 0]
            lengths.append(y.norm(dim=-1).max()[None].cpu())
            times.append(slip.max()[None].cpu())
        # The longest boosted item, its time part less 1, and the largest rounding error of boosting one.
        self.length, self.slip = float(torch.cat(lengths).max()), float(torch.cat(times).max())
        self.far = float(beyond_one(torch.tensor(self.length**2, dtype=torch.float64)))

    def _boost(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points as seen from the centre in float64, their time parts less 1, and a bound of their rounding errors."""
        y = points.double() * self.root_c
        y_t = (1 + y.square().sum(-1, keepdim=True)).sqrt()
        y = y.addcmul_(self.centre, (y @ self.centre)[:, None] / (1 + self.centre_time) - y_t)
        slip = (points.shape[1] + 16) * 2.0**-52 * self.centre_time * y_t
        return y, beyond_one(y.square().sum(-1, keepdim=True)), slip[:, 0]

    @cached_property
    def _wide(self) -> Float[Tensor, "G D"]:
        return torch.cat([self._boost(rows)[0] for rows in self.points.split(ROWS)])

    @cached_property
    def _same(self) -> Int[Tensor, " G"]:
        """Equal numbers for equal points."""
        rows = np.ascontiguousarray((self.points + 0.0).cpu().numpy())  # -0 and 0 are one number
        _, same = np.unique(rows.view(f"V{rows[0].nbytes}")[:, 0], return_inverse=True)
        return torch.from_numpy(same).to(self.points.device)

    def scored(self, queries: Float[Tensor, "Q D"]) -> Scored:
        """Scores of a block of queries, to the order of float64 distances."""
        x, beyond, slip = self._boost(queries)
        x_t = 1 + beyond
        size = x.norm(dim=-1) * self.length + x_t[:, 0] * self.far
        terms = queries.shape[1] + 8
        boosts = 4 * (x_t[:, 0] * self.slip + self.length * slip)
        narrow = 2 * terms * 2.0**-53 * size + boosts

        def wide() -> Scored:
            scores = (x @ self._wide.T).addcmul_(x_t, self.beyond, value=-1)
            return Scored(scores, narrow, finer=[exact])

        def double(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            parts = []
            for row, column in zip(rows.split(ROWS), columns.split(ROWS), strict=True):
                y, far, _ = self._boost(self.points[column])
                parts.append((x[row] * y).sum(-1).addcmul_(x_t[row, 0], far[:, 0], value=-1))
            return torch.cat(parts), narrow

        def exact(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            # Each different pair once: equal points tie exactly, and a collapsed model has nothing but equal points.
            number = rows * len(self.points) + self._same[columns]
            known, place = number.unique(return_inverse=True)
            one = torch.empty_like(known).scatter_(0, place, torch.arange(len(place), device=place.device))
            values = []
            for pairs in one.split(ROWS):
                a, b = queries[rows[pairs]].double(), self.points[columns[pairs]].double()
                values.append(-chord(a * self.root_c, b * self.root_c, 1.0)[:, 0])
            return torch.cat(values)[place], narrow.new_zeros(len(queries))

        product = torch.cat([x, -x_t], -1).float() @ self.chart.T
        rounding = ROUNDING[torch.get_float32_matmul_precision()]
        width = 2 * terms * rounding * size + boosts
        return Scored(product, width.float(), wide, [double, exact])


def wrong_before(
    gallery: Plain | LorentzGallery,
    queries: Float[Tensor, "Q D"],
    own: Int[Tensor, "P 2"],
    copies: Int[Tensor, " G"],
    *,
    in_order: bool = False,
) -> Int[Tensor, " Q"]:
    """Number of wrong items before the best right one of each query, copies counted.

    Args:
        gallery: the items.
        queries: a block of queries, each with a right item.
        own: the right (query, item) pairs, ascending.
        copies: how often each item counts.
        in_order: whether wrong items that tie with the best right one count only where they precede it in the gallery;
            otherwise they all do.
    """
    scored = gallery.scored(queries)
    before, rows, columns = _dense(scored, own, copies)
    if scored.wide and len(rows) > MANY * scored.scores.numel():
        scored = scored.wide()
        before, rows, columns = _dense(scored, own, copies)
    known = own[:, 0] * len(copies) + own[:, 1]
    number = rows * len(copies) + columns
    right = known[torch.searchsorted(known, number).clamp(max=len(known) - 1)] == number
    for finer in scored.finer:
        # A query whose undecided items are all right ones is decided.
        undecided = torch.zeros(len(queries), dtype=torch.bool, device=rows.device)
        undecided[rows[~right]] = True
        rows, columns, right = (each[undecided[rows]] for each in (rows, columns, right))
        if not len(rows):
            break
        values, width = finer(rows, columns)
        gap = values - _best(values[right], rows[right], len(queries))[rows]
        wrong = ~right & (gap > width[rows])
        before.index_add_(0, rows[wrong], copies[columns[wrong]])
        rows, columns, right = (each[gap.abs() <= width[rows]] for each in (rows, columns, right))
    tied = ~right
    if in_order:
        first = torch.full((len(queries),), len(copies), device=rows.device)
        first = first.scatter_reduce_(0, rows[right], columns[right], "amin")
        tied &= columns < first[rows]
    return before.index_add_(0, rows[tied], copies[columns[tied]])


def _best(values: Tensor, rows: Tensor, queries: int) -> Tensor:
    """Largest value of each query."""
    return values.new_full((queries,), -torch.inf).scatter_reduce_(0, rows, values, "amax")


def _dense(scored: Scored, own: Tensor, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of items certainly before the best right one of each query, and the pairs that are undecided."""
    scores, width = scored.scores, scored.width
    best = _best(scores[own[:, 0], own[:, 1]], own[:, 0], len(scores))
    above = scores > (best + width)[:, None]
    rows, columns = (scores >= (best - width)[:, None]).logical_xor_(above).nonzero(as_tuple=True)
    exact = torch.float32 if int(copies.sum()) < 2**24 else torch.float64
    return (above.to(exact) @ copies.to(exact)).round().long(), rows, columns
