"""One ranking of positives and negatives: FPR at 95 % TPR, AUROC, and average precision.

A higher score means "positive". Ties count half in the AUROC and share one threshold in the other two, so the AUROC is
the rank-sum statistic with average ranks, and the average precision a step function without interpolation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

NUMBERS = ("fpr95", "auroc", "aupr")


@dataclass(frozen=True)
class Ranked:
    """Scores of positives and negatives in one order, so that each bootstrap draw is one pass.

    Attributes:
        positives: number of positives.
        order: indices of all scores, positives first, by falling score.
        ends: the last place of each group of equal scores.
    """

    positives: int
    order: Int[np.ndarray, " N"]
    ends: Int[np.ndarray, " G"]

    @classmethod
    def of(
        cls,
        positive: Float[np.ndarray, " P"],
        negative: Float[np.ndarray, " M"],
        names: tuple[str, str] = ("positive", "negative"),
    ) -> "Ranked":
        """Rank scores; `names` are of the two kinds. ValueError when either is empty or not finite."""
        for name, scores in zip(names, (positive, negative), strict=True):
            if not len(scores):
                raise ValueError(
                    f"there is nothing {name} to rank: both {names[0]} and {names[1]} are needed"
                )
            if not np.isfinite(scores).all():
                raise ValueError(f"a {name} score is not finite: the model has diverged")
        scores = np.concatenate([positive, negative]).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        return cls(len(positive), order, ends)

    def numbers(
        self,
        positive: Float[np.ndarray, " P"] | None = None,
        negative: Float[np.ndarray, " M"] | None = None,
    ) -> dict[str, float]:
        """FPR95, AUROC and AUPR, each item weighted (1 by default)."""
        positive = np.ones(self.positives) if positive is None else positive
        negative = np.ones(len(self.order) - self.positives) if negative is None else negative
        nothing, none = np.zeros(len(negative)), np.zeros(self.positives)
        true = np.cumsum(np.concatenate([positive, nothing])[self.order])[self.ends]
        false = np.cumsum(np.concatenate([none, negative])[self.order])[self.ends]
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

    def drawn(
        self, weights: Iterable[tuple[Float[np.ndarray, " P"], Float[np.ndarray, " M"]]]
    ) -> Float[np.ndarray, "R 3"]:
        """NUMBERS for each pair of weights of the positives and the negatives."""
        return np.array([list(self.numbers(*pair).values()) for pair in weights])
