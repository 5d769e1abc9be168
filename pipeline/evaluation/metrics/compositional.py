"""Does the true caption score above a foil with nearly the same words? Chance is one half; a tie is a miss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import Score

CHUNK = 128


def prefers(
    score: Score,
    images: Float[Tensor, "N D"],
    captions: Float[Tensor, "N D"],
    foils: Float[Tensor, "N D"],
) -> Bool[np.ndarray, " N"]:
    """Whether each image scores its caption above its foil."""

    def paired(texts: Tensor) -> Tensor:
        blocks = zip(torch.split(images, CHUNK), torch.split(texts, CHUNK), strict=True)
        return torch.cat([score(a, b).diagonal() for a, b in blocks])

    return (paired(captions) > paired(foils)).cpu().numpy()


def accuracy_by_kind(
    right: Bool[np.ndarray, " N"], kinds: Sequence[str], images: Int[np.ndarray, " N"], bootstrap: Bootstrap
) -> MetricResult:
    """One block per kind, in order of first occurrence, and "mean" of the kinds: the fraction of correct answers.

    Foils of an image are drawn together.
    """
    names, hits = np.array(kinds), right.astype(np.float64)
    numbers, spans = {}, {}
    for kind in dict.fromkeys(kinds):
        own = names == kind
        numbers[kind] = _block(float(hits[own].mean()), images[own])
        spans[f"{kind}.accuracy"] = bootstrap.hits(hits[own][:, None], images[own])[0]
    mean, spans["mean.accuracy"] = bootstrap.mean_of_groups(hits, names, images)
    numbers["mean"] = _block(mean, images)
    return MetricResult(numbers, spans)


def _block(accuracy: float, images: Int[np.ndarray, " N"]) -> dict[str, Any]:
    size = {"n": len(np.unique(images)), "pairs": len(images)}
    return {"accuracy": accuracy, "chance": {"accuracy": 0.5}, **size}
