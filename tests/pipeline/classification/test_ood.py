"""FPR95, AUROC and AUPR against references that compare all pairs and all thresholds."""

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from hyco.pipeline.classification.ood import (
    SCORES,
    Seen,
    class_distance,
    detect,
    energy,
    mahalanobis,
    max_softmax,
    mean_of_sets,
    nearest_neighbour,
    scorers,
)
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.ranked import NUMBERS, Ranked
from tests.oracle import classification_metrics as twin


@pytest.mark.parametrize("seed", range(6))
def test_numbers_are_the_twins(seed: int) -> None:
    random = np.random.default_rng(seed)
    known = random.normal(0.7, 1, 57 + seed)
    strange = random.normal(0, 1, 40)
    if seed % 2:  # with ties, also between the two
        known, strange = known.round(1), strange.round(1)
    got = Ranked.of(known, strange).numbers()
    assert got["auroc"] == pytest.approx(twin.auroc(known, strange), abs=1e-12)
    assert got["fpr95"] == pytest.approx(twin.fpr_at(known, strange, 0.95), abs=1e-12)
    assert got["aupr"] == pytest.approx(twin.average_precision(known, strange), abs=1e-12)


def test_a_weight_counts_an_image_that_often() -> None:
    random = np.random.default_rng(0)
    known, strange = random.normal(0.5, 1, 30).round(1), random.normal(0, 1, 20).round(1)
    times, others = random.integers(0, 4, 30), random.integers(0, 4, 20)
    weighted = Ranked.of(known, strange).numbers(times.astype(float), others.astype(float))
    repeated = Ranked.of(np.repeat(known, times), np.repeat(strange, others)).numbers()
    assert weighted == pytest.approx(repeated, abs=1e-12)


def test_ends_of_the_scale() -> None:
    apart = Ranked.of(np.array([2.0, 3.0]), np.array([0.0, 1.0])).numbers()
    assert apart == {"fpr95": 0.0, "auroc": 1.0, "aupr": 1.0}
    alike = Ranked.of(np.zeros(3), np.zeros(5)).numbers()
    assert alike == pytest.approx({"fpr95": 1.0, "auroc": 0.5, "aupr": 3 / 8})
    reversed_ = Ranked.of(np.array([0.0]), np.array([1.0])).numbers()
    assert reversed_ == {"fpr95": 1.0, "auroc": 0.0, "aupr": 0.5}


def test_scores_of_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (20, 5)).astype(np.float32)
    assert energy(logits) == pytest.approx([twin.energy(row) for row in logits.astype(float)])
    assert np.exp(max_softmax(logits)) == pytest.approx(
        [twin.max_probability(row) for row in logits.astype(float)]
    )
    sure = np.array([[60.0, 0.0], [50.0, 0.0]], np.float32)  # probabilities that float32 cannot tell from 1
    assert max_softmax(sure)[0] > max_softmax(sure)[1]


