"""Results of a metric protocol, and the bootstrap for the interval of each metric."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

BLOCK = 4_000_000  # resampled indices held at once: 32 MB


@dataclass(frozen=True, slots=True)
class MetricResult:
    """The metrics of one protocol in the form of metrics.json, and their intervals.

    `intervals` maps a dotted path below the section ("image_to_text.r1") to (low, high).
    """

    numbers: dict[str, Any]
    intervals: Mapping[str, tuple[float, float] | list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Percentile bootstrap over clusters (images): seeded, vectorised, in blocks of bounded memory.

    The gallery and the classes stay fixed; only the evaluated images are resampled, with replacement.
    A fraction of 0 or 1 in the sample gets an interval of zero width: a limit of the percentile bootstrap.
    """

    draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def weights(self, n: int) -> Iterator[Float[np.ndarray, "R n"]]:
        """How often each of n clusters occurs in each draw, in blocks of draws."""
        random = np.random.default_rng(self.seed)
        block = max(1, BLOCK // max(n, 1))
        for start in range(0, self.draws, block):
            rows = min(block, self.draws - start)
            drawn = random.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
            yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)

    def ratios(
        self, numerator: Float[np.ndarray, "N M"], denominator: Float[np.ndarray, "N M"]
    ) -> Float[np.ndarray, "R M"]:
        """sum(numerator) / sum(denominator) in each draw over the N clusters; NaN where nothing was drawn."""
        blocks = []
        for weight in self.weights(len(numerator)):
            with np.errstate(invalid="ignore", divide="ignore"):
                blocks.append((weight @ numerator) / (weight @ denominator))
        return np.concatenate(blocks)

    def means(
        self, values: Float[np.ndarray, "N M"], clusters: Shaped[np.ndarray, " N"] | None = None
    ) -> list[tuple[float, float]]:
        """An interval for the mean of each column of `values`; rows of one cluster are drawn together."""
        count = np.ones((len(values), 1))
        if clusters is not None:
            _, index = np.unique(clusters, return_inverse=True)
            size = int(index.max()) + 1 if len(index) else 0
            summed = np.zeros((size, values.shape[1]))
            np.add.at(summed, index, values)
            count = np.bincount(index, minlength=size).astype(np.float64)[:, None]
            values = summed
        return self.interval(self.ratios(values, np.broadcast_to(count, values.shape)))

    def mean_of_groups(
        self,
        values: Float[np.ndarray, " N"],
        groups: Shaped[np.ndarray, " N"],
        clusters: Shaped[np.ndarray, " N"],
    ) -> tuple[float, tuple[float, float]]:
        """Mean over the groups of the mean in each, and its interval; rows of one cluster are drawn together."""
        _, group = np.unique(groups, return_inverse=True)
        _, cluster = np.unique(clusters, return_inverse=True)
        total, count = np.zeros((2, cluster.max() + 1, group.max() + 1))
        np.add.at(total, (cluster, group), values)
        np.add.at(count, (cluster, group), 1.0)
        redrawn = np.nanmean(self.ratios(total, count), axis=1, keepdims=True)
        return float((total.sum(axis=0) / count.sum(axis=0)).mean()), self.interval(redrawn)[0]

    def interval(self, samples: Float[np.ndarray, "R M"]) -> list[tuple[float, float]]:
        """The central `level` fraction of each column, NaN ignored."""
        tail = (1.0 - self.level) / 2.0
        low, high = np.nanquantile(samples, [tail, 1.0 - tail], axis=0)
        return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
