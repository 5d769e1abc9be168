"""Zero-shot classification: the class whose vector lies nearest.

A class vector is the lift of the mean, over names and prompts, of the projected text feature (MERU; mathematics.md,
section 2): the mean is taken in the tangent space at the origin, where it is a plain mean. In Euclidean geometry it
is the normalised mean of the unit vectors of the prompts (CLIP).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import Score
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy, fill

BLOCK = 4096  # images scored at once


@runtime_checkable
class TextSide(Protocol):
    """The part of an embedder's interface that class vectors need."""

    @property
    def curvature(self) -> float | None:
        """None in Euclidean geometry."""
        ...

    def project_text(self, texts: Sequence[str]) -> Tensor:
        """Projected text features [K, D] before the lift."""
        ...

    def lift_text(self, features: Tensor) -> Tensor:
        """Features [K, D] as points of the model's space."""
        ...


def class_vectors(embedder: TextSide, taxonomy: Taxonomy) -> Float[Tensor, "C D"]:
    """One point for each leaf, in the order of taxonomy.leaf_ids()."""
    return vectors_of(embedder, [taxonomy.names[int(leaf)] for leaf in taxonomy.leaves()], taxonomy.prompts)


def vectors_of(
    embedder: TextSide, names: Sequence[Sequence[str]], prompts: Sequence[str], *, verbatim: bool = False
) -> Float[Tensor, "C D"]:
    """One point for each class: the mean over every prompt with every name of it.

    `verbatim` puts a name into a prompt as it is ("a photo of a apple"), as the published evaluations do.
    """
    sentences, owner = [], []
    for row, own in enumerate(names):
        sentences += [
            prompt.replace("{}", name) if verbatim else fill(prompt, name)
            for prompt in prompts
            for name in own
        ]
        owner += [row] * (len(prompts) * len(own))
    features = embedder.project_text(sentences)
    if embedder.curvature is None:
        features = embedder.lift_text(features)
    index = torch.tensor(owner, device=features.device)
    total = features.new_zeros(len(names), features.shape[1]).index_add_(0, index, features)
    return embedder.lift_text(total / torch.bincount(index)[:, None])


def rank_of_truth(scores: Float[np.ndarray, "N C"], truth: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Number of wrong classes that score at least as high as the true one: a tie counts against the model."""
    own = scores[np.arange(len(truth)), truth][:, None]
    return (scores >= own).sum(axis=1) - 1


def rank_and_answer(
    score: Score, points: Float[Tensor, "N D"], vectors: Float[Tensor, "C D"], truth: Int[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Rank of the true class, and the nearest class, in blocks of images."""
    ranks, answers = [], []
    for start in range(0, len(points), BLOCK):
        scores = score(points[start : start + BLOCK], vectors).cpu().numpy()
        ranks.append(rank_of_truth(scores, truth[start : start + BLOCK]))
        answers.append(scores.argmax(axis=1))
    return np.concatenate(ranks), np.concatenate(answers)


def set_accuracy(
    rank: Int[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    classes: int,
    bootstrap: Bootstrap,
    answer: Int[np.ndarray, " N"] | None = None,
) -> MetricResult:
    """top1, top5 and mean_per_class (over the classes that occur), each with its chance level.

    With `answer`, top1 and mean_per_class are those of the published evaluations: a tie is the first class of the
    nearest, and the mean also counts a class that is predicted and never occurs, with 0.
    """
    hits = np.stack([rank < 1 if answer is None else answer == truth, rank < 5], axis=1).astype(np.float64)
    top1, top5 = bootstrap.hits(hits)
    mean, redrawn = mean_per_class(hits[:, 0], truth, bootstrap, answer)
    numbers: dict = {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits[:, 1].mean()),
        "mean_per_class": mean,
        "chance": {"top1": 1 / classes, "top5": min(5, classes) / classes, "mean_per_class": 1 / classes},
        "n": len(truth),
        "classes": classes,
        "classes_seen": len(np.unique(truth)),
    }
    return MetricResult(numbers, {"top1": top1, "top5": top5, "mean_per_class": redrawn})


def mean_per_class(
    hits: Float[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    bootstrap: Bootstrap,
    answer: Int[np.ndarray, " N"] | None = None,
) -> tuple[float, tuple[float, float]]:
    """Mean over the occurring classes of the fraction of hits, and its interval.

    With `answer`, a class that is predicted and does not occur (in a draw: is not drawn) counts with 0.
    Images are sorted by class once; a draw then sums its weights class by class, so that a thousand classes cost as
    much as one.
    """
    order, starts = _by_class(truth)
    told = None if answer is None else np.concatenate([truth, answer])
    right = hits[order]
    samples = []
    for weight in bootstrap.weights(len(truth)):
        counted = None if told is None else _drawn(np.concatenate([weight, weight], axis=1), told)
        weight = weight[:, order]
        drawn = np.add.reduceat(weight, starts, axis=1)
        with np.errstate(invalid="ignore"):
            share = np.add.reduceat(weight * right, starts, axis=1) / drawn
        total = np.nansum(share, axis=1)
        samples.append((total / ((drawn > 0).sum(axis=1) if counted is None else counted))[:, None])
    own = np.add.reduceat(right, starts) / np.diff(np.r_[starts, len(truth)])
    classes = len(own) if told is None else len(np.unique(told))
    span = bootstrap.exact(bootstrap.interval(np.concatenate(samples))[0], hits, np.ones_like(hits))
    return float(own.sum() / classes), span


def _by_class(label: Int[np.ndarray, " N"]) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " K"]]:
    """The order that sorts images by class, and where each class begins in it."""
    order = np.argsort(label, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(label[order]) > 0])


def _drawn(weight: Float[np.ndarray, "S N"], label: Int[np.ndarray, " N"]) -> Int[np.ndarray, " S"]:
    """Number of classes that each draw holds."""
    order, starts = _by_class(label)
    return (np.add.reduceat(weight[:, order], starts, axis=1) > 0).sum(axis=1)


def accuracy(
    scores: Float[np.ndarray, "N C"], truth: Int[np.ndarray, " N"], bootstrap: Bootstrap
) -> tuple[MetricResult, Int[np.ndarray, " N"]]:
    """As `set_accuracy`, with the chance levels as metrics.json has them (flat); and the predictions."""
    images, classes = scores.shape
    found = set_accuracy(rank_of_truth(scores, truth), truth, classes, bootstrap)
    chance = found.numbers.pop("chance")
    found.numbers.pop("n")
    found.numbers.update(chance=chance["top1"], chance_top5=chance["top5"], images=images)
    return found, scores.argmax(axis=1)
