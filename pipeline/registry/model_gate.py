"""The gate: whether a challenger replaces the champion, by metrics of both on the same images.

A metric is worse when the champion's value lies outside the challenger's bootstrap interval: inside it the difference
may be due to the choice of images. One worse metric refuses the challenger. Every model, a first one without a champion
too, has to be above chance. Each comparison says the smallest difference that it could have shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, field_validator

from hyco.pipeline.config import Config
from hyco.pipeline.evaluation.metrics.catalog import find


class GateConfig(Config):
    """Options of the gate."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"above_chance"})

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
    above_chance: bool = True
    """Refuse a model that exceeds chance, beyond its interval, in none of the metrics with a chance level. Off in
    the preset smoke, whose 20 steps teach a model nothing.
    """

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
    """One metric of challenger and champion.

    Attributes:
        metric: dotted name.
        challenger: its value; None where it was not measured.
        champion: its value; None where it was not measured or there is no champion.
        interval: of the challenger; None where the metric has none.
        worse: whether it refuses the challenger.
        chance: what guessing scores; None where that is unknown.
        n: images or other units that it was measured on; None where that is unknown.
        sees: the smallest difference from the champion that would have refused; None without an interval or champion.
    """

    metric: str
    challenger: float | None
    champion: float | None
    interval: tuple[float, float] | None
    worse: bool
    chance: float | None = None
    n: int | None = None
    sees: float | None = None

    @property
    def at_chance(self) -> bool | None:
        """Whether the challenger is no better than chance, as far as its interval tells; None if that is unknown."""
        if self.chance is None or self.interval is None:
            return None
        low, high = self.interval
        return low <= self.chance if higher_is_better(self.metric) else high >= self.chance

    @property
    def better(self) -> bool:
        """Whether the challenger exceeds the champion beyond its interval."""
        if self.interval is None or self.champion is None:
            return False
        low, high = self.interval
        return low > self.champion if higher_is_better(self.metric) else high < self.champion

    @property
    def blind(self) -> bool:
        """Whether even a challenger at chance would have passed, and this one is not better: too few images to tell."""
        if self.sees is None or self.chance is None or self.champion is None:
            return False
        return not self.better and self.sees >= abs(self.champion - self.chance)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the challenger passes, the reason in one line, and each comparison."""

    passed: bool
    reason: str
    comparisons: tuple[Comparison, ...]


def judge(challenger: dict[str, Any], champion: dict[str, Any] | None, config: GateConfig) -> Verdict:
    """Compare two metrics.json of the same evaluation. A challenger passes that is above chance and not worse.

    Raises ValueError when the two were evaluated on different images, or no named metric was measured.
    """
    if champion is not None and counts_of(challenger) != counts_of(champion):
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
    if worse:
        return Verdict(False, "worse than the champion: " + "; ".join(map(_tell, worse)), kept)
    if champion is None:
        return _above_chance("the first model: there was no champion to be compared with", kept, config)
    return _above_chance(_no_worse(kept), kept, config)


def at_chance(metrics: dict[str, Any], config: GateConfig) -> bool:
    """Whether a metrics.json shows no metric of the gate above chance, and at least one whose chance level is known."""
    return bool(_all_at_chance([_compare(name, metrics, None, config.tolerance) for name in config.metrics]))


def _all_at_chance(found: Iterable[Comparison]) -> list[Comparison]:
    """The comparisons whose chance level is known, if all of them are at chance; else none."""
    known = [one for one in found if one.at_chance is not None]
    return known if all(one.at_chance for one in known) else []


def _above_chance(reason: str, kept: tuple[Comparison, ...], config: GateConfig) -> Verdict:
    """The verdict on a model that is not worse: at chance in every metric that has a chance level, it is refused."""
    known = _all_at_chance(kept)
    if not known:
        return Verdict(True, reason, kept)
    told = "; ".join(f"{_tell(one)}, chance {one.chance:.4g}" for one in known)
    if config.above_chance:
        return Verdict(
            False, f"at chance: {told}. Train longer, evaluate on more images, or promote --force", kept
        )
    return Verdict(True, f"{reason}; at chance (gate.above_chance is off): {told}", kept)


def _no_worse(kept: tuple[Comparison, ...]) -> str:
    blind, better = [one for one in kept if one.blind], sum(one.better for one in kept)
    gain = f", better in {better}" if better else ""
    if not blind:
        return f"no worse than the champion in {len(kept)} of {len(kept)} metrics{gain}{_power(kept)}"
    told = "; ".join(
        f"{one.metric}, n = {one.n}: only a difference above {one.sees:.3g} shows" for one in blind
    )
    if len(blind) == len(kept):
        return f"cannot tell whether it is worse than the champion: {told}"
    seen = len(kept) - len(blind)
    return f"no worse than the champion in {seen} of {len(kept)} metrics{gain}; cannot tell in the others: {told}"


def _power(kept: tuple[Comparison, ...]) -> str:
    """The smallest loss that the comparison could have shown, of its most and its least sensitive metric."""
    seen = sorted((one.sees, one.metric) for one in kept if one.sees is not None)
    if not seen:
        return ""
    (fine, name), (coarse, other) = seen[0], seen[-1]
    told = f"{fine:.3g} ({name})" + (f" to {coarse:.3g} ({other})" if len(seen) > 1 else "")
    return f"; a loss would show from {told}"


def counts_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of the evaluated images; the digest of EvaluationSpec compares source and columns."""
    told = metrics.get("assessed") or {}
    return {name: value for name, value in told.items() if name not in ("source", "columns")}


def _compare(
    name: str, challenger: dict[str, Any], champion: dict[str, Any] | None, tolerance: float
) -> Comparison:
    ours, theirs = number(challenger, name), number(champion, name) if champion else None
    held = (challenger.get("metrics") or {}).get(name) or {}
    low, high = held.get("low"), held.get("high")
    interval = None if low is None or high is None else (float(low), float(high))
    known: dict[str, Any] = {"chance": held.get("chance"), "n": held.get("n")}
    if theirs is None:
        return Comparison(name, ours, theirs, interval, False, **known)
    if ours is None:
        return Comparison(name, ours, theirs, interval, True, **known)
    low, high = interval or (ours, ours)
    slack = tolerance * abs(theirs)
    better = higher_is_better(name)
    worse = high < theirs - slack if better else low > theirs + slack
    known["sees"] = (high - ours if better else ours - low) + slack if interval else None
    return Comparison(name, ours, theirs, interval, worse, **known)


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
    beside = "" if one.champion is None else f", champion {one.champion:.4g}"
    return f"{one.metric} {one.challenger:.4g}{span}{beside}"
