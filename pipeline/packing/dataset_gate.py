"""The gate between packing and training: is a new dataset version fit to be learned from?

Absolute limits hold for every version; drift is measured against the version it follows, where both were mined and
packed by the same configurations. A version that fails is quarantined: it stays as it is, `latest` does not move to
it, and training refuses it until somebody releases it.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.config import Config
from storage.manifest import Manifest
from storage.store import Store
from storage.versions import Version, Versions

SCORE_BINS = 20
_REPAIR = "Run hyco verify --repair, then pack again: that makes them anew and judges the version again"


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
    verify: bool = True
    """Whether every shard is read and its hash and counts are compared before the version is used."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: what was measured, against what, and what to say when it fails."""

    name: str
    value: float | str
    previous: float | None
    limit: float | str
    passed: bool
    why: str = ""


class QualityError(ValueError):
    """A version was quarantined; `checks` holds the whole verdict."""

    def __init__(self, version: str, checks: list[Check]) -> None:
        reasons = "; ".join(check.why for check in checks if not check.passed)
        super().__init__(
            f"dataset version {version} is quarantined: {reasons}. Mend the source or change pack.gate, "
            f"or look at it and run: hyco release {version}"
        )
        self.version, self.checks = version, checks


def judge(store: Store, version: Version, config: QualityConfig) -> list[Check]:
    """Every check that can be made of a version, passed or not; see QualityConfig."""
    versions = Versions(store)
    checks = _alone(version, config)
    if config.verify:
        problems = versions.verify(version)
        why = f"{len(problems)} damaged shards, the first: {problems[0]}. {_REPAIR}" if problems else ""
        checks.append(Check("damaged shards", float(len(problems)), None, 0.0, not problems, why))
    parent = versions.load(version.parent) if version.parent in versions.names() else None
    if parent is not None and parent.digests == version.digests:
        checks += _drift(store, version, parent, config)
    return checks


def gate(store: Store, version: Version, config: QualityConfig) -> list[Check]:
    """Judge a version and make it `latest`, out of quarantine if it was there; one that fails is quarantined instead.

    Raises:
        QualityError: naming every check that failed and how to release the version all the same.
    """
    versions = Versions(store)
    checks = judge(store, version, config)
    if all(check.passed for check in checks):
        versions.lift(version.name)
        versions.point(version.name)
        return checks
    versions.quarantine(version.name, [asdict(check) for check in checks])
    raise QualityError(version.name, checks)


def _alone(version: Version, config: QualityConfig) -> list[Check]:
    checks = []
    images = version.counts["train_images"]
    if config.min_images is not None:
        passed = images >= config.min_images
        why = f"{images} training images, fewer than min_images {config.min_images}"
        checks.append(
            Check("training images", images, None, config.min_images, passed, "" if passed else why)
        )
    if config.max_failed is not None:
        failed = version.counts.get("failures", 0)
        share = failed / max(1, failed + version.counts["images"])
        passed = share <= config.max_failed
        why = f"{failed} images failed, {share:.1%} of all, more than max_failed {config.max_failed:.1%}"
        checks.append(
            Check("failed images, share", share, None, config.max_failed, passed, "" if passed else why)
        )
    return checks


def _drift(store: Store, version: Version, parent: Version, config: QualityConfig) -> list[Check]:
    checks = []
    if config.max_shrink is not None:
        before, now = parent.counts["images"], version.counts["images"]
        passed = now >= before * (1 - config.max_shrink)
        why = f"{now} images after {before}: more than {config.max_shrink:.0%} are gone (max_shrink)"
        limit = before * (1 - config.max_shrink)
        checks.append(Check("images", now, before, limit, passed, "" if passed else why))
    if config.max_parts_drift is not None:
        before, now = (v.counts["parts"] / max(1, v.counts["images"]) for v in (parent, version))
        drift = abs(now - before) / max(before, 1e-9)
        passed = drift <= config.max_parts_drift
        why = f"{now:.2f} boxes an image after {before:.2f}: changed by {drift:.0%} (max_parts_drift)"
        limit = f"within {config.max_parts_drift:.0%}"
        checks.append(Check("boxes an image", now, before, limit, passed, "" if passed else why))
    if config.max_score_drift is not None:
        before, now = score_histogram(store, parent), score_histogram(store, version)
        if before.sum() and now.sum():
            gap = float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(now) / now.sum()).max())
            passed = gap <= config.max_score_drift
            why = f"box scores moved by {gap:.2f}, more than max_score_drift {config.max_score_drift}"
            checks.append(
                Check(
                    "box scores, distance", gap, None, config.max_score_drift, passed, "" if passed else why
                )
            )
    return checks


def score_histogram(store: Store, version: Version) -> np.ndarray:
    """How many accepted boxes of a version have a score in each of SCORE_BINS equal bins of [0, 1], [bins]."""
    shards = {ref.sha256 for split in version.shards.values() for ref in split}
    total: Counter[int] = Counter()
    for record in Manifest(store, f"packs/{version.digests['pack']}/records").records().values():
        if any(ref["sha256"] in shards for split in record["shards"].values() for ref in split):
            total.update(dict(enumerate(record.get("scores", ()))))
    return np.array([total[n] for n in range(SCORE_BINS)], float)


def scores_of(scores: list[float]) -> list[int]:
    """The histogram that a pack record keeps; see `score_histogram`."""
    return np.histogram(scores, SCORE_BINS, (0.0, 1.0))[0].tolist()


def verdict(checks: list[Check] | list[dict[str, Any]]) -> list[dict[str, str]]:
    """The checks as rows of a table of text."""
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
