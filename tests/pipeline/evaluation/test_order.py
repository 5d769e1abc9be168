"""Ranks on the hyperboloid: those of float64 distances, among clustered, distant, equal and mirrored points."""

import numpy as np
import pytest
import torch

from hyco.models.hyperbolic import lorentz
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.metrics import order
from hyco.pipeline.evaluation.metrics.order import LorentzOrder, order_of
from hyco.pipeline.evaluation.metrics.retrieval import first_hit

DIM = 24


def spread(count: int, size: float, around: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Points of radius about `size` around one at radius `around`, c = 1, in float32."""
    g = torch.Generator().manual_seed(seed)
    tangents = size * torch.randn(count, DIM, generator=g, dtype=torch.float64) / DIM**0.5
    centre = around * torch.nn.functional.normalize(torch.ones(DIM, dtype=torch.float64), dim=0)
    return lorentz.add(lorentz.exp0(centre, 1.0), lorentz.exp0(tangents, 1.0), 1.0).float()


def mirrored() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries with two halves alike, and items in pairs whose halves are exchanged: equally far from each query."""
    half, other = spread(15, 1.0)[:, : DIM // 2], spread(15, 1.0, seed=1)[:, : DIM // 2]
    queries = torch.cat([spread(30, 1.0, seed=2)[:, : DIM // 2]] * 2, 1)
    return queries, torch.cat([torch.cat([half, other], 1), torch.cat([other, half], 1)])


CASES = {
    "near the origin": (spread(40, 1.0), spread(60, 1.0, seed=1)),
    "one tight cluster": (spread(40, 1e-4, 3.0), spread(60, 1e-4, 3.0, 1)),
    "a cluster seen from afar": (spread(40, 1.0), spread(60, 1e-5, 4.0, 1)),
    "two clusters": (
        spread(40, 1.0),
        torch.cat([spread(30, 1e-4, 3.0, 1), spread(30, 1e-4, -3.0, 2)]),
    ),
    "to the limit": (spread(40, 9.0), spread(60, 9.0, seed=1)),
    "few distinct": (spread(40, 1.0), spread(6, 1.0, seed=1).repeat(10, 1)),
    "all equal": (spread(40, 1.0), spread(1, 1.0, seed=1).repeat(60, 1)),
    "the origin": (torch.zeros(40, DIM), torch.cat([torch.zeros(30, DIM), -torch.zeros(30, DIM)])),
    "mirrored": mirrored(),
    "itself": (spread(60, 1.0), spread(60, 1.0)),
}


def expected(
    queries: torch.Tensor,
    items: torch.Tensor,
    pairs: np.ndarray,
    copies: np.ndarray,
    c: float,
    in_order: bool,
) -> list[int]:
    """Ranks by squared chords in float64, pair by pair."""
    far = order.chord(queries.double()[:, None] * c**0.5, items.double()[None] * c**0.5, 1.0)[..., 0].numpy()
    ranks = []
    for q, row in enumerate(far):
        right = [int(g) for a, g in pairs if a == q]
        best = row[right].min()
        first = min(g for g in right if row[g] == best)
        wrong = [g for g in range(len(row)) if g not in right]
        ranks.append(
            sum(
                int(copies[g])
                for g in wrong
                if row[g] < best or (row[g] == best and (not in_order or g < first))
            )
        )
    return ranks


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("many", [0.0, 1.0], ids=["all again", "one by one"])
@pytest.mark.parametrize("c, in_order", [(1.0, False), (0.3, True)])
def test_ranks_are_those_of_float64(monkeypatch, case, many, c, in_order):
    monkeypatch.setattr(order, "MANY", many)
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.retrieval.CHUNK", 17 * 60)
    monkeypatch.setattr(order, "ROWS", 13)
    queries, items = (points / c**0.5 for points in CASES[case])
    random = np.random.default_rng(0)
    first = np.stack([np.arange(len(queries)), random.integers(len(items), size=len(queries))], 1)
    more = np.stack([random.integers(len(queries), size=20), random.integers(len(items), size=20)], 1)
    pairs = random.permutation(np.unique(np.concatenate([first, more]), axis=0))
    copies = np.ones(len(items), np.int64) if in_order else random.integers(1, 5, size=len(items))
    found = first_hit(LorentzOrder(c), queries, items, pairs, copies, in_order=in_order)
    assert found.rank.tolist() == expected(queries, items, pairs, copies, c, in_order)


def test_a_float32_product_alone_would_get_clusters_wrong():
    """The tests above are worth something: without the finer scores ranks differ."""
    queries, items = CASES["one tight cluster"]
    pairs = np.stack([np.arange(40)] * 2, 1)
    product = first_hit(lambda a, b: lorentz.pairwise_inner(a, b, 1.0), queries, items, pairs)
    exact = first_hit(LorentzOrder(1.0), queries, items, pairs)
    assert (product.rank != exact.rank).any()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_ranks_hold_where_products_are_rounded_more(precision):
    """As on a GPU whose float32 products keep fewer bits: the bound follows torch's setting."""
    queries, items = CASES["near the origin"]
    pairs = np.stack([np.arange(40)] * 2, 1)
    exact = first_hit(LorentzOrder(1.0), queries, items, pairs).rank
    torch.set_float32_matmul_precision(precision)
    try:
        gallery = LorentzOrder(1.0).over(items)
        rough = gallery.scored(queries)
        assert (rough.width > 1e-4).all()
        assert first_hit(LorentzOrder(1.0), queries, items, pairs).rank.tolist() == exact.tolist()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_width_covers_the_rounding_of_every_score():
    for queries, items in CASES.values():
        gallery = LorentzOrder(1.0).over(items)
        scored, exact = gallery.scored(queries), gallery.scored(queries.double())
        assert exact.wide and ((scored.scores - exact.wide().scores).abs() <= scored.width[:, None]).all()


class Placed(Embedder):
    """An embedder with nothing but a space."""

    curvatures, polar = None, False

    def __init__(self, curvatures, polar):
        self.curvatures, self.polar = curvatures, polar


@pytest.mark.parametrize(
    "curvatures, polar, of_space",
    [([0.7], False, True), ([0.7], True, False), ([1.0, 2.0], False, False), (None, False, False)],
)
def test_models_rank_by_distance_on_one_hyperboloid_and_by_score_elsewhere(curvatures, polar, of_space):
    embedder = Placed(None if curvatures is None else torch.tensor(curvatures), polar)
    found = order_of(embedder)
    assert found == (LorentzOrder(embedder.curvatures.item()) if of_space else embedder.score)
