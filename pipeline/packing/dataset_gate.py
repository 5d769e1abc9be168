"""The gate between packing and training: is a new dataset version fit for training?

Absolute limits hold for every version; drift is measured against the previous version, where both were mined and packed
with the same configurations. A version that fails is quarantined: it is kept unchanged, `latest` does not move to it,
and training refuses it until it is released. A check is one function marked `dataset_check`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from hyco.pipeline.config import Config
from hyco.pipeline.mining.absence import accepted_fraction
from hyco.storage.home import Home
from hyco.storage.versions import Version

SCORE_BINS = 20
_REPAIR = (
    "Run hyco verify --repair, then pack again: this makes the shards again and judges the version again"
)


class QualityConfig(Config):
    """What a dataset version must satisfy; null disables a check."""

    min_images: int | None = Field(default=1, ge=1)
    """Minimum number of training images."""
    max_failed: float | None = Field(default=0.05, ge=0, le=1)
    """Maximum fraction of images that mining and packing could not use."""
    max_shrink: float | None = Field(default=0.5, ge=0, le=1)
    """Maximum fraction of the previous version's images that may be missing."""
    max_parts_drift: float | None = Field(default=0.5, gt=0)
    """Maximum relative change of the mean number of boxes per image against the previous version."""
    max_score_drift: float | None = Field(default=0.25, gt=0, le=1)
    """Maximum Kolmogorov-Smirnov distance (largest gap of the cumulative distributions) between the box
    scores of the two versions.
    """
    max_copies: float | None = Field(default=0.5, ge=0, le=1)
    """Maximum fraction of the images that were left out as copies, of each other (pack.near_duplicates) or of
    evaluation images (pack.exclude).
    """
    max_absent: float | None = Field(default=None, ge=0, le=1)
    """Maximum fraction of absent phrases that get a box above the threshold, where mining measured it (mine.absent);
    null only shows it.
    """
    verify: bool = True
    """Whether every shard is read and its hash and counts are compared before the version is used."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: the measured value, its limit, and the message of a failure."""

    name: str
    value: float | str
    previous: float | None
    limit: float | str
    passed: bool
    why: str = ""


class QualityError(ValueError):
    """A version was quarantined; `checks` holds the complete verdict."""

    def __init__(self, version: str, checks: list[Check], home: object) -> None:
        reasons = "; ".join(check.why for check in checks if not check.passed)
        super().__init__(
            f"dataset version {version} is quarantined: {reasons}. Fix the source or change pack.gate, "
            f"or check it and run: hyco release {version} --home {home}"
        )
        self.version, self.checks = version, checks


def judge(home: Home, version: Version, config: QualityConfig) -> list[Check]:
    """Every applicable check of a version, passed or not; see QualityConfig."""
    versions = home.versions
    parent = versions.load(version.parent) if version.parent in versions.names() else None
    if parent is not None and parent.digests != version.digests:
        parent = None
    made = [check(Subject(home, version, parent, config)) for check in CHECKS]
    return [replace(check, why="") if check.passed else check for check in made if check is not None]


def gate(home: Home, version: Version, config: QualityConfig, latest: bool = True) -> list[Check]:
    """Judge a version: make it `latest` and release it from quarantine, or quarantine it when it fails.

    With `latest` False the pointer stays where it is: an experiment.

    Raises:
        QualityError: naming every failed check and how to release the version anyway.
    """
    versions, checks = home.versions, judge(home, version, config)
    if all(check.passed for check in checks):
        versions.lift(version.name)
        if latest:
            versions.point(version.name)
        else:
            versions.experiment(version.name)
        return checks
    versions.quarantine(version.name, [asdict(check) for check in checks])
    raise QualityError(version.name, checks, home)


@dataclass(frozen=True, slots=True)
class Subject:
    """The arguments of a check.

    Attributes:
        home: the home of the version.
        version: the version to judge.
        parent: the previous version, where both were mined and packed with the same configurations; else None.
        config: the limits.
    """

    home: Home
    version: Version
    parent: Version | None
    config: QualityConfig


CHECKS: list[Callable[[Subject], Check | None]] = []


def dataset_check(function: Callable[[Subject], Check | None]) -> Callable[[Subject], Check | None]:
    """Register a function that `judge` calls for every version; it returns None where nothing is to be checked."""
    CHECKS.append(function)
    return function


@dataset_check
def training_images(of: Subject) -> Check | None:
    """Fail below min_images training images."""
    images, least = of.version.counts["train_images"], of.config.min_images
    if least is None:
        return None
    why = f"{images} training images, fewer than min_images {least}"
    return Check("training images", images, None, least, images >= least, why)


@dataset_check
def failed_images(of: Subject) -> Check | None:
    """Fail when mining and packing could not use more than max_failed of the images."""
    most, failed = of.config.max_failed, of.version.counts.get("failures", 0)
    if most is None:
        return None
    share = failed / max(1, failed + of.version.counts["images"])
    why = f"{failed} images failed, {share:.1%} of all, more than max_failed {most:.1%}"
    return Check("failed images, fraction", share, None, most, share <= most, why)


