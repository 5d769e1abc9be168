"""Zero-shot with several labels per image: mean average precision over the classes.

For each class all images are ranked by their score for it. AP is the mean, over the images that show the class, of the
precision at their rank; images marked as difficult for the class are left out of its ranking. `map_11` is VOC 2007's
own AP: the mean, over the recalls 0, 0.1, ..., 1, of the largest precision at that recall or a higher one (Everingham
et al. 2010). Wrong images go first among ties. Classes that no image shows are left out of the mean.
"""

import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from hyco.pipeline.evaluation.metrics.average_precision import expected_precision, plain_average, precision_at
from hyco.pipeline.evaluation.metrics.bootstrap import BLOCK, Bootstrap, MetricResult

DIFFICULT = -1
RECALLS = np.arange(11) / 10
Average = Callable[[Float[np.ndarray, "R P"], Float[np.ndarray, "R P"]], Float[np.ndarray, " R"]]
"""(weights of the right items, precision at each) in R draws -> the average precision of each draw."""


def eleven_points(
    own: Float[np.ndarray, "R P"], precision: Float[np.ndarray, "R P"]
) -> Float[np.ndarray, " R"]:
    """Mean, over eleven recalls, of the largest precision at that recall or a higher one."""
    with np.errstate(invalid="ignore"):
        recall = np.cumsum(own, axis=1) / own.sum(axis=1, keepdims=True)
    best = [np.where(recall >= level - 1e-12, precision, 0.0).max(axis=1) for level in RECALLS]
    return np.where(own.sum(axis=1) > 0, np.mean(best, axis=0), np.nan)


AVERAGES: dict[str, Average] = {"map": plain_average, "map_11": eleven_points}


def multilabel(
    scores: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, "N C"],
    bootstrap: Bootstrap,
    names: tuple[str, ...] = ("map",),
) -> MetricResult:
    """The numbers `names` of AVERAGES, their chance levels and intervals; labels are 1, 0 or DIFFICULT.

    Resampled images occur repeatedly and raise each other's precision, so an interval is moved down by the difference
    of the mean of the draws from the value. ValueError when no image shows any class.
    """
    orders, places = [], []
    for label, score in zip(labels.T, scores.T, strict=True):
        if (label == 1).any():
            ranked = np.lexsort((label == 1, -score))
            ranked = ranked[label[ranked] != DIFFICULT]
            orders.append(ranked)
            places.append(np.flatnonzero(label[ranked] == 1))
    if not orders:
        raise ValueError("no image shows any of the classes: nothing can be ranked")

    def means(weight: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R M"]:
        each = [
            _averages(weight[:, order], place, names) for order, place in zip(orders, places, strict=True)
        ]
        with (
            warnings.catch_warnings()
        ):  # a draw without an image of any class is NaN, and left out of the interval
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(each, axis=0)

    values = means(np.ones((1, len(labels))))[0]
    rows = max(1, BLOCK // len(labels))
    drawn = np.concatenate(
        [
            means(weight[start : start + rows])
            for weight in bootstrap.weights(len(labels))
            for start in range(0, len(weight), rows)
        ]
    )
    spans = bootstrap.interval(drawn - np.nanmean(drawn, axis=0) + values)
    sizes = [(np.array([len(place)]), len(order)) for place, order in zip(places, orders, strict=True)]
    chance = np.mean([expected_precision(*size) for size in sizes])
    numbers = dict(zip(names, values.tolist(), strict=True))
    return MetricResult(
        numbers
        | {
            "chance": {"map": float(chance)},
            "n": len(labels),
            "classes": labels.shape[1],
            "classes_seen": len(orders),
            "labels": int((labels == 1).sum()),
            "difficult": int((labels == DIFFICULT).sum()),
        },
        dict(zip(names, spans, strict=True)),
    )


def _averages(
    weight: Float[np.ndarray, "R P"], places: Int[np.ndarray, " M"], names: tuple[str, ...]
) -> Float[np.ndarray, "R K"]:
    """The averages of one class in R draws, from the images in the order of their rank."""
    own, precision = precision_at(weight, places)
    return np.stack([AVERAGES[name](own, precision) for name in names], axis=1)
