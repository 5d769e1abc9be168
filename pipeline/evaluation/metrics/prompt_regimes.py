"""Prompt sensitivity: zero-shot accuracy under each of several regimes, and its mean, worst and range over them.

A regime is a list of prompts: the bare name, each prompt of the set alone, and all of them together. The accuracy is
the mean per class.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from hyco.pipeline.datasets.dataset_card import PLAIN
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult

BARE = "{}"
ALL = "all"


def regimes(prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The regimes of a set by name: each prompt by itself, and "all" where there are several."""
    single = dict.fromkeys((BARE, *PLAIN, *prompts))
    return {prompt: (prompt,) for prompt in single} | ({ALL: tuple(prompts)} if len(prompts) > 1 else {})


def prompt_sensitivity(
    hits: Mapping[str, Float[np.ndarray, " N"]],
    truth: Int[np.ndarray, " N"],
    classes: int,
    bootstrap: Bootstrap,
) -> MetricResult:
    """mean, worst and range (largest minus smallest) over the regimes; `regimes` lists the accuracy of each.

    Args:
        hits: by regime, whether each image was named correctly.
        truth: the class of each image.
        classes: number of classes.
        bootstrap: draws images; the worst regime is chosen again in each draw.
    """
    order = np.argsort(truth, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(truth[order]) > 0])
    rows = np.stack(list(hits.values()))[:, order].astype(np.float64)

    def accuracies(weight: Float[np.ndarray, "R N"]) -> Float[np.ndarray, "R K"]:
        drawn = np.add.reduceat(weight[:, order], starts, axis=1)
        with np.errstate(invalid="ignore"):
            each = [np.add.reduceat(weight[:, order] * row, starts, axis=1) / drawn for row in rows]
        return np.nanmean(each, axis=2).T

    def summary(values: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R 3"]:
        return np.stack([values.mean(1), values.min(1), np.ptp(values, axis=1)], axis=1)

    own = accuracies(np.ones((1, len(truth))))
    drawn = np.concatenate([summary(accuracies(weight)) for weight in bootstrap.weights(len(truth))])
    names = ("mean", "worst", "range")
    numbers = dict(zip(names, summary(own)[0].tolist(), strict=True))
    return MetricResult(
        numbers
        | {
            "chance": dict.fromkeys(("mean", "worst"), 1 / classes),
            "n": len(truth),
            "regimes": [[name, value] for name, value in zip(hits, own[0].tolist(), strict=True)],
        },
        dict(zip(names, bootstrap.interval(drawn), strict=True)),
    )
