"""Walks to the root: their geometry, and what they meet against loops."""

import dataclasses

import numpy as np
import pytest
import torch

from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.models.hyperbolic import lorentz
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.retrieval import Pairing
from hyco.pipeline.evaluation.metrics.traversal import Pool, climbs, met, nearest, root_of, stretches, walk
from hyco.pipeline.evaluation.metrics.walks import traverse
from tests.factories.training import sample, tiny_recipe

FEW = Bootstrap(draws=100)


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("c", [0.3, 1.0, 5.0])
def test_a_walk_is_even_in_distance_and_keeps_its_direction(c):
    start = points(20, 6)
    way = walk(start, torch.tensor([c], dtype=torch.float64), torch.zeros(6), steps=11)
    assert torch.allclose(way[:, 0], start, atol=1e-10) and torch.equal(
        way[:, -1], torch.zeros(20, 6).double()
    )
    far = lorentz.distance(way, torch.zeros_like(way), c)
    share = far / far[:, :1]
    assert torch.allclose(share, torch.linspace(1, 0, 11).double().expand(20, 11), atol=1e-7)
    assert torch.allclose(
        way[:, 3] / way[:, 3].norm(dim=1, keepdim=True), start / start.norm(dim=1, keepdim=True)
    )


def test_steps_can_shrink_by_a_factor():
    start, c = points(6, 5), torch.tensor([0.7], dtype=torch.float64)
    way = walk(start, c, torch.zeros(5), steps=12, least=0.01)
    far = lorentz.distance(way, torch.zeros_like(way), 0.7)
    share = far / far[:, :1]
    assert torch.allclose(share[:, 1:11] / share[:, :10], torch.tensor(0.01**0.1).double(), atol=1e-7)
    assert torch.allclose(share[:, 10], torch.tensor(0.01).double(), atol=1e-9) and not way[:, -1].any()


def test_in_a_product_every_factor_walks_by_itself():
    start, c = points(5, 12), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    way = walk(start, c, torch.zeros(12), steps=7)
    for factor in range(3):
        part = slice(4 * factor, 4 * factor + 4)
        alone = walk(start[:, part], c[factor : factor + 1], torch.zeros(4), steps=7)
        assert torch.allclose(way[..., part], alone, atol=1e-12)


def test_unit_vectors_walk_to_their_mean():
    images, texts = (torch.nn.functional.normalize(points(9, 4, seed=s), dim=1) for s in (0, 1))
    root = root_of(None, texts, images)
    mean = (images.mean(0) + texts.mean(0)) / 2
    assert torch.allclose(root, mean / mean.norm())
    way = walk(images, None, root, steps=5)
    assert torch.allclose(way.norm(dim=-1), torch.ones(9, 5).double())
    assert torch.allclose(way[:, 0], images) and torch.allclose(way[:, -1], root.expand(9, 4))
    assert root_of(torch.ones(1), texts).abs().sum() == 0


def test_on_a_ray_each_thing_is_met_in_its_turn():
    """An image, its caption, its phrase and the origin on one ray; another ray in the other direction."""
    ray = torch.tensor([1.0, 0.5])
    pool = torch.stack([2.0 * ray, 1.1 * ray, 0.5 * ray, -0.4 * ray])
    way = walk(pool[:1], torch.ones(1), torch.zeros(2))
    index = nearest(lambda a, b: -lorentz.pairwise_distance(a, b, 1.0), way, pool, torch.zeros(2))
    assert [stretch[0] for stretch in stretches(index[0])] == [0, 1, 2, 4]
    assert sum(count for _, _, count in stretches(index[0])) == 50


def test_a_polar_model_walks_by_distance():
    """Everything on one ray, where all cosines are 1: an image, a part, a caption and a phrase, by their distances."""
    config = dataclasses.replace(tiny_recipe().model, polar=True, curvature=2.0)
    words = Tokenizer.train([text for i in range(20) for text in sample(i).captions], 560, 16)
    towers = Embedder(DualEncoder(config), words)

    def at(distance):
        ray = torch.nn.functional.normalize(torch.ones(1, config.dim), dim=-1)
        return lorentz.exp0(distance * ray, 2.0)

    one = np.zeros(1, np.int64)
    embedded = Embedded(
        scenes=(),
        images=at(2.0),
        captions=Pairing.of([("a caption",)]),
        texts=at(0.4),
        crops=at(1.0),
        scene_of_crop=one,
        phrases=Pairing.of([("a phrase",)]),
        phrase_points=at(0.1),
        phrase_caption=np.zeros((1, 2), np.int64),
        label_of_crop=(None,),
        foils=np.zeros((0, 3), np.int64),
        foil_kinds=(),
        foil_points=torch.zeros(0, config.dim),
        undecodable=0,
    )
    assert towers.score(embedded.images, embedded.phrase_points).item() == pytest.approx(1)
    found, walked = traverse(towers, embedded, None, FEW, most=5, seed=0)
    # Step k is 2 - 2 k / 49 from the origin; the borders are half way between two items, or an item and the root.
    assert stretches(walked.text[0]) == [(0, 0, 43), (1, 43, 5), (2, 48, 2)]
    assert stretches(walked.picture[0]) == [(0, 0, 13), (1, 13, 24), (2, 37, 13)]
    texts = found.numbers["texts"]
    assert (texts["distinct"], texts["root"], texts["phrases_near_root"]) == (2, 2 / 50, 5 / 23)


