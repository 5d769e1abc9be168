"""Retraining on a growing source: the new units, the version that they make, and whether to train on it.

Every check reads the home: the manifests record mined and packed units, the registry trainings and decisions. So after
a missed, repeated or killed check the next check does the rest.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute
from pydantic import Field

from hyco.pipeline.config import Config, digest
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.registry.model_gate import GateConfig, at_chance
from hyco.pipeline.sources.listing import EmptySourceError
from hyco.pipeline.sources.source import Unit
from hyco.pipeline.training.recipes import Recipe
from hyco.storage.home import Home
from hyco.storage.model_registry import ROLLED_BACK
from hyco.storage.store import Store
from hyco.storage.version_heads import Head, erased_keys, heads, latest, quarantined, shard_keys, with_heirs

pc: Any = pyarrow.compute  # most of its functions are made when it is imported


class RetrainConfig(Config):
    """Options of retraining: when it starts, how the model is trained and judged."""

    incidental: ClassVar[frozenset[str]] = frozenset({"min_new", "attempts", "settle_s"})
    foremost: ClassVar[tuple[str, ...]] = ("min_new", "start_from", "attempts", "settle_s", "gate")

    journey: JourneyConfig
    """What is mined, packed, trained and evaluated."""
    gate: GateConfig = GateConfig()
    """The metrics that decide between challenger and champion."""
    min_new: int = Field(default=1000, ge=1)
    """Minimum number of training samples that no judged model was trained on."""
    start_from: Literal["champion", "scratch"] = "champion"
    """Initial weights: those of the champion, or random ones ("scratch"; always where the champion is at chance)."""
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
    if not store.local or not Path(store.root).exists():
        return 0.0
    now, times = time.time(), list[float]()
    if Path(store.root).is_file():
        times.append(Path(store.root).stat().st_mtime)
    else:
        with os.scandir(store.root) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    if entry.is_file():
                        times.append(entry.stat().st_mtime)
    ages = [now - when for when in times]
    return max((settle_s - max(age, 0.0) for age in ages if abs(age) < settle_s), default=0.0)


def unmined(config: RetrainConfig, home: Home) -> list[Unit]:
    """The settled units of the source that are not mined; none while its folder holds no unit."""
    try:
        return mining.plan(config.journey.mine, home, config.settle_s).pending
    except EmptySourceError:
        return []


@dataclass(frozen=True, slots=True)
class Published:
    """The versions made with one mining and packing configuration, from one listing of the home, oldest first.

    Attributes:
        versions: versions with these configurations, no experiments and none from which images were deleted.
        everything: all versions of the home.
        quarantined: names of those of `versions` that are in quarantine.
        latest: name of the latest version of the home; None without one that can be read.
    """

    versions: list[Head]
    everything: list[Head]
    quarantined: set[str]
    latest: str | None

    @property
    def newest(self) -> Head | None:
        """The last version that passed the quality gate; None without one.

        This is `latest`, which moves back to an older version when the source loses a shard. Where `latest` is another
        configuration's, it is the newest version that is not in quarantine.
        """
        fit = [version for version in self.versions if version.name not in self.quarantined]
        return next((version for version in fit if version.name == self.latest), fit[-1] if fit else None)


def published(config: RetrainConfig, home: Home) -> Published:
    """Return the versions of this mining and packing."""
    mine, pack = config.journey.mine, config.journey.pack
    wanted = {"mine": digest(mine), "pack": packing.pack_digest(mine, pack)}
    everything = heads(home.versions)
    made = [head for head in everything if head.version.digests == wanted]
    held_back = quarantined(home.versions) & {head.name for head in made}
    experiments, erased = home.versions.experiments(), erased_keys(home.deletions)
    made = [head for head in made if head.name not in experiments and not head.superseded(erased)]
    return Published(made, everything, held_back, latest(home.versions, everything))


def grown(config: RetrainConfig, home: Home) -> bool:
    """Return whether there is something to mine or to publish: `unmined` or `unpublished`, of one listing."""
    try:
        work = mining.plan(config.journey.mine, home, config.settle_s, young=True)
    except EmptySourceError:
        return unpublished(config, home)
    return bool(work.pending) or unpublished(config, home, [*work.done, *work.pending, *work.young])


def unpublished(config: RetrainConfig, home: Home, units: list[Unit] | None = None) -> bool:
    """Return whether the mined units make a version that does not exist yet, or that the quality gate must judge.

    It must when the source returned to the content of an earlier version, or packing was killed before the gate.
    `units` are those of a listing that was just made, in any order.
    """
    mine, pack = config.journey.mine, config.journey.pack
    mined = set(mining.results(mine, home).units())
    if not mined:
        return False
    listed = packing.units_of(mine, home) if units is None else units
    names = {unit.name for unit in listed if unit.name in mined}  # the others are for the next check
    packed = home.packs(packing.pack_digest(mine, pack)).summary()
    packed = packed.filter(pc.is_in(packed["unit"], value_set=pa.array(list(names), pa.string())))
    if packed.num_rows < len(names):
        return True
    shards = set(shard_keys(pc.list_flatten(packed["train"]).to_pylist()))
    there = published(config, home)
    present = {head.name for head in there.versions if set(head.train.to_pylist()) == shards}
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
    newest = there.newest
    if newest is None:
        return None
    key = f"train:{newest.name}:{digest(config)}"
    judged = [row for row in home.registry.rows() if row.kind != ROLLED_BACK]
    known = {row.version for row in judged}
    seen = pa.concat_arrays(
        [newest.train.slice(0, 0), *(h.train for h in there.everything if h.name in known)]
    )
    seen = with_heirs(home.deletions, seen)
    unseen = pc.invert(pc.is_in(newest.train, value_set=seen))
    fresh = int(pc.sum(newest.samples.filter(unseen)).as_py() or 0)
    if any(row.key == key for row in judged):
        return RetrainDecision(
            newest.name, fresh, key, False, f"{newest.name} was trained on and judged already"
        )
    if fresh < config.min_new:
        reason = f"{fresh} new samples, training begins at {config.min_new}"
        return RetrainDecision(newest.name, fresh, key, False, reason)
    return RetrainDecision(newest.name, fresh, key, True, f"{fresh} new samples in {newest.name}")


def recipe_for(config: RetrainConfig, home: Home) -> Recipe:
    """The recipe of the challenger: it starts from the champion where there is one and the configuration says so.

    Not from a champion at chance, which the preset smoke allows: its features may be equal for all images, and no
    training separates those again.
    """
    recipe = config.journey.recipe
    champion = home.registry.champion() if config.start_from == "champion" else None
    if champion is None or at_chance(json.loads(champion.metrics), config.gate):
        return recipe
    checkpoint = home.registry.model(champion.model).url
    return recipe.replace(start=recipe.start.replace(checkpoint=checkpoint))
