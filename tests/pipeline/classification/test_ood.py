"""FPR95, AUROC and AUPR against twins that compare all pairs and all thresholds."""

import numpy as np
import pytest

from pipeline.classification.ood import Ranked, detect, energy, max_softmax
from pipeline.evaluation.metrics.bootstrap import Bootstrap
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


def test_intervals_hold_the_number_and_are_named_after_it() -> None:
    random = np.random.default_rng(2)
    known, strange = random.normal(0, 2, (300, 4)), random.normal(0, 1, (200, 4))
    numbers, intervals = detect(known, strange, Bootstrap(200))
    assert set(numbers) == set(intervals)
    assert {name.partition(".")[0] for name in numbers} == {"energy", "max_softmax"}
    for name, (low, high) in intervals.items():
        assert low <= numbers[name] <= high and low < high
        assert high - low < 0.3


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no out-of-distribution images"):
        Ranked.of(np.ones(3), np.ones(0))
    with pytest.raises(ValueError, match="known images is not finite"):
        Ranked.of(np.array([np.nan]), np.ones(1))
