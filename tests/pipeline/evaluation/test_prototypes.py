"""Fixed prototypes on the hyperboloid as a classifier over frozen points."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hyco.models.heads.max_separation import HyperbolicPrototypes
from hyco.models.hyperbolic import lorentz
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.linear_probe import PENALTIES, fit
from hyco.pipeline.evaluation.metrics.prototypes import prototype_probe

FEW = Bootstrap(100)


def clouds(seed: int, count: int, c: float) -> tuple[torch.Tensor, np.ndarray]:
    """Points about four centres that no rotation brings to the corners of a simplex: two of them lie close."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[1.0, 0, 0, 0, 0], [1, 0.8, 0, 0, 0], [-1, 0, 0.5, 0, 0], [0, 0, -1, 0.3, 0]])
    labels = torch.arange(count) % 4
    return lorentz.exp0(centres[labels] + 0.2 * torch.randn(count, 5, generator=random), c), labels.numpy()


@pytest.mark.parametrize("c", [0.2, 2.0])
def test_they_learn_what_is_there(c: float) -> None:
    train, test = clouds(0, 60, c), clouds(1, 200, c)
    with torch.inference_mode():
        found = prototype_probe(train, test, 4, c, FEW)
    assert found.numbers["top1"] > 0.9 and found.numbers["training_images"] == 60
    low, high = found.intervals["top1"]
    assert low < found.numbers["top1"] < high
    assert found.numbers["radius"] > 0


def test_shuffled_labels_teach_nothing() -> None:
    points, labels = clouds(0, 40, 1.0)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert prototype_probe((points, shuffled), clouds(1, 200, 1.0), 4, 1.0, FEW).numbers["top1"] < 0.6


def test_what_cannot_be_is_refused() -> None:
    train = clouds(0, 40, 1.0)
    with pytest.raises(ValueError, match="geometry lorentz"):
        prototype_probe(train, train, 4, None, FEW)
    with pytest.raises(ValueError, match="dim 5 is too few: 7 prototypes"):
        prototype_probe(train, train, 7, 1.0, FEW)
    with pytest.raises(ValueError, match="4 training images are too few"):
        prototype_probe((train[0][:4], train[1][:4]), train, 4, 1.0, FEW)


@pytest.mark.parametrize("seed", range(4))
def test_the_penalty_counts_the_scale(seed: int) -> None:
    """Counting the map alone, the strongest penalty left a loss of 1e-5 at a scale of 1e5, and L-BFGS overflowed."""
    points, labels = clouds(seed, 60, 1.0)
    known = torch.from_numpy(labels)
    head, losses = HyperbolicPrototypes(4, 5), []
    for penalty in PENALTIES:
        fit(head, points, known, penalty)
        losses.append(F.cross_entropy(head(points), known).item())
        assert head.log_scale.exp() < 100
    assert losses[0] > 1 and losses[-1] < 0.1
    assert losses == sorted(losses, reverse=True), "a weaker penalty fits better"
