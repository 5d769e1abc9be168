"""Zero-shot classification: the class whose vector lies nearest.

A class vector is the lift of the mean, over names and prompts, of the projected text feature (mathematics.md,
section 2): the mean is taken in the tangent space at the origin, where it is a plain mean.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.assess.outcome import Bootstrap, Outcome
from pipeline.assess.taxonomy import Taxonomy


@runtime_checkable
class TextSide(Protocol):
    """What a class vector needs of an embedder."""

    def project_text(self, texts: Sequence[str]) -> Tensor:
        """Projected text features [K, D] before the lift."""
        ...

    def lift_text(self, features: Tensor) -> Tensor:
        """Features [K, D] placed in the space of the model."""
        ...


def class_vectors(embedder: TextSide, taxonomy: Taxonomy) -> Float[Tensor, "C D"]:
    """One point for each leaf, in the order of taxonomy.leaf_ids()."""
    sentences, owner = [], []
    for row, leaf in enumerate(taxonomy.leaves()):
        own = taxonomy.prompts_of(int(leaf))
        sentences += own
        owner += [row] * len(own)
    features = embedder.project_text(sentences)
    index = torch.tensor(owner, device=features.device)
    total = features.new_zeros(owner[-1] + 1, features.shape[1]).index_add_(0, index, features)
    return embedder.lift_text(total / torch.bincount(index)[:, None])


def rank_of_truth(scores: Float[np.ndarray, "N C"], truth: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """How many wrong classes score as high as the true one or higher: a tie counts against the model."""
    own = scores[np.arange(len(truth)), truth][:, None]
    return (scores >= own).sum(axis=1) - 1


def accuracy(
    scores: Float[np.ndarray, "N C"], truth: Int[np.ndarray, " N"], bootstrap: Bootstrap
) -> tuple[Outcome, Int[np.ndarray, " N"]]:
    """top1, top5, mean_per_class (over the classes that occur), their chance levels; and the predictions."""
    images, classes = scores.shape
    rank = rank_of_truth(scores, truth)
    hits = np.stack([rank < 1, rank < 5], axis=1).astype(np.float64)
    member = np.zeros((images, classes))
    member[np.arange(images), truth] = 1.0
    occurring = member.any(axis=0)
    member = member[:, occurring]
    per_class = (member * hits[:, :1]).sum(axis=0) / member.sum(axis=0)
    numbers = {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits[:, 1].mean()),
        "mean_per_class": float(per_class.mean()),
        "chance": 1.0 / classes,
        "chance_top5": min(5, classes) / classes,
        "images": images,
        "classes": classes,
        "classes_seen": int(occurring.sum()),
    }
    top1, top5 = bootstrap.means(hits)
    redrawn = np.nanmean(bootstrap.ratios(member * hits[:, :1], member), axis=1, keepdims=True)
    intervals = {"top1": top1, "top5": top5, "mean_per_class": bootstrap.interval(redrawn)[0]}
    return Outcome(numbers, intervals), scores.argmax(axis=1)
