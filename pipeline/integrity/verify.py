"""Verify a home: the hash of every file that a dataset version or a promoted model was made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyco.storage.deletions import Erased
from hyco.storage.derived import problem
from hyco.storage.home import Home, UnitResults
from hyco.storage.layout import (
    ASSESSED,
    CACHE,
    DELETIONS,
    ERASED,
    LABELS,
    LATEST,
    MODEL_RUNS,
    MODELS,
    QUARANTINE,
    SHELVED,
    quarantine_path,
    version_path,
)
from hyco.storage.manifest import Manifest
from hyco.storage.model_registry import REFUSED, Decision, Registry, files_damage, folder_damage
from hyco.storage.objects import DamagedError, name_sha256
from hyco.storage.sealed import unseal
from hyco.storage.store import Store
from hyco.storage.versions import Version, Versions

Seen = set[str]


@dataclass(frozen=True, slots=True)
class Damage:
    """One fault: the kind of file, its path in the home, and the fault in words."""

    kind: str
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}: {self.what}"


def verify(home: Home, version: str | None = "latest") -> list[Damage]:
    """Read the files that a dataset version was made of, and return the faults; [] when everything is intact.

    Checks the version, its shards, the pack and mining records of its units with their detections and failures,
    `latest`, the records of all versions and quarantines, the registry's log and the complete copy of every promoted
    model.

    Args:
        home: local or remote.
        version: name, start of a name or "latest"; None for all versions, all mined or packed units and the
            cached tables.

    Raises:
        ValueError: no such version.
    """
    versions = home.versions
    found, loaded = _versions(versions)
    wanted = loaded
    if version is not None and not (version == "latest" and found):
        try:
            name = versions.load(version).name
            wanted = {name: loaded[name]}
        except DamagedError:
            wanted = {}  # found already
    seen: Seen = {one.path for one in _erased(home)}
    for made in wanted.values():
        found += [Damage(*problem) for problem in versions.problems(made, seen)]
        found += _made_of(home, made, seen)
    if version is None:
        found += _all_units(home, seen)
        found += _cache(home.store)
    found += _registry(home.registry, seen)
    return list(dict.fromkeys(found))


def _versions(versions: Versions) -> tuple[list[Damage], dict[str, Version]]:
    """The faults of the records of versions and quarantines, and the readable versions."""
    found: list[Damage | None] = []
    loaded: dict[str, Version] = {}
    names = versions.names()
    for name in names:
        try:
            loaded[name] = versions.load(name)
        except DamagedError as error:
            found.append(Damage("version", error.path, error.what))
    try:
        told = versions.latest()
        kept_back = versions.experiments()
        fit = (name for name in names if name not in kept_back)
        if told is None and any(not versions.store.exists(quarantine_path(name)) for name in fit):
            found.append(Damage("latest", LATEST, "is missing"))
        elif told is not None and told not in names:
            found.append(Damage("version", version_path(told), "is missing, and it is the latest version"))
    except DamagedError as error:
        found.append(Damage("latest", error.path, error.what))
    for path in versions.store.list(LABELS):
        try:
            versions.load(Path(path).name)
        except ValueError as error:
            found.append(Damage("name of a version", path, getattr(error, "what", str(error))))
    for path in versions.store.list(QUARANTINE):
        try:
            versions.quarantined(Path(path).stem)
        except DamagedError as error:
            found.append(Damage("quarantine record", error.path, error.what))
    found += [_sealed(versions.store, "shelf record", path) for path in versions.store.list(SHELVED)]
    for path in (path for folder in (DELETIONS, ERASED) for path in versions.store.list(folder)):
        found.append(_sealed(versions.store, "record of a deletion", path))
    return [damage for damage in found if damage], loaded


def _erased(home: Home) -> list[Erased]:
    """What was erased because of a deletion; it may be missing, and an older version may still name it."""
    try:
        return home.deletions.every()
    except DamagedError:
        return []  # found with the records


def _sealed(store: Store, kind: str, path: str) -> Damage | None:
    """The fault of a self-verifying record, if it has one."""
    try:
        unseal(store.read_bytes(path))
    except (ValueError, OSError) as error:
        return Damage(kind, path, str(error))
    return None


def _made_of(home: Home, version: Version, seen: Seen) -> Iterator[Damage]:
    """Records and objects of the units of a version; without recorded units, of those that made its shards."""
    mined, packed = home.detections(version.digests.get("mine")), home.packs(version.digests.get("pack"))
    yield from _configuration(mined, seen)
    shards = {ref.path for refs in version.shards.values() for ref in refs}
    for unit in version.units or packed.units():
        yield from _packed(packed, mined, unit, seen, None if version.units else shards)


def _all_units(home: Home, seen: Seen) -> Iterator[Damage]:
    """Records and objects of everything that was mined or packed, in a version or not."""
    for mined in home.all_detections():
        yield from _configuration(mined, seen)
        for unit in mined.units():
            yield from _mined(mined, unit, seen)[1]
    for packed in home.all_packs():
        for unit in packed.units():
            record, problems = _read(packed, unit, "pack record", seen)
            yield from problems
            yield from _objects_of_pack(home.store, record or {}, seen)


def _cache(store: Store) -> Iterator[Damage]:
    for path in store.list(CACHE):
        if what := problem(store, path):
            yield Damage("cached table", path, what)


def _configuration(mined: UnitResults, seen: Seen) -> Iterator[Damage]:
    if mined.config not in seen and mined.store.exists(mined.config):
        seen.add(mined.config)
        try:
            unseal(mined.store.read_bytes(mined.config))
        except ValueError as error:
            yield Damage("mining configuration", mined.config, str(error))


def _packed(
    packed: Manifest, mined: Manifest, unit: str, seen: Seen, only: set[str] | None
) -> Iterator[Damage]:
    """A unit's pack record and all that it was made of; with `only`, just if it made one of these shards."""
    record, problems = _read(packed, unit, "pack record", seen)
    if only is not None and record and only.isdisjoint(_shards(record)):
        return
    yield from problems
    yield from _objects_of_pack(packed.store, record or {}, seen)
    source, problems = _mined(mined, unit, seen)
    yield from problems
    made_of = (record or {}).get("detections")
    if made_of and source and source["detections"]["path"] != made_of:
        what = f"was made of {made_of}, but the unit was mined again since"
        yield Damage("pack record", packed.path(unit), what)


