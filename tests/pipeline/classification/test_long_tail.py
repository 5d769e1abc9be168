"""The exponential profile: its counts, who is kept, and the groups of classes."""

import numpy as np
import pytest

from hyco.pipeline.classification.long_tail import Profile, long_tail, long_tail_counts, shots
from tests.oracle import classification_metrics as twin

CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # IF 0.01, as published


def test_published_counts() -> None:
    assert long_tail_counts(5000, 10, 0.01).tolist() == CIFAR10_LT
    assert long_tail_counts(500, 100, 0.01).sum() == 10847  # CIFAR-100-LT


@pytest.mark.parametrize("imbalance", [0.2, 0.1, 0.02, 0.01])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_counts_are_the_twins(classes: int, imbalance: float) -> None:
    assert long_tail_counts(500, classes, imbalance).tolist() == twin.profile(500, classes, imbalance)


def test_a_longer_tail_keeps_a_subset() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 50))
    short, long = (long_tail(labels, 4, imbalance, seed=3) for imbalance in (0.2, 0.02))
    assert set(long) < set(short)
    assert np.bincount(labels[long]).tolist() == long_tail_counts(50, 4, 0.02).tolist()
    assert (np.diff(long) > 0).all()
    assert not np.array_equal(long, long_tail(labels, 4, 0.02, seed=4))
    assert np.array_equal(long_tail(labels, 4, 1.0, seed=3), np.arange(200))


def test_step_counts() -> None:
    assert long_tail_counts(5000, 10, 0.01, "step").tolist() == [5000] * 5 + [50] * 5
    assert long_tail_counts(20, 3, 0.01, "step").tolist() == [20, 1, 1]


@pytest.mark.parametrize("imbalance", [0.1, 0.05, 0.02, 0.01, 0.005])
@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize(("classes", "each"), [(10, 5000), (100, 500)])
def test_the_published_draw_is_theirs_image_for_image(
    classes: int, each: int, profile: Profile, imbalance: float
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), each))
    kept = long_tail(labels, classes, imbalance, 7, profile, "published")
    assert kept.tolist() == twin.published_draw(labels.tolist(), classes, imbalance, profile)
    assert not np.array_equal(kept, long_tail(labels, classes, imbalance, 0, profile))


def test_groups() -> None:
    assert shots(np.array(CIFAR10_LT)) == ["many"] * 4 + ["medium"] * 3 + ["few"] * 3
    hundred = long_tail_counts(500, 100, 0.01)
    groups = shots(hundred)
    assert [n > 100 for n in hundred] == [g == "many" for g in groups]
    assert [n < 20 for n in hundred] == [g == "few" for g in groups]


def test_impossible_tails_are_refused() -> None:
    with pytest.raises(ValueError, match="imbalance 0 over 5 classes"):
        long_tail_counts(10, 5, 0)
    with pytest.raises(ValueError, match="class 1 has no images"):
        long_tail(np.array([0, 2]), 3, 0.1, 0)
