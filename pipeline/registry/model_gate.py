"""The gate: whether a challenger may replace the champion, by metrics measured on the same images.

A metric is worse when the champion's value lies beyond the challenger's bootstrap interval: within it the difference
may be due to the sample of images. One worse metric refuses the challenger.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from pipeline.config import Config
from pipeline.evaluation.metrics.catalog import find


class GateConfig(Config):
    """Options of the gate."""

    metrics: tuple[str, ...] = (
        "zero_shot.top1",
        "retrieval.image_to_text.r5",
        "retrieval.text_to_image.r5",
        "parts.crop_to_phrase.r5",
        "hierarchy.jaccard",
    )
    """Dotted names in metrics.json, such as "zero_shot.top1". A metric that neither model has is skipped (no
    taxonomy was given, for example); one that only the challenger lacks refuses it.
    """
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    """How much worse than its interval allows a metric may be, as a fraction of the champion's value."""

    @field_validator("metrics")
    @classmethod
    def _named(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given:
            raise ValueError("a gate needs at least one metric, such as zero_shot.top1")
        for name in given:
            higher_is_better(name)
        return given


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of both models: `interval` is the challenger's, None where the metric has none; `worse` decides."""

    metric: str
    challenger: float | None
    champion: float | None
    interval: tuple[float, float] | None
    worse: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the challenger passes, the reason in one line, and each comparison."""

    passed: bool
    reason: str
    comparisons: tuple[Comparison, ...]


def judge(challenger: dict[str, Any], champion: dict[str, Any] | None, config: GateConfig) -> Verdict:
    """Compare two metrics.json of the same evaluation. Without a champion every evaluated challenger passes.

    Raises ValueError when the two were evaluated on different images, or no named metric was measured.
    """
    if champion is not None and _counts(challenger) != _counts(champion):
        raise ValueError(
            f"challenger and champion were assessed on different images ({challenger.get('assessed')} and "
            f"{champion.get('assessed')}): assess both on the same source"
        )
    found = [_compare(name, challenger, champion, config.tolerance) for name in config.metrics]
    kept = tuple(one for one in found if one.challenger is not None or one.champion is not None)
    if not kept:
        raise ValueError(
            f"none of the gate's metrics ({', '.join(config.metrics)}) was measured: assess on held-out images "
            "(assess_source, or pack.holdout above 0), give a taxonomy for zero_shot and hierarchy, or "
            "name others"
        )
    worse = [one for one in kept if one.worse]
    if champion is None:
        missing = [one.metric for one in kept if one.challenger is None]
        assert not missing
        return Verdict(True, "the first model: there was no champion to be compared with", kept)
    if not worse:
        return Verdict(True, f"no worse than the champion in {len(kept)} of {len(kept)} metrics", kept)
    return Verdict(False, "worse than the champion: " + "; ".join(map(_tell, worse)), kept)


def _counts(metrics: dict[str, Any]) -> dict[str, Any]:
    """The counts of the evaluated images. The source is left out: EvaluationSpec.digest compares it by its bytes."""
    return {name: value for name, value in (metrics.get("assessed") or {}).items() if name != "source"}


def _compare(
    name: str, challenger: dict[str, Any], champion: dict[str, Any] | None, tolerance: float
) -> Comparison:
    ours, theirs = number(challenger, name), number(champion, name) if champion else None
    held = (challenger.get("metrics") or {}).get(name) or {}
    low, high = held.get("low"), held.get("high")
    interval = None if low is None or high is None else (float(low), float(high))
    if theirs is None:
        return Comparison(name, ours, theirs, interval, False)
    if ours is None:
        return Comparison(name, ours, theirs, interval, True)
    low, high = interval or (ours, ours)
    slack = tolerance * abs(theirs)
    worse = high < theirs - slack if higher_is_better(name) else low > theirs + slack
    return Comparison(name, ours, theirs, interval, worse)


def higher_is_better(name: str) -> bool:
    """The direction of a metric; ValueError for a name without a direction in the catalog, such as a radius."""
    row = find(name)
    if row is None or row.higher_is_better is None:
        raise ValueError(
            f"metric '{name}' has no known direction (higher or lower is better); name one that the catalog "
            f"(pipeline/evaluation/metrics/catalog.py) has a direction for, such as zero_shot.top1"
        )
    return row.higher_is_better


def number(metrics: dict[str, Any] | None, name: str) -> float | None:
    """The value of a metric, None when it was not measured. Training losses are numbers of their section."""
    if metrics is None:
        return None
    if held := (metrics.get("metrics") or {}).get(name):
        return held["value"]
    section, _, key = name.partition(".")
    return (metrics.get(section) or {}).get(key) if section == "train" else None


def _tell(one: Comparison) -> str:
    if one.challenger is None:
        return f"{one.metric} was not measured (champion {one.champion:.4g})"
    span = f", interval {one.interval[0]:.4g} to {one.interval[1]:.4g}" if one.interval else ""
    return f"{one.metric} {one.challenger:.4g}{span}, champion {one.champion:.4g}"
