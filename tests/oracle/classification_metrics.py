"""Plain twins for the classifiers: detection by comparing all pairs and all thresholds, crops one pixel at a time."""

import math
from collections.abc import Sequence

import numpy as np


def auroc(known: Sequence[float], strange: Sequence[float]) -> float:
    """Share of (known, strange) pairs in the right order, ties half."""
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in strange)
    return won / (len(known) * len(strange))


def fpr_at(known: Sequence[float], strange: Sequence[float], tpr: float) -> float:
    """Share of strange images at or above the highest threshold that keeps `tpr` of the known ones."""
    for threshold in sorted({*known, *strange}, reverse=True):
        if sum(a >= threshold for a in known) / len(known) >= tpr:
            return sum(b >= threshold for b in strange) / len(strange)
    raise AssertionError("the lowest threshold keeps every image")


def average_precision(known: Sequence[float], strange: Sequence[float]) -> float:
    """Sum over falling thresholds of (recall gained) x (precision there)."""
    total, before = 0.0, 0.0
    for threshold in sorted({*known, *strange}, reverse=True):
        right = sum(a >= threshold for a in known)
        wrong = sum(b >= threshold for b in strange)
        recall = right / len(known)
        total += (recall - before) * right / (right + wrong)
        before = recall
    return total


def energy(logits: Sequence[float]) -> float:
    """log sum exp, term by term."""
    return math.log(math.fsum(math.exp(value) for value in logits))


def max_probability(logits: Sequence[float]) -> float:
    """The largest softmax probability."""
    terms = [math.exp(value) for value in logits]
    return max(terms) / math.fsum(terms)


def crop(image: np.ndarray, down: int, right: int, mirrored: bool, padding: int) -> np.ndarray:
    """[C, S, S]: what stands at each place after padding with black, shifting and mirroring."""
    _, size, _ = image.shape
    out = np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            i = row + down - padding
            j = (size - 1 - column if mirrored else column) + right - padding
            if 0 <= i < size and 0 <= j < size:
                out[:, row, column] = image[:, i, j]
    return out


def profile(largest: int, classes: int, imbalance: float) -> list[int]:
    """n_max IF^(c / (C - 1)) by logarithms, rounded down (1e-9 of slack for what should be whole)."""
    rates = [math.exp(math.log(imbalance) * c / (classes - 1)) for c in range(classes)]
    return [max(1, math.floor(largest * rate + 1e-9)) for rate in rates]


def published_draw(labels: list[int], classes: int, imbalance: float, profile: str) -> list[int]:
    """The draw of Cao et al. 2019 with numpy's global generator, as their code makes it: its seed is 0."""
    state, kept = np.random.get_state(), []
    np.random.seed(0)
    n_max = len(labels) / classes
    for label in range(classes):
        share = (
            imbalance ** (label / (classes - 1.0))
            if profile == "exponential"
            else (1.0 if label < classes // 2 else imbalance)
        )
        members = np.where(np.array(labels) == label)[0]
        np.random.shuffle(members)
        kept += members[: int(n_max * share)].tolist()
    np.random.set_state(state)
    return sorted(kept)
