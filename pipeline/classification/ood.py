"""Out-of-distribution detection: scores of images, and what they are worth. Known images are the positives.

A higher score means "known". Scores of logits need the image alone; those of features also need the training images:

    energy        logsumexp of the logits (Liu et al., NeurIPS 2020)
    max_softmax   largest softmax probability, MSP (Hendrycks and Gimpel, ICLR 2017)
    knn           minus the distance to the k-th nearest training image, features of length 1 (Sun et al., ICML 2022)
    mahalanobis   minus the smallest squared Mahalanobis distance to a class mean, one covariance for all classes
                  (Lee et al., NeurIPS 2018)
    distance      minus the distance to the nearest class mean in the space of the net: Euclidean, or hyperbolic between
                  exp_0 of the pooled tangent vectors, whose means are taken in the tangent space
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hyco.models.hyperbolic import lorentz
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.ranked import NUMBERS, Ranked

ScoreName = Literal["energy", "max_softmax", "knn", "mahalanobis", "distance"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
OF_FEATURES = frozenset({"knn", "mahalanobis", "distance"})
LEAST_VARIANCE = 1e-10  # of the largest: below it is the rounding of float32 features
ROWS = 1024  # images compared with all training images at once


@dataclass(frozen=True)
class Seen:
    """Logits [N, C] of images and their features [N, D], empty where no score needs them."""

    logits: np.ndarray
    features: np.ndarray

    def take(self, chosen: np.ndarray) -> "Seen":
        """The images at these indices, or where the mask is true."""
        return Seen(self.logits[chosen], self.features[chosen])


Scorer = Callable[[Seen], np.ndarray]


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


def require_neighbours(k: int, images: int) -> None:
    """ValueError for a k above the number of training images."""
    if k > images:
        raise ValueError(f"neighbours {k} is more than the {images} training images: lower it")


def nearest_neighbour(train: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """Minus the distance to the k-th nearest of the training features, all of length 1: [N, D] -> [N].

    ValueError for a k above the number of training images.
    """
    require_neighbours(k, len(train))
    known = _unit(train)

    def score(features: np.ndarray) -> np.ndarray:
        blocks = torch.split(_unit(features), ROWS)
        cosine = torch.cat([(block @ known.T).topk(k, dim=1).values[:, -1] for block in blocks])
        return -(2 - 2 * cosine).clamp(min=0).sqrt().numpy()

    return score


def mahalanobis(train: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Minus the smallest squared Mahalanobis distance to a class mean: [N, D] -> [N].

    The covariance is that of the training features around the means of their classes; directions without variance are
    left out.
    """
    known = torch.from_numpy(train).double()
    means, own = _class_means(known, torch.from_numpy(labels))
    apart = known - means[own]
    inverse = torch.linalg.pinv(apart.T @ apart / len(apart), rtol=LEAST_VARIANCE, hermitian=True)

    def score(features: np.ndarray) -> np.ndarray:
        gaps = (block[:, None] - means for block in torch.from_numpy(features).double().split(ROWS))
        return -torch.cat([((gap @ inverse) * gap).sum(-1).amin(1) for gap in gaps]).numpy()

    return score


