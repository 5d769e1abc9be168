"""Metrics on ground-truth boxes: classification of each box, and average precision of each class.

Classification: the crop of every box against all class names; mean over the classes that occur
(mathematics.md, section 2).

Average precision: the protocol of detection with given locations (RegionCLIP, Zhong et al. 2022,
"zero-shot inference with ground-truth boxes"): every box is scored for every class, for each class all boxes of
all images are ranked by that score, and a box is right when its label is the class. AP is the mean over the
right boxes of the precision at their rank (no interpolation), wrong boxes first among ties; mAP its mean over the
classes that have boxes. "map" ranks by the softmax over the classes of the model's scale times its score, as a
detector's head does; "map_distance" by the score itself, minus the distance. Chance is the exact expectation
over random orders. Localisation plays no part: the figures are not comparable with a detector's.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.pipeline.evaluation.metrics.average_precision import expected_precision, plain_average, precision_at
from hyco.pipeline.evaluation.metrics.bootstrap import BLOCK, Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import Score

CHUNK = 8192  # boxes scored at once


def measure_boxes(
    score: Score,
    crops: Float[Tensor, "P D"],
    classes: Float[Tensor, "C D"],
    truth: Int[np.ndarray, " P"],
    images: Int[np.ndarray, " P"],
    scale: float,
    bootstrap: Bootstrap,
) -> MetricResult:
    """The blocks classification (top1, mean_per_class) and detection (map, map_distance).

    `truth` is the class of each box, `images` the image it is from: boxes of an image are drawn together.
    `scale` is the model's inverse temperature.
    """
    scores = np.concatenate(
        [score(block, classes).cpu().numpy() for block in torch.split(crops, CHUNK)]
    ).astype(np.float64)
    logits = scale * scores
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    named = classification(scores, truth, images, bootstrap)
    chance = float(expected_precision(np.bincount(truth), len(truth)).mean())
    ranked, spans = {}, {}
    for key, table in (("map", shares), ("map_distance", scores)):
        ranked[key], spans[f"detection.{key}"] = mean_average_precision(table, truth, images, bootstrap)
    size = {"n": len(np.unique(images)), "boxes": len(truth), "classes": scores.shape[1]}
    size["classes_seen"] = len(np.unique(truth))
    return MetricResult(
        {
            "classification": {**named.numbers, **size},
            "detection": {**ranked, "chance": dict.fromkeys(ranked, chance), **size},
        },
        {f"classification.{key}": span for key, span in named.intervals.items()} | spans,
    )


def classification(
    scores: Float[np.ndarray, "P C"],
    truth: Int[np.ndarray, " P"],
    images: Int[np.ndarray, " P"],
    bootstrap: Bootstrap,
) -> MetricResult:
    """top1 and mean_per_class of the highest score; a tied wrong class counts as higher."""
    own = scores[np.arange(len(truth)), truth]
    hits = ((scores >= own[:, None]).sum(axis=1) == 1).astype(np.float64)
    mean, redrawn = bootstrap.mean_of_groups(hits, truth, images)
    numbers: dict = {
        "top1": float(hits.mean()),
        "mean_per_class": mean,
        "chance": dict.fromkeys(("top1", "mean_per_class"), 1.0 / scores.shape[1]),
    }
    top1 = bootstrap.hits(hits[:, None], images)[0]
    return MetricResult(numbers, {"top1": top1, "mean_per_class": redrawn})


def mean_average_precision(
    scores: Float[np.ndarray, "P C"],
    truth: Int[np.ndarray, " P"],
    images: Int[np.ndarray, " P"],
    bootstrap: Bootstrap,
) -> tuple[float, tuple[float, float]]:
    """Mean over the classes that occur of their average precision, and its interval.

    Resampled images occur repeatedly, and copies of a right box raise each other's precision: the draws are higher than
    the value, so the interval is moved down by the difference of the means.
    """
    _, image = np.unique(images, return_inverse=True)
    orders, places = [], []
    for label in np.unique(truth):
        right = truth == label
        order = np.lexsort((right, -scores[:, label]))
        orders.append(order)
        places.append(np.flatnonzero(right[order]))

    def means(weight: Float[np.ndarray, "R P"]) -> Float[np.ndarray, " R"]:
        each = [
            plain_average(*precision_at(weight[:, order], place))
            for order, place in zip(orders, places, strict=True)
        ]
        return np.nanmean(each, axis=0)

    value = float(means(np.ones((1, len(truth))))[0])
    samples = [means(weight)[:, None] for weight in _by_box(bootstrap, image)]
    drawn = np.concatenate(samples)
    return value, bootstrap.interval(drawn - drawn.mean() + value)[0]


def _by_box(bootstrap: Bootstrap, image: Int[np.ndarray, " P"]) -> Iterator[Float[np.ndarray, "R P"]]:
    """How often each box occurs in each draw over images, in blocks of bounded memory."""
    rows = max(1, BLOCK // len(image))
    for weight in bootstrap.weights(int(image.max()) + 1):
        for start in range(0, len(weight), rows):
            yield weight[start : start + rows, image]
