"""Out-of-distribution detection by a score: FPR at 95 % TPR, AUROC, AUPR. Known images are the positives.

A higher score means "known". Ties count half in the AUROC and share one threshold in the other two.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.metrics.bootstrap import Bootstrap

NUMBERS = ("fpr95", "auroc", "aupr")


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Minus the free energy, T logsumexp(l / T): [N, C] -> [N] (Liu et al., NeurIPS 2020)."""
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max(1, keepdims=True)
    return temperature * (top[:, 0] + np.log(np.exp(scaled - top).sum(1)))


def max_softmax(logits: np.ndarray) -> np.ndarray:
    """Log of the largest softmax probability, in the order of that probability: [N, C] -> [N] (Hendrycks 2017).

    -log(1 + sum of exp(l_j - l_max) over the others) distinguishes values that a probability rounds to 1.
    """
    ordered = np.sort(logits.astype(np.float64), axis=1)
    return -np.log1p(np.exp(ordered[:, :-1] - ordered[:, -1:]).sum(1))


SCORES = {"energy": energy, "max_softmax": max_softmax}


@dataclass(frozen=True)
class Ranked:
    """Scores of known and out-of-distribution images in one order, so that each bootstrap draw is one pass.

    order: of all images, known first, by falling score; ends: the last index of each group of equal scores.
    """

    known: int
    order: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, known: np.ndarray, strange: np.ndarray) -> "Ranked":
        """Rank scores [N] and [M]; ValueError when either is empty or not finite."""
        for name, scores in (("known", known), ("out-of-distribution", strange)):
            if not len(scores):
                raise ValueError(
                    f"no {name} images: detection compares known with out-of-distribution images"
                )
            if not np.isfinite(scores).all():
                raise ValueError(f"a score of the {name} images is not finite: the model has diverged")
        scores = np.concatenate([known, strange]).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        return cls(len(known), order, ends)

    def numbers(self, known: np.ndarray | None = None, strange: np.ndarray | None = None) -> dict[str, float]:
        """FPR95, AUROC and AUPR, each image weighted (1 by default)."""
        known = np.ones(self.known) if known is None else known
        strange = np.ones(len(self.order) - self.known) if strange is None else strange
        nothing, none = np.zeros(len(strange)), np.zeros(self.known)
        true = np.cumsum(np.concatenate([known, nothing])[self.order])[self.ends]
        false = np.cumsum(np.concatenate([none, strange])[self.order])[self.ends]
        tpr, fpr = true / true[-1], false / false[-1]
        precision = true / np.maximum(true + false, 1e-300)
        gained = np.diff(tpr, prepend=0)
        # Trapezoids count ties half; the average precision is a step function (no interpolation).
        area = float(np.sum(np.diff(fpr, prepend=0) * (tpr + np.concatenate([[0.0], tpr[:-1]])) / 2))
        return {
            "fpr95": float(fpr[np.searchsorted(tpr, 0.95 - 1e-12)]),
            "auroc": area,
            "aupr": float(np.sum(gained * precision)),
        }


def detect(
    known: np.ndarray, strange: np.ndarray, bootstrap: Bootstrap
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """(numbers, intervals) from logits of known [N, C] and out-of-distribution [M, C] images, by both scores.

    Keys are "energy.fpr95", "max_softmax.auroc" and so on. Chance is 0.95, 0.5 and N / (N + M).
    """
    numbers: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, score in SCORES.items():
        ranked = Ranked.of(score(known), score(strange))
        numbers |= {f"{name}.{key}": value for key, value in ranked.numbers().items()}
        draws = (ranked.numbers(*weights) for weights in _draws(bootstrap, len(known), len(strange)))
        drawn = [[found[key] for key in NUMBERS] for found in draws]
        for key, span in zip(NUMBERS, bootstrap.interval(np.array(drawn)), strict=True):
            intervals[f"{name}.{key}"] = span
    return numbers, intervals


def _draws(bootstrap: Bootstrap, known: int, strange: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of both sets, drawn separately."""
    other = Bootstrap(bootstrap.draws, bootstrap.level, bootstrap.seed + 1)
    right = (row for block in other.weights(strange) for row in block)
    for block in bootstrap.weights(known):
        for row in block:
            yield row, next(right)
