"""Retraining on a growing source: the new units, the version that they make, and whether to train on it.

Every check reads the home: the manifests record mined and packed units, the registry trainings and decisions. So after
a missed, repeated or killed check the next check does the rest.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config import Config, digest
from pipeline.end_to_end import JourneyConfig
from pipeline.mining import mine as mining
from pipeline.packing import pack as packing
from pipeline.registry.model_gate import GateConfig
from pipeline.sources.listing import has_files
from pipeline.sources.source import Unit
from pipeline.training.recipes import Recipe
from storage.home import Home
from storage.model_registry import ROLLED_BACK
from storage.store import Store
from storage.versions import Version


class RetrainConfig(Config):
    """Options of retraining: when it starts, how the model is trained and judged."""

    incidental: ClassVar[frozenset[str]] = frozenset({"min_new", "attempts", "settle_s"})

    journey: JourneyConfig
    """What is mined, packed, trained and evaluated."""
    gate: GateConfig = GateConfig()
    """The metrics that decide between challenger and champion."""
    min_new: int = Field(default=1000, ge=1)
    """Minimum number of training samples that no judged model was trained on."""
    start_from: Literal["champion", "scratch"] = "champion"
    """Initial weights: those of the champion, or random ones ("scratch")."""
    attempts: int = Field(default=3, ge=1)
    """Maximum number of trainings on one version before a person has to decide. Attempts that resumed from a
    later checkpoint than those before do not count.
    """
    settle_s: float = Field(default=10.0, ge=0)
    """Minimum age of a source file, in seconds; a younger one may still be written to and has to wait."""


@dataclass(frozen=True, slots=True)
class RetrainDecision:
    """The result of a check: `key` identifies training on `version` with this configuration; `due` says to start it."""

    version: str
    new_samples: int
    key: str
    due: bool
    reason: str


def unsettled(source: str, settle_s: float) -> float:
    """Seconds until all present files of a local source are `settle_s` old, unless they change again.

    0 when they are, and for remote sources. At most `settle_s`, even for a file with a time in the future.
    """
    store = Store(source)
    folder = Path(store.root)
    if not store.local or not folder.exists():
        return 0.0
    ages: list[float] = []
    for path in [folder] if folder.is_file() else folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if path.is_file():
                ages.append(time.time() - path.stat().st_mtime)
    return max((settle_s - max(age, 0.0) for age in ages if abs(age) < settle_s), default=0.0)


def unmined(config: RetrainConfig, home: Home) -> list[Unit]:
    """The settled units of the source that are not mined; none while its folder holds no unit."""
    if not has_files(config.journey.mine.source):
        return []
    return mining.plan(config.journey.mine, home, config.settle_s).pending


@dataclass(frozen=True, slots=True)
class Published:
    """The versions made with one mining and packing configuration, from one listing of the home, oldest first.

    Attributes:
        versions: versions with these configurations, no experiments and none from which images were deleted.
        everything: all versions of the home.
        quarantined: names of those of `versions` that are in quarantine.
        latest: name of the latest version of the home; None without one that can be read.
    """

    versions: list[Version]
    everything: list[Version]
    quarantined: set[str]
    latest: str | None

    @property
    def newest(self) -> Version | None:
        """The last version that passed the quality gate; None without one.

        This is `latest`, which moves back to an older version when the source loses a shard. Where `latest` is another
        configuration's, it is the newest version that is not in quarantine.
        """
        fit = [version for version in self.versions if version.name not in self.quarantined]
        return next((version for version in fit if version.name == self.latest), fit[-1] if fit else None)


def published(config: RetrainConfig, home: Home) -> Published:
    """Read the versions of this mining and packing."""
    mine, pack = config.journey.mine, config.journey.pack
    wanted = {"mine": digest(mine), "pack": packing.pack_digest(mine, pack)}
    everything = home.versions.list()
    made = [version for version in everything if version.digests == wanted]
    held_back = {version.name for version in made if home.versions.quarantined(version.name) is not None}
    experiments = home.versions.experiments()
    latest = home.latest_version()
    erased = home.deletions.hashes()
    made = [
        version
        for version in made
        if version.name not in experiments and not home.versions.superseded(version, erased)
    ]
    return Published(made, everything, held_back, latest.name if latest else None)


def unpublished(config: RetrainConfig, home: Home) -> bool:
    """Return whether the mined units make a version that does not exist yet, or that the quality gate must judge.

    It must when the source returned to the content of an earlier version, or packing was killed before the gate.
    """
    mine, pack = config.journey.mine, config.journey.pack
    mined = set(mining.results(mine, home).units())
    if not mined:
        return False
    units = [
        unit for unit in packing.units_of(mine, home) if unit.name in mined
    ]  # the others are for the next check
    packed = home.packs(packing.pack_digest(mine, pack)).records()
    if any(unit.name not in packed for unit in units):
        return True
    shards = {shard["path"] for unit in units for shard in packed[unit.name]["shards"]["train"]}
    there = published(config, home)
    present = {
        version.name for version in there.versions if {ref.path for ref in version.shards["train"]} == shards
    }
    if present & there.quarantined:
        return False
    newest = there.newest
    if newest is None or newest.name not in present:
        return True
    # Where `latest` is another configuration's: the newest version of all was killed before the gate.
    return newest.name != there.latest and newest.name == there.everything[-1].name


def check(config: RetrainConfig, home: Home) -> RetrainDecision | None:
    """Return whether training on the newest version is due; None when there is no version."""
    there = published(config, home)
    version = there.newest
    if version is None:
        return None
    key = f"train:{version.name}:{digest(config)}"
    judged = [row for row in home.registry.rows() if row.kind != ROLLED_BACK]
    known = {row.version for row in judged}
    seen = {ref.path for one in there.everything if one.name in known for ref in one.shards["train"]}
    seen |= {
        str(heir["path"]) for path in seen if (heir := home.deletions.heir(path)[0])
    }  # what a deletion left
    fresh = sum(shard.samples for shard in version.shards["train"] if shard.path not in seen)
    if any(row.key == key for row in judged):
        return RetrainDecision(
            version.name, fresh, key, False, f"{version.name} was trained on and judged already"
        )
    if fresh < config.min_new:
        reason = f"{fresh} new samples, training begins at {config.min_new}"
        return RetrainDecision(version.name, fresh, key, False, reason)
    return RetrainDecision(version.name, fresh, key, True, f"{fresh} new samples in {version.name}")


def recipe_for(config: RetrainConfig, home: Home) -> Recipe:
    """The recipe of the challenger: it starts from the champion where there is one and the configuration says so."""
    recipe = config.journey.recipe
    champion = home.registry.champion() if config.start_from == "champion" else None
    if champion is None:
        return recipe
    checkpoint = str(home.registry.path(champion.model))
    return recipe.replace(start=recipe.start.replace(checkpoint=checkpoint))
