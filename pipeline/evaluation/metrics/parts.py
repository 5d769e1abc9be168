"""Part-phrase retrieval: from a crop to the phrases that name it, and from a phrase to its crops.

Queries and galleries are distinct: each crop once (with every phrase written for its box), each phrase once.
A crop that fits a phrase which was not written for it counts as wrong, so the maximum is below 1.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import LorentzOrder, Score
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, both_ways


def part_retrieval(
    score: Score | LorentzOrder,
    crops: Float[Tensor, "P D"],
    phrases: Float[Tensor, "K D"],
    pairing: Pairing,
    scenes: Int[np.ndarray, " P"],
    bootstrap: Bootstrap,
    ks: Sequence[int] = (1, 5, 10),
) -> MetricResult:
    """R@k of crop_to_phrase and phrase_to_crop, each with its chance level.

    `pairing` pairs crops (as its images) with phrases (as its texts). From crop to phrase the crops of one scene
    are drawn together, from phrase to crop the phrases one by one; each direction has their number as "n".
    """
    names = ("crop_to_phrase", "phrase_to_crop")
    outcome = both_ways(
        score, crops, phrases, pairing, bootstrap, names=names, copies=False, clusters=scenes, ks=ks
    )
    outcome.numbers["crop_to_phrase"]["n"] = len(np.unique(scenes[pairing.image]))
    outcome.numbers["phrase_to_crop"]["n"] = len(pairing.texts)
    outcome.numbers.update(crops=pairing.images, phrases=len(pairing.texts))
    return outcome
