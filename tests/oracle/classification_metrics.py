"""References for the classifiers: detection by comparing all pairs and all thresholds, crops one pixel at a time."""

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


def nearest_neighbour(train: np.ndarray, row: np.ndarray, k: int) -> float:
    """Minus the k-th smallest distance to training rows, all scaled to length 1."""
    unit = row / math.sqrt(math.fsum(row**2))
    gaps = [math.dist(unit, other / math.sqrt(math.fsum(other**2))) for other in train]
    return -sorted(gaps)[k - 1]


def mahalanobis(train: np.ndarray, labels: np.ndarray, row: np.ndarray) -> float:
    """Minus the smallest (x - m)^T S^-1 (x - m) over the classes, S the mean of the outer products within classes."""
    means = [
        np.mean([x for x, label in zip(train, labels, strict=True) if label == c], 0)
        for c in sorted({*labels})
    ]
    within = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(train, labels, strict=True)) / len(
        train
    )
    return -min(float((row - mean) @ np.linalg.solve(within, row - mean)) for mean in means)


def class_distance(train: np.ndarray, labels: np.ndarray, row: np.ndarray, c: float | None) -> float:
    """Minus the smallest distance to a class mean; for c, of exp_0 on the ball, by its formula with acosh."""
    means = [
        np.mean([x for x, label in zip(train, labels, strict=True) if label == one], 0)
        for one in sorted({*labels})
    ]
    if c is None:
        return -min(math.dist(row, mean) for mean in means)
    root = math.sqrt(c)

    def ball(v: np.ndarray) -> np.ndarray:
        length = math.sqrt(math.fsum(v**2))
        return math.tanh(root * length) / (root * length) * v

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        inside = (1 - c * (a @ a)) * (1 - c * (b @ b))
        return math.acosh(1 + 2 * c * ((a - b) @ (a - b)) / inside) / root

    return -min(distance(ball(row), ball(mean)) for mean in means)


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
