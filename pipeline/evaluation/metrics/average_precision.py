"""Average precision of a ranking without ties, weighted, and its expectation in random order."""

import numpy as np
from jaxtyping import Float, Int


def precision_at(
    weight: Float[np.ndarray, "R P"], places: Int[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, "R M"], Float[np.ndarray, "R M"]]:
    """Weights of the right items and the precision at each, in R draws.

    Args:
        weight: how often each item of the ranking counts in each draw.
        places: where the right items are in it.
    """
    own = weight[:, places]
    before = np.cumsum(weight, axis=1)[:, places]
    with np.errstate(invalid="ignore"):
        return own, np.where(own > 0, np.cumsum(own, axis=1) / before, 0.0)


def plain_average(
    own: Float[np.ndarray, "R P"], precision: Float[np.ndarray, "R P"]
) -> Float[np.ndarray, " R"]:
    """Mean of the precision over the right items."""
    with np.errstate(invalid="ignore"):
        return (own * precision).sum(1) / own.sum(1)


def expected_precision(right: Int[np.ndarray, " C"], size: int) -> Float[np.ndarray, " M"]:
    """Expected average precision in random order of `size` items with `right` of them right; zeros left out.

    The item at rank i, if right, has precision (1 + (i-1)(m-1)/(n-1))/i; its mean over i is
    (H_n + (m-1)/(n-1) (n - H_n)) / n with the harmonic number H_n.
    """
    right = right[right > 0]
    harmonic = (1.0 / np.arange(1, size + 1)).sum()
    others = (right - 1) / max(size - 1, 1)
    return (harmonic + others * (size - harmonic)) / size