@dataset_check
def copies(of: Subject) -> Check | None:
    """Fail when more than max_copies of the images were left out as copies; tell how many, with the first ones."""
    most, counts = of.config.max_copies, of.version.counts
    near, beside = counts.get("near_duplicates", 0), counts.get("contaminated", 0)
    options = of.version.config.get("pack") or {}
    if most is None or not (
        near or beside or options.get("exclude") or options.get("near_duplicates") is not None
    ):
        return None
    share = (near + beside) / max(1, near + beside + counts.get("images", 0))
    shown = "".join(f"; {one['name']} is {one['of']}" for one in left_out_of(of.home, of.version, 2))
    value = f"{near:,} near duplicates, {beside:,} evaluation images{shown}"
    why = f"{value}: {share:.1%} of all, more than max_copies {most:.1%}"
    return Check("copies left out", value, None, f"{most:.0%} of all", share <= most, why)


@dataset_check
def absent_phrases(of: Subject) -> Check | None:
    """Fail when more than max_absent of the absent phrases have an accepted box; tell the fraction where measured."""
    mine, threshold = (
        of.version.config.get("mine") or {},
        (of.version.config.get("pack") or {}).get("threshold"),
    )
    if not mine.get("absent", {}).get("images") or threshold is None:
        return None
    mined, units = of.home.detections(of.version.digests.get("mine")), set(of.version.units)
    records = [record for unit, record in mined.records().items() if unit in units]
    told, most = accepted_fraction(records, threshold), of.config.max_absent
    if told is None:
        return None
    share, asked = told
    why = f"{share:.1%} of {asked:,} absent phrases have a box of score {threshold}, more than max_absent {most}"
    limit = "none" if most is None else most
    name = f"absent phrases with a box, fraction of {asked:,}"
    return Check(name, share, None, limit, most is None or share <= most, why)


@dataset_check
def damaged_shards(of: Subject) -> Check | None:
    """Fail when a shard does not have its recorded hash and counts."""
    if not of.config.verify:
        return None
    problems = of.home.versions.verify(of.version)
    why = f"{len(problems)} damaged shards, the first: {problems[0]}. {_REPAIR}" if problems else ""
    return Check("damaged shards", float(len(problems)), None, 0.0, not problems, why)


@dataset_check
def lost_images(of: Subject) -> Check | None:
    """Fail when more than max_shrink of the previous version's images are missing."""
    if of.parent is None or of.config.max_shrink is None:
        return None
    before, now = of.parent.counts["images"], of.version.counts["images"]
    least = before * (1 - of.config.max_shrink)
    why = f"{now} images after {before}: more than {of.config.max_shrink:.0%} are missing (max_shrink)"
    return Check("images", now, before, least, now >= least, why)


@dataset_check
def parts_drift(of: Subject) -> Check | None:
    """Fail when the mean number of boxes per image changed by more than max_parts_drift."""
    most = of.config.max_parts_drift
    if of.parent is None or most is None:
        return None
    before, now = (v.counts["parts"] / max(1, v.counts["images"]) for v in (of.parent, of.version))
    drift = abs(now - before) / max(before, 1e-9)
    why = f"{now:.2f} boxes per image after {before:.2f}: changed by {drift:.0%} (max_parts_drift)"
    return Check("boxes per image", now, before, f"within {most:.0%}", drift <= most, why)


@dataset_check
def score_drift(of: Subject) -> Check | None:
    """Fail when the distribution of box scores moved by more than max_score_drift."""
    most = of.config.max_score_drift
    if of.parent is None or most is None:
        return None
    before, now = score_histogram(of.home, of.parent), score_histogram(of.home, of.version)
    if not before.sum() or not now.sum():
        return None
    gap = float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(now) / now.sum()).max())
    why = f"box scores moved by {gap:.2f}, more than max_score_drift {most}"
    return Check("box scores, distance", gap, None, most, gap <= most, why)


def score_histogram(home: Home, version: Version) -> np.ndarray:
    """Counts of a version's accepted boxes in SCORE_BINS equal bins of their score in [0, 1], [bins]."""
    shards = {ref.sha256 for split in version.shards.values() for ref in split}
    total: Counter[int] = Counter()
    for record in home.packs(version.digests.get("pack")).records().values():
        if any(ref["sha256"] in shards for split in record["shards"].values() for ref in split):
            total.update(dict(enumerate(record.get("scores", ()))))
    return np.array([total[n] for n in range(SCORE_BINS)], float)


def left_out_of(home: Home, version: Version, most: int) -> list[dict[str, Any]]:
    """The first copies that the units of a version left out: key, reason, name, of, bits; [] where none is recorded."""
    found: list[dict[str, Any]] = []
    if not version.counts.get("near_duplicates", 0) + version.counts.get("contaminated", 0):
        return found
    packs = home.packs(version.digests.get("pack"))
    for unit in version.units:
        if len(found) < most and (record := packs.record(unit)) is not None:
            found += record.get("left_out", ())
    return found[:most]


def scores_of(scores: list[float]) -> list[int]:
    """The histogram for a pack record; see `score_histogram`."""
    return np.histogram(scores, SCORE_BINS, (0.0, 1.0))[0].tolist()


def verdict(checks: list[Check] | list[dict[str, Any]]) -> list[dict[str, str]]:
    """The checks as table rows of text."""
    rows = [asdict(check) if isinstance(check, Check) else check for check in checks]
    return [
        {
            "check": row["name"],
            "value": _text(row["value"]),
            "previous": _text(row["previous"]),
            "limit": _text(row["limit"]),
            "verdict": "passed" if row["passed"] else f"failed: {row['why']}",
        }
        for row in rows
    ]


def _text(value: float | str | None) -> str:
    return "" if value is None else f"{value:,.3g}" if isinstance(value, float) else str(value)
