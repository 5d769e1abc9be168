"""Comparison of a detector with the post-processing of the library's own processor."""

from collections.abc import Callable

import numpy as np
import torch

from hyco.models.grounding.detector import Detector

TOLERANCE = 1e-4
PHRASES = [["a red duck", "the blue car"], ["a dog"], ["a man", "two big ducks on the tree", "a ball"], []]
SIZES = [(64, 64), (120, 80), (70, 130), (50, 50)]
"""(height, width) of the images that are asked for PHRASES."""


def parity_images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def compare(
    detector: Detector,
    images: list[np.ndarray],
    per_phrase: int,
    by_the_library: Callable[[int, int], dict[str, torch.Tensor]],
) -> None:
    """All images in one call of the detector; by_the_library(image number, phrase number) -> result in pixels."""
    found = detector(images, PHRASES)
    assert [len(set(one.phrases)) for one in found] == [2, 1, 3, 0]
    for index, (image, phrases, ours) in enumerate(zip(images, PHRASES, found, strict=True)):
        height, width = image.shape[:2]
        for number in range(len(phrases)):
            result = by_the_library(index, number)
            scores, order = result["scores"].sort(descending=True, stable=True)
            boxes = result["boxes"][order] / torch.tensor([width, height, width, height])
            boxes, scores = boxes[:per_phrase].clamp(0, 1), scores[:per_phrase]
            inside = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)  # OWLv2's may lie in the padding
            mine = ours.phrases == number
            assert inside.any() and scores.max() - scores.min() > 10 * TOLERANCE
            np.testing.assert_allclose(ours.scores[mine], scores[inside], atol=TOLERANCE)
            np.testing.assert_allclose(ours.boxes[mine], boxes[inside], atol=TOLERANCE)
