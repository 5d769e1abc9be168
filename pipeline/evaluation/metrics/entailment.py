"""Entailment as a ranking of (image, caption) pairs: does an image lie in the cone of its captions, and of no others?

An image's own captions, from the most general to the most specific, are its positives; the most specific captions of
other images are its negatives. The image is the specific node and the caption the general one. Pairs of all images
form one ranking, measured by average precision and AUROC (see `ranked`). Readings of the geometry:

    margin      half-aperture of the caption minus exterior angle of the image (positive inside the cone)
    angle       max(0, 1 - 2 phi / pi) of the exterior angle phi: 0 wherever phi is more than a right angle
    similarity  the model's own score, which knows no cones: what contrast alone gives
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyco.models.hyperbolic import product
from hyco.pipeline.evaluation.metrics.average_precision import expected_precision
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import Score
from hyco.pipeline.evaluation.metrics.ranked import NUMBERS, Ranked

CHUNK, ROWS = 8192, 256  # pairs, and images against all texts, scored at once
NEGATIVES = 100  # of an image, as published


def entailment_pairs(
    hierarchies: Sequence[Sequence[int]], limit: int = NEGATIVES
) -> tuple[Int[np.ndarray, "P 2"], Int[np.ndarray, "M 2"]]:
    """Positive and negative (image, text) pairs.

    Args:
        hierarchies: the texts of each image, general to specific, as indices of distinct texts.
        limit: maximum number of negatives of an image: the last texts of the first other images, in their order,
            without texts that are positives of the image.
    """
    last = [own[-1] for own in hierarchies]
    positives, negatives = [], []
    for image, own in enumerate(hierarchies):
        positives += [(image, text) for text in own]
        others = (text for place, text in enumerate(last) if place != image and text not in set(own))
        negatives += [(image, text) for text, _ in zip(others, range(limit), strict=False)]
    return tuple(np.array(pairs, np.int64).reshape(-1, 2) for pairs in (positives, negatives))  # pyright: ignore[reportReturnType]


def pair_scores(
    score: Score,
    images: Float[Tensor, "B D"],
    texts: Float[Tensor, "K D"],
    pairs: Int[np.ndarray, "P 2"],
    curvatures: Float[Tensor, " k"] | None,
    aperture: float,
) -> dict[str, Float[np.ndarray, " P"]]:
    """By the name of the reading, the score of each (image, text) pair; cones need a curvature.

    `aperture` is the constant K of the half-aperture asin(2K / r). Cones are read in float64.
    """
    index = torch.from_numpy(pairs).to(images.device)
    blocks = [score(images[start : start + ROWS], texts) for start in range(0, len(images), ROWS)]
    found = {"similarity": torch.cat(blocks)[index[:, 0], index[:, 1]]}
    if curvatures is not None:
        c, factors = curvatures.double(), len(curvatures)
        angles, margins = [], []
        for image, text in (part.T for part in torch.split(index, CHUNK)):
            general, specific = texts[text].double(), images[image].double()
            phi = product.exterior_angle(general, specific, c, factors)
            angles.append((1 - 2 * phi.mean(-1) / torch.pi).clamp(min=0))
            margins.append((product.half_aperture(general, c, factors, aperture) - phi).mean(-1))
        found = {"margin": torch.cat(margins), "angle": torch.cat(angles)} | found
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def entailment(
    scores: dict[str, Float[np.ndarray, " P"]],
    pairs: Int[np.ndarray, "P 2"],
    positives: int,
    bootstrap: Bootstrap,
) -> MetricResult:
    """One block per reading: ap, auroc and the numbers of pairs.

    The first `positives` pairs are positives. Pairs of an image are drawn together. Many `zero_pairs`, which have the
    score 0, mean that a reading is saturated.
    """
    _, image = np.unique(pairs[:, 0], return_inverse=True)
    count = int(image.max()) + 1
    chance = {"ap": float(expected_precision(np.array([positives]), len(pairs))[0]), "auroc": 0.5}
    numbers, spans = {}, {}
    for name, values in scores.items():
        ranked = Ranked.of(values[:positives], values[positives:], ("positive", "negative"))
        whole = ranked.numbers()
        draws = (
            (row[image[:positives]], row[image[positives:]])
            for weights in bootstrap.weights(count)
            for row in weights
        )
        around = dict(zip(NUMBERS, bootstrap.interval(ranked.drawn(draws)), strict=True))
        numbers[name] = {
            "ap": whole["aupr"],
            "auroc": whole["auroc"],
            "chance": chance,
            "n": count,
            "pairs": len(pairs),
            "positives": positives,
            "zero_pairs": int((values == 0).sum()),
        }
        spans |= {f"{name}.ap": around["aupr"], f"{name}.auroc": around["auroc"]}
    return MetricResult(numbers, spans)
