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
    Every draw from a sample without a hit, or without a miss, is the same; such a fraction gets the exact interval of
    Clopper and Pearson (1934) for as many independent units as there are clusters.
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
        return self.interval(self.ratios(*_summed(values, clusters)))

    def hits(
        self, hits: Float[np.ndarray, "N M"], clusters: Shaped[np.ndarray, " N"] | None = None
    ) -> list[tuple[float, float]]:
        """An interval for the fraction of hits (0 or 1) in each column; rows of one cluster are drawn together."""
        return self.fractions(*_summed(hits, clusters))

    def fractions(
        self, hits: Float[np.ndarray, "N M"], asked: Float[np.ndarray, "N M"]
    ) -> list[tuple[float, float]]:
        """An interval for sum(hits) / sum(asked) of each column over the N clusters; hits are at most asked."""
        spans = self.interval(self.ratios(hits, asked))
        return [self.exact(span, *column) for span, *column in zip(spans, hits.T, asked.T, strict=True)]

    def exact(
        self, span: tuple[float, float], hits: Float[np.ndarray, " N"], asked: Float[np.ndarray, " N"]
    ) -> tuple[float, float]:
        """The interval of a fraction over N clusters; `span` where it has both hits and misses."""
        units = np.count_nonzero(asked)
        if not units or (hits.any() and (hits < asked).any()):
            return span
        margin = 1 - ((1 - self.level) / 2) ** (1 / units)
        return (1 - margin, 1.0) if hits.any() else (0.0, margin)

    def mean_of_groups(
        self,
        hits: Float[np.ndarray, " N"],
        groups: Shaped[np.ndarray, " N"],
        clusters: Shaped[np.ndarray, " N"],
    ) -> tuple[float, tuple[float, float]]:
        """Mean over the groups of the fraction of hits in each, and its interval; a cluster is drawn together."""
        _, group = np.unique(groups, return_inverse=True)
        _, cluster = np.unique(clusters, return_inverse=True)
        total, count = np.zeros((2, cluster.max() + 1, group.max() + 1))
        np.add.at(total, (cluster, group), hits)
        np.add.at(count, (cluster, group), 1.0)
        redrawn = np.nanmean(self.ratios(total, count), axis=1, keepdims=True)
        span = self.exact(self.interval(redrawn)[0], total.sum(axis=1), count.sum(axis=1))
        return float((total.sum(axis=0) / count.sum(axis=0)).mean()), span

    def interval(self, samples: Float[np.ndarray, "R M"]) -> list[tuple[float, float]]:
        """The central `level` fraction of each column, NaN ignored."""
        tail = (1.0 - self.level) / 2.0
        low, high = np.nanquantile(samples, [tail, 1.0 - tail], axis=0)
        return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _summed(
    values: Float[np.ndarray, "N M"], clusters: Shaped[np.ndarray, " N"] | None
) -> tuple[Float[np.ndarray, "K M"], Float[np.ndarray, "K M"]]:
    """Sums of the rows of each cluster, and the numbers of its rows."""
    if clusters is None:
        return values, np.ones_like(values)
    _, index = np.unique(clusters, return_inverse=True)
    size = int(index.max()) + 1 if len(index) else 0
    summed = np.zeros((size, values.shape[1]))
    np.add.at(summed, index, values)
    count = np.bincount(index, minlength=size).astype(np.float64)[:, None]
    return summed, np.broadcast_to(count, summed.shape)
