"""Boxes as corners (x0, y0, x1, y1): intersection, IoU and non-maximum suppression.

This module imports NumPy only, so packing uses it without torch; `area`, `intersection` and `iou` also take torch
tensors and pass gradients on.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

SMALLEST_UNION = 1e-12  # below it the IoU goes to 0 instead of 0 / 0


def area(boxes: Any) -> Any:
    """Areas of boxes [..., 4] -> [...]; 0 where a side is negative."""
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1)


def intersection(a: Any, b: Any) -> Any:
    """Areas of the intersection of boxes a [..., 4] and b [..., 4], broadcast against each other -> [...]."""
    maximum, minimum = _extrema(a)
    return (minimum(a[..., 2:], b[..., 2:]) - maximum(a[..., :2], b[..., :2])).clip(min=0).prod(-1)


def enclosing(a: Any, b: Any) -> Any:
    """Areas of the smallest boxes around a [..., 4] and b [..., 4], broadcast against each other -> [...]."""
    maximum, minimum = _extrema(a)
    return (maximum(a[..., 2:], b[..., 2:]) - minimum(a[..., :2], b[..., :2])).clip(min=0).prod(-1)


def iou(a: Any, b: Any) -> Any:
    """Intersection over union of boxes that broadcast against each other, [...]; 0 for two boxes without area.

    Pairwise: iou(a[:, None], b[None]) of [N, 4] and [M, 4] is [N, M].
    """
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared).clip(min=SMALLEST_UNION)


def nms(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    max_iou: float,
    groups: Int[np.ndarray, " N"] | None = None,
) -> Bool[np.ndarray, " N"]:
    """Greedy non-maximum suppression, in many groups at once.

    Works rank by rank: the best box of each group removes the worse boxes that overlap it, then the second best of the
    remaining ones does, and so on; each step is one vector operation over all groups.

    Args:
        boxes: corners [N, 4].
        scores: [N]; of equal scores the earlier box counts as better.
        max_iou: a box is removed when its IoU with a better one is above this.
        groups: [N]; boxes compete only within their group. None: all compete.

    Returns:
        Boolean [N], true for the boxes that remain.
    """
    total = len(boxes)
    groups = np.zeros(total, np.int64) if groups is None else groups
    order = np.lexsort((np.arange(total), -scores, groups))
    boxes, groups = boxes[order].astype(np.float64), groups[order]
    first = np.searchsorted(groups, groups)  # where each box's group begins
    rank = np.arange(total) - first
    areas = area(boxes)
    alive = np.ones(total, bool)
    for leading in range(int(rank.max(initial=0))):
        rivals = np.flatnonzero((rank > leading) & alive)
        leaders = first[rivals] + leading
        rivals, leaders = rivals[alive[leaders]], leaders[alive[leaders]]
        if len(rivals) == 0:
            continue
        shared = intersection(boxes[rivals], boxes[leaders])
        union = areas[rivals] + areas[leaders] - shared
        alive[rivals[shared > max_iou * union]] = (
            False  # a product, so that a box without area removes nothing
        )
    stays = np.empty(total, bool)
    stays[order] = alive
    return stays


SAME_BOX = 0.7
"""IoU from which boxes of two phrases are one thing, for `competed`."""


def competed(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    phrases: Int[np.ndarray, " N"],
    images: Int[np.ndarray, " N"],
    exponent: float,
) -> Float[np.ndarray, " N"]:
    """Scores of boxes in competition with the other phrases of their image, [N].

    A score s becomes s * min(1, s / r)^exponent, where r is the best score of another phrase on the same box (IoU of
    SAME_BOX or more): a goose's score on the duck's box falls when the prompt also has the duck.

    Args:
        boxes: corners [N, 4].
        scores: [N], above 0.
        phrases: number of each box's phrase, [N].
        images: number of each box's image, [N]; boxes compete within it.
        exponent: 0 leaves the scores as they are.
    """
    result = scores.astype(np.float64)
    if exponent == 0:
        return result
    order = np.argsort(images, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(images[order])) + 1):
        other = phrases[rows][:, None] != phrases[rows]
        if not other.any():
            continue
        near = other & (iou(boxes[rows][:, None], boxes[rows]) >= SAME_BOX)
        rival = np.where(near, scores[rows], 0.0).max(axis=1)
        result[rows] *= np.minimum(1.0, scores[rows] / np.maximum(rival, 1e-12)) ** exponent
    return result


def _extrema(like: Any) -> tuple[Any, Any]:
    """(maximum, minimum), elementwise, of the library of `like` (NumPy or torch)."""
    if isinstance(like, np.ndarray):
        return np.maximum, np.minimum
    import torch

    return torch.maximum, torch.minimum
