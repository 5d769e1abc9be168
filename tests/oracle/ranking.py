"""References of ranked metrics, from their definitions: hierarchies as pairs, AP with ties, 11 points, prompts."""

import math
from collections.abc import Sequence

import numpy as np

from tests.oracle.evaluation_metrics import exterior_angle, half_aperture


def pairs(
    captions: Sequence[Sequence[str]], limit: int
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(image, caption) pairs: an image's own captions; the last captions of the others, without its own, `limit`."""
    right, wrong = [], []
    for image, own in enumerate(captions):
        right += [(image, text) for text in own]
        pool = [captions[other][-1] for other in range(len(captions)) if other != image]
        wrong += [(image, text) for text in [text for text in pool if text not in own][:limit]]
    return right, wrong


def margin(caption: np.ndarray, image: np.ndarray, c: float, k: float) -> float:
    """Half-aperture of the caption minus the exterior angle of the image at it."""
    return half_aperture(caption, c, k) - exterior_angle(caption, image, c)


def clamped_angle(caption: np.ndarray, image: np.ndarray, c: float) -> float:
    """max(0, 1 - 2 phi / pi)."""
    return max(0.0, 1 - 2 * exterior_angle(caption, image, c) / math.pi)


def average_precision(scores: Sequence[float], right: Sequence[int]) -> float:
    """Mean over the right items of the precision among the items before or at them, wrong ones first among ties."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], right[n]))
    hits, found = 0, []
    for rank, item in enumerate(order, start=1):
        if right[item]:
            hits += 1
            found.append(hits / rank)
    return math.fsum(found) / len(found)


def eleven_points(scores: Sequence[float], right: Sequence[int]) -> float:
    """Mean over the recalls 0, 0.1 ... 1 of the largest precision at that recall or higher."""
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], right[n]))
    hits, curve, total = 0, [], sum(right)
    for rank, item in enumerate(order, start=1):
        hits += right[item]
        curve.append((hits, hits / rank))
    levels = []
    for tenth in range(11):
        levels.append(max(precision for hits, precision in curve if 10 * hits >= tenth * total))
    return math.fsum(levels) / 11


def mean_over_classes(average, scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of an average precision over the classes that an image shows; label -1 leaves the image out of the class."""
    found = []
    for column in range(labels.shape[1]):
        kept = [row for row in range(len(labels)) if labels[row, column] >= 0]
        right = [int(labels[row, column]) for row in kept]
        if any(right):
            found.append(average([scores[row, column] for row in kept], right))
    return math.fsum(found) / len(found)


def over_prompts(hits: Sequence[Sequence[int]], truth: Sequence[int]) -> tuple[float, float, float]:
    """Mean, minimum and range over the prompts of the mean over the classes of the share of hits."""
    values = []
    for row in hits:
        each = [
            [hit for hit, label in zip(row, truth, strict=True) if label == one] for one in sorted(set(truth))
        ]
        values.append(math.fsum(sum(own) / len(own) for own in each) / len(each))
    return math.fsum(values) / len(values), min(values), max(values) - min(values)
