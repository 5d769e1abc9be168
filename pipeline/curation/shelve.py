"""Set a shard of a source aside, so that one bad file does not stop mining, packing and retraining; and return it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.source import Source, Unit, open_source
from hyco.storage.home import Home
from hyco.storage.layout import DEPLOYED
from hyco.storage.sealed import unseal
from hyco.storage.shelf import Shelved
from hyco.storage.version_heads import heads


def shelve(home: Home, shard: str, reason: str, source: str | None = None) -> Shelved:
    """Set a shard aside and return its entry.

    The file is not touched. Mining, packing, evaluation and retraining go on without it until it is returned, or until
    its file is replaced or removed.

    Args:
        home: whose work goes on without it.
        shard: its path as messages name it ("00009.tar", "captions.csv#2"), or where it lies.
        reason: for status, pages and notifications.
        source: the source that it belongs to; by default those that the home has mined or begun to mine.

    Raises:
        ValueError: no reason; no such shard, or several; it is set aside already.
    """
    if not reason.strip():
        raise ValueError("no reason is given: say with --reason why the shard is set aside")
    found = {(opened.store.url, unit.name): (opened, unit) for opened, unit in _find(home, shard, source)}
    if len(found) != 1:
        places = ", ".join(sorted({opened.store.url for opened, _ in found.values()}))
        known = ", ".join(sorted(place for place, _ in _sources(home, source))) or "no source"
        raise ValueError(
            f"shard {shard} lies in {places}: give --source with one of them"
            if found
            else f"no shard {shard} in {known}: give its path as the message names it, or --source"
        )
    ((opened, unit),) = found.values()
    if not home.shelf.put(unit.name, unit.path, opened.store.url, reason.strip()):
        raise ValueError(
            f"shard {unit.path} is set aside already: hyco shelve {unit.path} --back --home {home} returns it"
        )
    return next(entry for entry in home.shelf.entries() if entry.unit == unit.name)


def unshelve(home: Home, shard: str) -> Shelved:
    """Return a shard that was set aside, named by its path or unit; ValueError when there is no such one."""
    entries = home.shelf.entries()
    found = [
        entry
        for entry in entries
        if shard in (entry.unit, entry.path) or _lies(entry.source, entry.path) == shard
    ]
    if len(found) != 1:
        listed = ", ".join(f"{entry.path} ({entry.unit})" for entry in found or entries) or "nothing"
        raise ValueError(f"shard {shard} is {'ambiguous' if found else 'not set aside'}; set aside: {listed}")
    home.shelf.back(found[0].unit)
    return found[0]


def _find(home: Home, shard: str, source: str | None) -> Iterator[tuple[Source, Unit]]:
    """Every unit of that path in the sources of the home, in the one given, or in the folder that the path names."""
    shard = shard if "://" in shard or "/" not in shard else str(Path(shard).expanduser())
    lies = shard if "://" in shard else str(Path(shard).absolute())
    places = _sources(home, source)
    if "/" in shard and source is None:
        places.append((lies.rpartition("/")[0], USUAL))
    for place, columns in places:
        try:
            opened = open_source(place, columns=columns)
            units = opened.units()
        except (ValueError, OSError):  # a source that has moved since
            if source is not None:
                raise
            continue
        for unit in units:
            if shard in (unit.path, unit.name) or lies == _lies(opened.store.url, unit.path):
                yield opened, unit


def _sources(home: Home, source: str | None) -> list[tuple[str, Columns]]:
    """The sources that the home was told to mine, with their columns: of its mining and of its deployment."""
    if source is not None:
        return [(source, USUAL)]
    told: list[dict[str, Any]] = []
    for mined in home.all_detections():
        if home.store.exists(mined.config):
            told.append(unseal(home.store.read_bytes(mined.config)))
    told += [head.version.config["mine"] for head in heads(home.versions) if "mine" in head.version.config]
    if home.store.exists(DEPLOYED):
        journey = json.loads(home.store.read_bytes(DEPLOYED))["retrain"]["journey"]
        held = {**journey["mine"], "source": journey.get("assess_source")}
        told += [journey["mine"], *([held] if held["source"] else [])]
    found = {}
    for config in told:
        columns = Columns(**config.get("columns") or {})
        found[str(config["source"]), columns.model_dump_json()] = (str(config["source"]), columns)
    return list(found.values())


def _lies(source: str, path: str) -> str:
    return f"{source.rstrip('/')}/{path}"