def images(seed: int, count: int = 12, classes: int = 3, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features around the means of their classes, and their classes."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count * classes) % classes)
    means = np.random.default_rng(99).normal(0, 1.5, (classes, dim))
    return (means[labels] + random.normal(0, 1, (len(labels), dim))).astype(np.float32), labels


def test_scores_of_features_are_the_twins() -> None:
    train, labels = images(0)
    test, _ = images(1)
    rows, others = train.astype(float), test.astype(float)
    for k in (1, 7, len(train)):
        expected = [twin.nearest_neighbour(rows, row, k) for row in others]
        assert nearest_neighbour(train, k)(test) == pytest.approx(expected, abs=1e-7)
    peer = NearestNeighbors(n_neighbors=7).fit(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    unit = others / np.linalg.norm(others, axis=1, keepdims=True)
    assert nearest_neighbour(train, 7)(test) == pytest.approx(-peer.kneighbors(unit)[0][:, -1], abs=1e-7)
    expected = [twin.mahalanobis(rows, labels, row) for row in others]
    assert mahalanobis(train, labels)(test) == pytest.approx(expected, rel=1e-9)
    means = np.stack([rows[labels == label].mean(0) for label in range(3)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(rows - means[labels])
    each = np.stack([covariance.mahalanobis(others - mean) for mean in means])
    assert mahalanobis(train, labels)(test) == pytest.approx(-each.min(0), rel=1e-9)
    for c in (None, 0.1, 1.0):
        expected = [twin.class_distance(rows, labels, row, c) for row in others]
        assert class_distance(train, labels, c)(test) == pytest.approx(expected, rel=1e-7)


def test_features_in_a_plane_have_no_distance_beside_it() -> None:
    train, labels = images(0)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 5)))[0].astype(np.float32)
    flat = train @ turn.T  # five of seven dimensions, up to rounding
    assert mahalanobis(flat, labels)(flat) == pytest.approx(mahalanobis(train, labels)(train), rel=1e-4)


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours 37 is more than the 36 training images: lower it"):
        nearest_neighbour(images(0)[0], 37)


def test_intervals_hold_the_number_and_are_named_after_it() -> None:
    (train, labels), (known, _), (strange, _) = images(0, 50), images(1, 60), images(2, 40)
    strange = 2.5 * strange + 1
    random, boot = np.random.default_rng(2), Bootstrap(60)
    seen = Seen(random.normal(0, 2, (180, 4)), known)
    scores = scorers(SCORES, Seen(train, train), labels, 5, 0.5)
    sets = [Seen(random.normal(0, 1, (120, 4)), strange), Seen(random.normal(0, 0.5, (50, 4)), strange[:50])]
    first, second = (detect(seen, one, scores, boot) for one in sets)
    outcome, mean = first.result(boot), mean_of_sets([first, second], ["a", "b"], boot)
    assert set(outcome.numbers) == {*SCORES, "n"} and outcome.numbers["n"] == 300
    assert mean.numbers["sets"] == ["a", "b"] and mean.numbers["n"] == 350
    for score in SCORES:
        assert outcome.numbers[score]["chance"] == pytest.approx(
            {"fpr95": 0.95, "auroc": 0.5, "aupr": 180 / 300}
        )
        assert mean.numbers[score]["chance"]["aupr"] == pytest.approx((180 / 300 + 180 / 230) / 2)
        for key in NUMBERS:
            value = outcome.numbers[score][key]
            low, high = outcome.intervals[f"{score}.{key}"]
            assert low <= value <= high and low < high
            assert mean.numbers[score][key] == pytest.approx((value + second.numbers[score][key]) / 2)
            low, high = mean.intervals[f"{score}.{key}"]
            assert low < mean.numbers[score][key] < high
    assert outcome.numbers["mahalanobis"]["auroc"] > 0.9, "the images that are far from all classes"


def test_nothing_to_compare_is_refused() -> None:
    names = ("known", "out-of-distribution")
    with pytest.raises(ValueError, match="there is nothing out-of-distribution to rank"):
        Ranked.of(np.ones(3), np.ones(0), names)
    with pytest.raises(ValueError, match="a known score is not finite"):
        Ranked.of(np.array([np.nan]), np.ones(1), names)


def test_a_class_without_training_images_has_no_mean() -> None:
    """A step of a set may leave out a class: the others are still told apart, with the same scores."""
    random = np.random.default_rng(4)
    train, asked = (
        random.normal(size=(40, 3)).astype(np.float32),
        random.normal(size=(9, 3)).astype(np.float32),
    )
    dense, sparse = np.arange(40) % 2, np.arange(40) % 2 * 2
    np.testing.assert_array_equal(mahalanobis(train, sparse)(asked), mahalanobis(train, dense)(asked))
    for c in (None, 0.5):
        found = class_distance(train, sparse, c)(asked), class_distance(train, dense, c)(asked)
        np.testing.assert_array_equal(*found)
