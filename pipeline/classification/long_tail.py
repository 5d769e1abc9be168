"""Long-tailed sets: images per class, their selection, and the many, medium and few-shot classes."""

from typing import Literal

import numpy as np

Shots = Literal["many", "medium", "few"]


def long_tail_counts(largest: int, classes: int, imbalance: float) -> np.ndarray:
    """n_c = n_max IF^(c / (C - 1)), rounded down, at least 1: int64 [C] (Cao et al. 2019; Kasarla et al. 2022).

    Args:
        largest: n_max, images of the first class.
        classes: C, at least 2.
        imbalance: IF = n_min / n_max in (0, 1].
    """
    if classes < 2 or not 0 < imbalance <= 1:
        raise ValueError(
            f"imbalance {imbalance} over {classes} classes: give 0 < imbalance <= 1 and 2 classes or more"
        )
    share = imbalance ** (np.arange(classes) / (classes - 1))
    return np.maximum(1, np.floor(largest * share + 1e-9)).astype(np.int64)


def long_tail(labels: np.ndarray, classes: int, imbalance: float, seed: int) -> np.ndarray:
    """Sorted indices of the images of an exponential profile: [N] -> [M].

    n_max is the size of the smallest class, so that the profile is exact; 1 keeps every image. Images are drawn by the
    seed, and the images of a longer tail are a subset of a shorter one's.
    """
    if imbalance == 1:
        return np.arange(len(labels))
    sizes = np.bincount(labels, minlength=classes)
    if sizes.min() == 0:
        raise ValueError(
            f"class {int(sizes.argmin())} has no images: a long tail needs at least one per class"
        )
    counts = long_tail_counts(int(sizes.min()), classes, imbalance)
    kept = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, label]).permutation(len(members))
        kept.append(members[order[:count]])
    return np.sort(np.concatenate(kept))


def shots(counts: np.ndarray) -> list[Shots]:
    """Group of each class by its training images: many above n_max / 5, few below n_max / 25, medium between.

    At n_max = 500 (CIFAR-100) these are the 100 and 20 of Liu et al. 2019; they scale with n_max.
    """
    many, few = counts.max() / 5, counts.max() / 25
    return ["many" if count > many else "few" if count < few else "medium" for count in counts]
