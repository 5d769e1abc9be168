"""Long-tailed sets: images per class, their selection, and the many, medium and few-shot classes."""

from typing import Literal

import numpy as np

Shots = Literal["many", "medium", "few"]
Profile = Literal["exponential", "step"]
Draw = Literal["nested", "published"]


def long_tail_counts(
    largest: int, classes: int, imbalance: float, profile: Profile = "exponential"
) -> np.ndarray:
    """Images of each class, at least 1: int64 [C] (Cao et al. 2019; Kasarla et al. 2022).

    Args:
        largest: n_max, images of the first class.
        classes: C, at least 2.
        imbalance: IF = n_min / n_max in (0, 1].
        profile: "exponential", n_c = n_max IF^(c / (C - 1)), or "step", n_max for the first half of the classes,
            rounded down, and n_max IF for the others (Buda et al. 2018). n_c is rounded down.

    Raises:
        ValueError: fewer than 2 classes, or an imbalance outside (0, 1].
    """
    if classes < 2 or not 0 < imbalance <= 1:
        raise ValueError(
            f"imbalance {imbalance} over {classes} classes: give 0 < imbalance <= 1 and 2 classes or more"
        )
    at = np.arange(classes)
    rank = at / (classes - 1) if profile == "exponential" else (at >= classes // 2).astype(float)
    return np.maximum(1, np.floor(largest * imbalance**rank + 1e-9)).astype(np.int64)


def long_tail(
    labels: np.ndarray,
    classes: int,
    imbalance: float,
    seed: int,
    profile: Profile = "exponential",
    draw: Draw = "nested",
) -> np.ndarray:
    """Sorted indices of the images that a profile keeps: [N] -> [M].

    n_max is the size of the smallest class, so that the profile is exact; an imbalance of 1 keeps every image.

    Args:
        labels: int64 [N].
        classes: C.
        imbalance: see `long_tail_counts`.
        profile: see `long_tail_counts`.
        seed: of the draw "nested".
        draw: "nested" draws each class by the seed, and a longer tail keeps a subset of what a shorter one keeps.
            "published" keeps the images of the code of Cao et al. 2019 at its default seed: numpy's legacy generator,
            seeded with 0, shuffles the images of one class after the other. It does not depend on `seed`, and it
            names the same images only where the set has its published order.

    Raises:
        ValueError: a class without images, or what `long_tail_counts` refuses.
    """
    if imbalance == 1:
        return np.arange(len(labels))
    sizes = np.bincount(labels, minlength=classes)
    if sizes.min() == 0:
        raise ValueError(
            f"class {int(sizes.argmin())} has no images: a long tail needs at least one per class"
        )
    counts = long_tail_counts(int(sizes.min()), classes, imbalance, profile)
    legacy, kept = np.random.RandomState(0), []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        if draw == "published":
            legacy.shuffle(members)
            kept.append(members[:count])
        else:
            order = np.random.default_rng([seed, label]).permutation(len(members))
            kept.append(members[order[:count]])
    return np.sort(np.concatenate(kept))


def shots(counts: np.ndarray) -> list[Shots]:
    """Group of each class by its training images: many above n_max / 5, few below n_max / 25, medium between.

    At n_max = 500 (CIFAR-100) these are the 100 and 20 of Liu et al. 2019; they scale with n_max.
    """
    many, few = counts.max() / 5, counts.max() / 25
    return ["many" if count > many else "few" if count < few else "medium" for count in counts]