def _objects_of_pack(store: Store, record: dict[str, Any], seen: Seen) -> Iterator[Damage]:
    for path in _shards(record):
        yield from _object(store, "shard", path, seen)
    if record.get("failures"):
        yield from _object(store, "packing failures", record["failures"], seen)


def _shards(record: dict[str, Any]) -> list[str]:
    return [shard["path"] for split in record.get("shards", {}).values() for shard in split]


def _mined(mined: Manifest, unit: str, seen: Seen) -> tuple[dict[str, Any] | None, list[Damage]]:
    """A unit's mining record, and the faults of it, its detections and its failures."""
    record, found = _read(mined, unit, "mining record", seen)
    for kind, name in (("detections", "detections"), ("mining failures", "failures")):
        if record and record.get(name):
            found += _object(mined.store, kind, record[name]["path"], seen)
    return record, found


def _read(manifest: Manifest, unit: str, kind: str, seen: Seen) -> tuple[dict[str, Any] | None, list[Damage]]:
    """A unit's record, and its fault unless it was reported before."""
    path = manifest.path(unit)
    told = path in seen
    seen.add(path)
    try:
        record = manifest.record(unit)
        return record, [] if record is not None or told else [Damage(kind, path, "is missing")]
    except DamagedError as error:
        return None, [] if told else [Damage(kind, path, error.what)]


def _object(store: Store, kind: str, path: str, seen: Seen) -> Iterator[Damage]:
    if path in seen:
        return
    seen.add(path)
    try:
        wanted, there = name_sha256(path), store.sha256(path)
    except FileNotFoundError:
        yield Damage(kind, path, "is missing")
    except (ValueError, OSError) as error:
        yield Damage(kind, path, f"cannot be read ({error})")
    else:
        if wanted != there:
            yield Damage(kind, path, f"sha256 {there[:12]}, expected {wanted[:12]}")


def _registry(registry: Registry, seen: Seen) -> Iterator[Damage]:
    """The log, and for every model that it names: the copy, the stored files of its run, its report and metrics."""
    log = registry.log()
    yield from (Damage("registry row", row.path, row.what) for row in log if isinstance(row, DamagedError))
    rows = [row for row in log if isinstance(row, Decision)]
    promoted = {row.model: row for row in rows if row.kind != REFUSED}  # the last row of each
    for model, row in promoted.items():
        folder = registry.model(model)
        if not folder.exists(""):
            yield Damage("model", f"{MODELS}/{model}", "is missing")
        else:
            for name, what in files_damage(folder, row.files):
                yield Damage("model", f"{MODELS}/{model}/{name}", what)
            for name in sorted({*folder.store.list()} - {file["name"] for file in row.files}):
                yield Damage("model", f"{MODELS}/{model}/{name}", "did not exist at the promotion")
        for name, what in files_damage(registry.run(model), row.kept or []):
            yield Damage("run of a model", f"{MODEL_RUNS}/{model}/{name}", what)
    for row in rows:
        if row.report:
            yield from _object(registry.store, "report", row.report, seen)
    for answers in registry.store.folders(ASSESSED):
        for name, what in folder_damage(registry.assessment(answers)):
            yield Damage("assessment", f"{ASSESSED}/{answers}/{name}", what)