def class_distance(
    train: np.ndarray, labels: np.ndarray, curvature: float | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Minus the distance to the nearest class mean: [N, D] -> [N]; see the module. None is Euclidean."""
    means, _ = _class_means(torch.from_numpy(train).double(), torch.from_numpy(labels))

    def score(features: np.ndarray) -> np.ndarray:
        points = torch.from_numpy(features).double()
        if curvature is None:
            return -torch.cdist(points, means).amin(1).numpy()
        # On the hyperboloid, where digits last longer: exp_0(v) of the ball is at the distance 2|v| from the origin.
        lifted = lorentz.exp0(2 * points, curvature), lorentz.exp0(2 * means, curvature)
        return -lorentz.pairwise_distance(*lifted, curvature).amin(1).numpy()

    return score


def _unit(features: np.ndarray) -> Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(features).double(), dim=1)


def _class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means [K, D] of the classes that occur, and the place [N] of each image's mean: [N, D], [N]."""
    _, own, count = labels.unique(return_inverse=True, return_counts=True)
    total = features.new_zeros(len(count), features.shape[1]).index_add_(0, own, features)
    return total / count[:, None], own


def scorers(
    names: Sequence[ScoreName],
    train: Seen | None,
    labels: np.ndarray,
    neighbours: int,
    curvature: float | None,
) -> dict[str, Scorer]:
    """The scores of these names; `train` and its labels [N] are needed by those of OF_FEATURES."""
    known = np.zeros((0, 0)) if train is None else train.features
    make: dict[str, Callable[[], Scorer]] = {
        "energy": lambda: lambda seen: energy(seen.logits),
        "max_softmax": lambda: lambda seen: max_softmax(seen.logits),
        "knn": lambda: _of_features(nearest_neighbour(known, neighbours)),
        "mahalanobis": lambda: _of_features(mahalanobis(known, labels)),
        "distance": lambda: _of_features(class_distance(known, labels, curvature)),
    }
    return {name: make[name]() for name in names}


def _of_features(score: Callable[[np.ndarray], np.ndarray]) -> Scorer:
    return lambda seen: score(seen.features)


@dataclass(frozen=True)
class Detected:
    """NUMBERS of each score, and the same in each bootstrap draw: [R, 3]; sizes of both sets."""

    numbers: Mapping[str, Mapping[str, float]]
    drawn: Mapping[str, np.ndarray]
    known: int
    strange: int

    def result(self, bootstrap: Bootstrap) -> MetricResult:
        """A block for each score with its chance levels 0.95, 0.5 and N / (N + M)."""
        levels = (0.95, 0.5, self.known / (self.known + self.strange))
        chance: dict[str, float] = dict(zip(NUMBERS, levels, strict=True))
        size = {"n": self.known + self.strange}
        return _result(self.numbers, dict.fromkeys(self.numbers, chance), self.drawn, size, bootstrap)


def detect(known: Seen, strange: Seen, scores: Mapping[str, Scorer], bootstrap: Bootstrap) -> Detected:
    """Known against out-of-distribution images by each score; ValueError when either is empty or not finite."""
    numbers, drawn = {}, {}
    for name, score in scores.items():
        ranked = Ranked.of(score(known), score(strange), ("known", "out-of-distribution"))
        numbers[name] = ranked.numbers()
        drawn[name] = ranked.drawn(_draws(bootstrap, len(known.logits), len(strange.logits)))
    return Detected(numbers, drawn, len(known.logits), len(strange.logits))


def mean_of_sets(found: Sequence[Detected], names: Sequence[str], bootstrap: Bootstrap) -> MetricResult:
    """The mean of each number over several sets, as OpenOOD reports its near and far sets; `names` are of the sets."""
    numbers, chance, drawn = {}, {}, {}
    for score in found[0].numbers:
        numbers[score] = {key: float(np.mean([one.numbers[score][key] for one in found])) for key in NUMBERS}
        aupr = float(np.mean([one.known / (one.known + one.strange) for one in found]))
        chance[score] = {"fpr95": 0.95, "auroc": 0.5, "aupr": aupr}
        drawn[score] = np.mean([one.drawn[score] for one in found], axis=0)
    size: dict[str, Any] = {"n": found[0].known + sum(one.strange for one in found), "sets": list(names)}
    return _result(numbers, chance, drawn, size, bootstrap)


def _result(
    numbers: Mapping[str, Mapping[str, float]],
    chance: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, np.ndarray],
    size: dict[str, Any],
    bootstrap: Bootstrap,
) -> MetricResult:
    spans = {
        f"{score}.{key}": span
        for score in numbers
        for key, span in zip(NUMBERS, bootstrap.interval(drawn[score]), strict=True)
    }
    blocks = {score: {**values, "chance": chance[score]} for score, values in numbers.items()}
    return MetricResult({**blocks, **size}, spans)


def _draws(bootstrap: Bootstrap, known: int, strange: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of both sets, drawn separately."""
    other = Bootstrap(bootstrap.draws, bootstrap.level, bootstrap.seed + 1)
    right = (row for block in other.weights(strange) for row in block)
    for block in bootstrap.weights(known):
        for row in block:
            yield row, next(right)