def test_blocks_of_steps_change_nothing(monkeypatch):
    way, pool = points(7, 9, 3), points(20, 3, seed=1)
    score = lambda a, b: -torch.cdist(a, b)  # noqa: E731
    whole = nearest(score, way, pool, torch.zeros(3))
    assert (
        whole == torch.cdist(way.flatten(0, 1), torch.cat([pool, pool[:1] * 0])).argmin(1).view(7, 9).numpy()
    ).all()
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.traversal.CHUNK", 100)
    assert (nearest(score, way, pool, torch.zeros(3)) == whole).all()


def test_what_is_met_equals_the_loop():
    random = np.random.default_rng(0)
    index = np.sort(random.integers(0, 13, size=(40, 10)), axis=1)  # 12 is the root
    general, own = random.random(12) < 0.4, random.random((40, 12)) < 0.2
    found = met(index, Pool(12, general, own), "phrases", FEW)
    lists = {"phrases_near_image": [], "phrases_near_root": [], "own_near_image": [], "own_near_root": []}
    for row, mine in zip(index, own, strict=True):
        for step, item in enumerate(row):
            end = "near_image" if step < 5 else "near_root"
            if item < 12:
                lists[f"phrases_{end}"].append(general[item])
                lists[f"own_{end}"].append(mine[item])
    for key, values in lists.items():
        assert found.numbers[key] == pytest.approx(np.mean(values))
        low, high = found.intervals[key]
        assert low <= found.numbers[key] <= high
    assert found.numbers["distinct"] == pytest.approx(
        np.mean([len(set(row) - {12}) for row in index.tolist()])
    )
    assert found.numbers["root"] == pytest.approx((index == 12).mean())
    assert found.numbers["chance"]["phrases_near_root"] == general.mean()
    assert found.numbers["chance"]["own_near_image"] == own.mean()
    assert "distinct" not in found.numbers["chance"]


def test_a_walk_that_meets_nothing_has_no_shares():
    found = met(np.full((3, 4), 5), Pool(5, np.zeros(5, bool), np.zeros((3, 5), bool)), "parts", FEW)
    assert found.numbers["root"] == 1.0 and found.numbers["distinct"] == 0.0
    assert not any(key.startswith(("parts", "own")) for key in found.numbers)


def test_climbing_the_tree_equals_the_loop():
    parent = {0: None, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2}  # 0 animal, 1 bird, 2 cat; 3, 4 birds; 5 a cat
    above = np.zeros((6, 6), bool)
    for node in parent:
        up = parent[node]
        while up is not None:
            above[node, up] = True
            up = parent[up]
    index = np.array([[3, 3, 1, 0, 6], [4, 3, 1, 2, 6], [5, 1, 0, 0, 0], [6, 6, 6, 6, 6]])
    truth = np.array([3, 4, 5, 3])
    found = climbs(index, truth, above, FEW).numbers
    assert found["on_path"] == pytest.approx((4 + 2 + 4) / (4 + 4 + 5))  # the second: 4 and 1
    # changes that are not to the root: 3>1 up, 1>0 up; 4>3, 3>1 up, 1>2; 5>1, 1>0 up
    assert found["rising"] == pytest.approx(4 / 7)
    ancestors = [2, 1, 2, 2, 1, 2, 1]
    assert found["chance"]["rising"] == pytest.approx(np.mean(ancestors) / 5)
    assert found["chance"]["on_path"] == pytest.approx((3 + 3 + 3 + 3) / 4 / 6)
    assert found["distinct"] == pytest.approx((3 + 4 + 3 + 0) / 4)
    assert found["three_levels"] == 2 / 4  # the second walk meets no animal, the last nothing
    # Ancestors: 1 and 0 of 3; 1 of 4; 0 of 5, at three steps.
    assert found["ancestor"] == pytest.approx((2 + 1 + 3) / 13)
    assert found["chance"]["ancestor"] == pytest.approx(2 / 6)
