"""What is to be done about a source that grows: which units are new, which version they make, whether to train on it.

Everything is read from the home each time: the manifests say what is mined and packed, the registry what was trained
and decided. So a look that was missed, doubled or killed costs nothing but another look.
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
from pipeline.registry.promotion import champion, champion_path
from pipeline.sources.source import KINDS, Unit
from pipeline.training.recipes import Recipe
from storage.manifest import Manifest
from storage.model_registry import ROLLED_BACK, Registry
from storage.store import Store
from storage.versions import Version, Versions


class RetrainConfig(Config):
    """When new data starts a training, and how its model is made and judged."""

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
    """Minimum age of a source file, in seconds; a younger one may still be written to and is left for later.
    """


@dataclass(frozen=True, slots=True)
class RetrainDecision:
    """What one look found: `key` names training on `version` with this configuration; `due` says to do it."""

    version: str
    new_samples: int
    key: str
    due: bool
    reason: str


def unsettled(source: str, settle_s: float) -> float:
    """Seconds until all files that a local source holds now are `settle_s` old, unless they are written to again.

    0 when they are, and for remote sources. Never more than `settle_s`: a file dated into the future is not waited for.
    """
    store = Store(source)
    folder = Path(store.root)
    if not store.local or not folder.exists():
        return 0.0
    ages: list[float] = []
    for path in [folder] if folder.is_file() else folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
            if path.is_file():
                ages.append(time.time() - path.stat().st_mtime)
    return max((settle_s - max(age, 0.0) for age in ages if abs(age) < settle_s), default=0.0)


def unmined(config: RetrainConfig, home: str) -> list[Unit]:
    """The settled units of the source that are not mined; none while its folder holds nothing that can be one."""
    store = Store(config.journey.mine.source)
    folder = Path(store.root)
    if store.local and folder.is_dir() and not any(path.suffix.lower() in KINDS for path in folder.iterdir()):
        return []
    return mining.plan(config.journey.mine, home, config.settle_s).pending


def unpublished(config: RetrainConfig, home: str) -> bool:
    """Say whether the mined units make a version that does not exist yet, or that the quality gate has to judge.

    It has to when the source went back to what an earlier version holds, or packing was killed before the gate.
    """
    mine, pack = config.journey.mine, config.journey.pack
    store = Store(home)
    mined = set(Manifest(store, f"detections/{digest(mine)}/records").units())
    if not mined:
        return False
    units = [unit for unit in packing.units_of(mine) if unit.name in mined]  # the others are the next look's
    packed = Manifest(store, f"packs/{packing.pack_digest(mine, pack)}/records").records()
    if any(unit.name not in packed for unit in units):
        return True
    shards = {shard["path"] for unit in units for shard in packed[unit.name]["shards"]["train"]}
    versions = Versions(store)
    made = _versions(config, versions)
    present = [
        version.name for version in made if {shard.path for shard in version.shards["train"]} == shards
    ]
    if any(versions.quarantined(name) is not None for name in present):
        return False
    chosen = newest(config, home)
    if chosen is None or chosen.name not in present:
        return True
    # Where `latest` is another configuration's: the newest version of all was killed before the gate.
    return chosen.name != _latest(versions) and versions.list()[-1].name == chosen.name


def newest(config: RetrainConfig, home: str) -> Version | None:
    """The version made with this mining and packing that passed the quality gate last; None without one.

    That is `latest`, which a source that lost a shard moves back to an older version. Where `latest` is another
    configuration's, it is the newest one that is not in quarantine.
    """
    versions = Versions(Store(home))
    fit = [version for version in _versions(config, versions) if versions.quarantined(version.name) is None]
    latest = _latest(versions)
    passed = [version for version in fit if version.name == latest]
    return (passed or fit or [None])[-1]


def _versions(config: RetrainConfig, versions: Versions) -> list[Version]:
    mine, pack = config.journey.mine, config.journey.pack
    wanted = {"mine": digest(mine), "pack": packing.pack_digest(mine, pack)}
    return [version for version in versions.list() if version.digests == wanted]


def _latest(versions: Versions) -> str | None:
    try:
        return versions.load("latest").name
    except ValueError:
        return None


def check(config: RetrainConfig, home: str) -> RetrainDecision | None:
    """Say whether training on the newest version is due; None when there is no version."""
    version = newest(config, home)
    if version is None:
        return None
    key = f"train:{version.name}:{digest(config)}"
    judged = [row for row in Registry(home).rows() if row.kind != ROLLED_BACK]
    known = {row.version for row in judged}
    versions = [one for one in Versions(Store(home)).list() if one.name in known]
    seen = {shard.path for one in versions for shard in one.shards["train"]}
    fresh = sum(shard.samples for shard in version.shards["train"] if shard.path not in seen)
    if any(row.key == key for row in judged):
        return RetrainDecision(
            version.name, fresh, key, False, f"{version.name} was trained on and judged already"
        )
    if fresh < config.min_new:
        reason = f"{fresh} new samples, training begins at {config.min_new}"
        return RetrainDecision(version.name, fresh, key, False, reason)
    return RetrainDecision(version.name, fresh, key, True, f"{fresh} new samples in {version.name}")


def recipe_for(config: RetrainConfig, home: str) -> Recipe:
    """The recipe of the challenger: it starts from the champion where there is one and the configuration says so."""
    recipe = config.journey.recipe
    if config.start_from == "scratch" or champion(home) is None:
        return recipe
    return recipe.replace(start=recipe.start.replace(checkpoint=str(champion_path(home))))
