"""The linear probe: it finds the minimum, and learns what is there and no more."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hyco.pipeline.evaluation.metrics.linear_probe import HEADS, PENALTIES, fit, probe, sweep
from tests.pipeline.evaluation.test_suite import FEW


def gaussians(seed: int, count: int) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    centres = np.random.default_rng(9).normal(size=(3, 6)) * 1.5
    return torch.from_numpy(centres[labels] + random.normal(size=(count, 6))).float(), labels


def test_fit_finds_the_minimum() -> None:
    features, labels = gaussians(0, 80)
    x, y, penalty = features.double().numpy(), labels, 0.03

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:18].reshape(3, 6), flat[18:]
        logits = x @ weight.T + bias
        highest = logits.max(1, keepdims=True)
        norm = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0]
        return float((norm - logits[np.arange(80), y]).mean() + penalty / 2 * (weight**2).sum())

    best = minimize(loss, np.zeros(21), tol=1e-10)
    head = torch.nn.Linear(6, 3).double()
    fit(head, features.double(), torch.from_numpy(labels), penalty)
    np.testing.assert_allclose(head.weight.detach().numpy(), best.x[:18].reshape(3, 6), atol=2e-4)


def test_probe_learns_what_is_there_and_no_more() -> None:
    train, test = gaussians(0, 300), gaussians(1, 200)
    found = probe(train, test, 3, FEW)
    assert found.numbers["top1"] > 0.85 and found.numbers["training_images"] == 300
    low, high = found.intervals["top1"]
    assert low < found.numbers["top1"] < high
    with torch.inference_mode():
        again = probe(train, test, 3, FEW)
    assert again.numbers == found.numbers, "seeded, and at home in inference mode"
    random = np.random.default_rng(3)
    blind = probe((train[0], random.permutation(train[1])), test, 3, FEW)
    assert blind.numbers["top1"] < 0.6, "shuffled labels teach nothing"


def test_the_penalty_is_chosen_without_the_test_part() -> None:
    features, labels = gaussians(0, 60)
    wide = torch.cat([features, torch.randn(60, 200, generator=torch.Generator().manual_seed(0))], 1)
    penalty = sweep(HEADS["softmax"], wide, torch.from_numpy(labels), 3, 0)
    assert penalty in PENALTIES and penalty > PENALTIES[-1], "noise asks for a penalty"
    with pytest.raises(ValueError, match="4 training images are too few"):
        probe((features[:4], labels[:4]), (features, labels), 3, FEW)


def test_rows_that_are_not_finite_are_named() -> None:
    features, labels = gaussians(0, 40)
    features[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of the 40 rows of features are not finite: leave them out"):
        fit(torch.nn.Linear(6, 3), features, torch.from_numpy(labels), 0.1)
    rest = features.isfinite().all(1)
    fit(torch.nn.Linear(6, 3), features[rest], torch.from_numpy(labels)[rest], 0.1)


def test_other_heads_plug_in() -> None:
    train, test = gaussians(0, 200), gaussians(1, 100)
    found = probe(train, test, 3, FEW, "maximum_separation")
    assert found.numbers["top1"] > 0.85
    few = (torch.randn(20, 2), np.arange(20) % 5)
    with pytest.raises(ValueError, match="is too few"):
        probe(few, few, 5, FEW, "maximum_separation")
