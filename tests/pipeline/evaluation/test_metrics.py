"""Every metric against its plain reference, every chance level against a simulation of chance."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.hierarchy import (
    NAMES,
    family_confusion,
    tree_metrics,
    where_errors_meet,
)
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, both_ways, chance_recall, first_hit
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy, fill
from hyco.pipeline.evaluation.metrics.zero_shot import accuracy, class_vectors, mean_per_class
from tests.oracle import evaluation_metrics as plain

FEW = Bootstrap(draws=200)
PARENT = {
    "thing": None,
    "animal": "thing",
    "bird": "animal",
    "duck": "bird",
    "hen": "bird",
    "cat": "animal",
    "tool": "thing",
    "hand_tool": "tool",
    "saw": "hand_tool",
    "axe": "hand_tool",
    "apple": "thing",
}


def tree(prompts=("a {}", "one {} here")):
    return Taxonomy.build([(name, above, ()) for name, above in PARENT.items()], prompts=prompts)


def dot(a, b):
    return a @ b.T


def test_hierarchy_equals_the_walk_over_the_tree():
    taxonomy = tree()
    leaves = taxonomy.leaf_ids()
    random = np.random.default_rng(0)
    predicted, true = random.integers(len(leaves), size=(2, 300))
    outcome = tree_metrics(predicted, true, taxonomy, FEW)
    pairs = [plain.hierarchy_pair(leaves[p], leaves[t], PARENT) for p, t in zip(predicted, true, strict=True)]
    for name in NAMES:
        assert outcome.numbers[name] == pytest.approx(np.mean([pair[name] for pair in pairs]))
        low, high = outcome.intervals[name]
        assert low < outcome.numbers[name] < high
    expected = [plain.hierarchy_pair(p, leaves[t], PARENT) for t in true for p in leaves]
    for name in NAMES:
        assert outcome.numbers["chance"][name] == pytest.approx(np.mean([pair[name] for pair in expected]))


def test_right_answers_have_no_tree_distance():
    true = np.arange(len(tree().leaf_ids()))
    numbers = tree_metrics(true, true, tree(), FEW).numbers
    assert [numbers[name] for name in NAMES] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_errors_meet_where_the_tree_says():
    taxonomy = tree()
    index = taxonomy.class_index
    true = np.array([index("duck")] * 4)
    predicted = np.array([index(name) for name in ("duck", "hen", "cat", "saw")])
    meet = where_errors_meet(predicted, true, taxonomy)
    assert meet["model"] == [0.25, 0.25, 0.25, 0.25]  # right, at the root, at animal, at bird
    assert meet["chance"] == pytest.approx([1 / 6, 3 / 6, 1 / 6, 1 / 6])
    names, counts = family_confusion(predicted, true, taxonomy)
    assert names == ("animal", "tool", "apple")
    assert counts.tolist() == [[3, 1, 0], [0, 0, 0], [0, 0, 0]]


def captions_with_copies(images=40, seed=0):
    random = np.random.default_rng(seed)
    words = [f"a {color} {thing}" for color in ("red", "blue", "green") for thing in ("cat", "hen", "saw")]
    return [
        [
            str(c).upper() if random.random() < 0.3 else str(c)
            for c in random.choice(words, random.integers(1, 4))
        ]
        for _ in range(images)
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_retrieval_equals_the_expanded_list(ties):
    captions = captions_with_copies()
    pairing = Pairing.of(captions)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(captions), 4, generator=generator)
    texts = torch.randn(len(pairing.texts), 4, generator=generator)
    if ties:
        images, texts = images.round(), texts.round()
    outcome = both_ways(dot, images, texts, pairing, FEW)
    scores = (images @ texts.T).numpy()[:, pairing.text]  # every occurrence is a column
    own = [{caption.casefold() for caption in mine} for mine in captions]
    flat = [caption.casefold() for mine in captions for caption in mine]
    right_texts = [{n for n, text in enumerate(flat) if text in mine} for mine in own]
    right_images = [{i for i, mine in enumerate(own) if text in mine} for text in flat]
    for k in (1, 5, 10):
        for name, table, right in (
            ("image_to_text", scores, right_texts),
            ("text_to_image", scores.T, right_images),
        ):
            assert outcome.numbers[name][f"r{k}"] == pytest.approx(plain.recall_at(table.tolist(), right, k))
            expected = np.mean([plain.chance_recall(len(r), table.shape[1], k) for r in right])
            assert outcome.numbers["chance"][name][f"r{k}"] == pytest.approx(expected)


def test_chance_equals_the_share_of_random_orders():
    random = np.random.default_rng(3)
    orders = np.argsort(random.random((20_000, 12)), axis=1)
    for right, k in ((1, 1), (3, 5), (7, 5), (12, 1), (2, 12)):
        simulated = (orders[:, :k] < right).any(axis=1).mean()
        assert chance_recall(np.array([right]), 12, k)[0] == pytest.approx(simulated, abs=0.012)


def test_a_collapsed_model_hits_nothing():
    pairs = np.stack([np.arange(8)] * 2, 1)
    ranks = first_hit(dot, torch.ones(8, 3), torch.ones(8, 3), pairs)
    assert (ranks.rank == 7).all()
    outcome, _ = accuracy(np.zeros((5, 9)), np.arange(5), FEW)
    assert outcome.numbers["top1"] == 0.0


def test_chunks_change_nothing(monkeypatch):
    pairing = Pairing.of(captions_with_copies())
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(pairing.images, 4, generator=generator)
    texts = torch.randn(len(pairing.texts), 4, generator=generator)
    whole = both_ways(dot, images, texts, pairing, FEW).numbers
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.retrieval.CHUNK", 7 * len(pairing.texts))
    assert both_ways(dot, images, texts, pairing, FEW).numbers == whole


def test_images_without_captions_stay_in_the_gallery():
    pairing = Pairing.of([["a cat"], [], ["a dog", "  "]])
    points = torch.eye(3)
    outcome = both_ways(dot, points, points[[0, 2]], pairing, FEW)
    assert outcome.numbers["image_to_text"]["r1"] == outcome.numbers["text_to_image"]["r1"] == 1.0
    assert outcome.numbers["chance"]["text_to_image"]["r1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="two images"):
        both_ways(dot, points[:1], points[:1], Pairing.of([["a cat"]]), FEW)


def test_zero_shot_equals_the_loops():
    random = np.random.default_rng(0)
    truth = random.integers(5, size=200)  # classes 5 to 8 never occur
    scores = random.normal(size=(200, 9)) + 1.5 * (np.arange(9) == truth[:, None])
    outcome, predicted = accuracy(scores, truth, FEW)
    top = np.argsort(-scores, axis=1)
    assert (predicted == top[:, 0]).all()
    assert outcome.numbers["top1"] == pytest.approx((top[:, 0] == truth).mean())
    assert outcome.numbers["top5"] == pytest.approx((top[:, :5] == truth[:, None]).any(1).mean())
    assert outcome.numbers["mean_per_class"] == pytest.approx(plain.mean_per_class(predicted, truth))
    assert outcome.numbers["chance"] == 1 / 9
    assert outcome.numbers["chance_top5"] == 5 / 9
    assert outcome.numbers["classes_seen"] == 5
    low, high = outcome.intervals["mean_per_class"]
    assert low < outcome.numbers["mean_per_class"] < high < low + 0.2


def test_zero_shot_chance_is_what_guessing_scores():
    random = np.random.default_rng(0)
    outcome, _ = accuracy(random.normal(size=(8000, 7)), random.integers(7, size=8000), FEW)
    for name in ("top1", "mean_per_class"):
        assert outcome.numbers[name] == pytest.approx(outcome.numbers["chance"], abs=0.013)
    assert outcome.numbers["top5"] == pytest.approx(outcome.numbers["chance_top5"], abs=0.017)


def test_class_vectors_average_before_the_lift():
    class Side:
        curvature = 1.0

        def project_text(self, texts):
            return torch.tensor([[float(len(t)), float(t.count("a"))] for t in texts])

        def lift_text(self, features):
            return features**2

    vectors = class_vectors(Side(), tree())
    prompts = ["an apple", "one apple here"]
    mean = torch.tensor([[len(t), t.count("a")] for t in prompts], dtype=torch.float32).mean(0)
    assert torch.equal(vectors[tree().class_index("apple")], mean**2)
    assert len(vectors) == 6


def test_bootstrap_equals_the_loop_and_covers():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), random.integers(1, 6, 60))
    values = (random.random(len(clusters)) < 0.3 + 0.4 * (clusters % 2)).astype(float)
    fast = Bootstrap(draws=4000, seed=1).means(values[:, None], clusters)[0]
    slow = plain.bootstrap_mean(values.tolist(), clusters.tolist(), 4000, 2)
    assert fast == pytest.approx(slow, abs=0.012)
    covered = 0
    for seed in range(100):
        sample = np.random.default_rng(seed).normal(size=(50, 1))
        low, high = Bootstrap(draws=200, seed=seed).means(sample)[0]
        covered += low <= 0.0 <= high
    assert 86 <= covered <= 100


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_none_and_all_have_the_exact_interval(hit):
    """Every draw is the same; 78 images without a hit do not show that a model with one is better."""
    exact = pytest.approx(binomtest(int(78 * hit), 78).proportion_ci(method="exact"))
    hits, few = np.full((78, 1), hit), Bootstrap(draws=20)
    assert few.hits(hits)[0] == exact and few.means(hits)[0] == (hit, hit)
    twice = few.hits(np.repeat(hits, 2, axis=0), np.repeat(np.arange(78), 2))
    assert twice[0] == exact, "two captions of an image tell as much as one"
    assert few.mean_of_groups(hits[:, 0], np.arange(78) % 3, np.arange(78)) == (hit, exact)
    assert mean_per_class(hits[:, 0], np.arange(78) % 3, few) == (hit, exact)
    asked = np.where(np.arange(100) < 78, 2.0, 0.0)[:, None]
    assert few.fractions(asked * hit, asked)[0] == exact, "who is not asked tells nothing"


def test_bootstrap_is_seeded_and_blocks_keep_the_count(monkeypatch):
    values = np.random.default_rng(0).random((30, 2))
    assert Bootstrap(draws=50).means(values) == Bootstrap(draws=50).means(values)
    assert Bootstrap(draws=50).means(values) != Bootstrap(draws=50, seed=1).means(values)
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.bootstrap.BLOCK", 100)
    weights = list(Bootstrap(draws=50).weights(30))
    assert [len(block) for block in weights] == [3] * 16 + [2]
    assert all((block.sum(1) == 30).all() for block in weights)


@pytest.mark.parametrize(
    ("prompt", "name", "text"),
    [
        ("a {}", "apple", "an apple"),
        ("a {}", "unicorn", "a unicorn"),
        ("A photo of a {}.", "Owl", "A photo of an Owl."),
        ("the {}", "apple", "the apple"),
        ("sofa {}", "apple", "sofa apple"),
        ("a {}", "{0.__class__}", "a {0.__class__}"),
    ],
)
def test_prompts_read_like_english(prompt, name, text):
    assert fill(prompt, name) == text


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("a", None, ()), ("b", "aa", ()), ("c", "a", ())], "'aa' of 'b' is not a node .nearest: a"),
        ([("a", None, ()), ("b", None, ()), ("c", "a", ())], "one tree"),
        ([("a", None, ()), ("b", "a", ()), ("b", "a", ())], "same id"),
        ([("r", None, ()), ("a", "b", ()), ("b", "a", ())], "cycle"),
    ],
)
def test_a_taxonomy_that_is_no_tree_is_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        Taxonomy.build(nodes)


def test_taxonomy_file(tmp_path):
    path = tmp_path / "taxonomy.json"
    with pytest.raises(FileNotFoundError, match=r"taxonomy\.json"):
        Taxonomy.load(path)
    nodes = [{"id": "cat", "parent": "thing", "names": ["cat", "kitten"]}, {"id": "saw", "parent": "thing"}]
    path.write_text(json.dumps({"root": "thing", "prompts": ["a {}"], "nodes": nodes}))
    taxonomy = Taxonomy.load(path)
    assert taxonomy.leaf_ids() == ("cat", "saw")
    assert taxonomy.prompts == ("a {}",) and taxonomy.names[int(taxonomy.leaves()[0])] == ("cat", "kitten")
    with pytest.raises(ValueError, match="'kat' is not a leaf of the taxonomy; nearest: cat"):
        taxonomy.class_index("kat")
    path.write_text('{"root": "thing", "prompts": ["a thing"], "nodes": []}')
    with pytest.raises(ValueError, match="roots"):
        Taxonomy.load(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="not a taxonomy"):
        Taxonomy.load(path)
