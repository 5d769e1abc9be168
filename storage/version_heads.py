"""Dataset versions without their lists of shards: what a look at all versions of a home needs of each.

A version of ten thousand shards is a file of megabytes. A table (storage.derived) has a row for each version, by its
name and the mark of its file, so that only new versions are read.
"""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from storage.derived import Derived
from storage.layout import QUARANTINE, VERSIONS
from storage.versions import Version, Versions

_SCHEMA = pa.schema(
    {"id": pa.string(), "head": pa.string(), "train": pa.list_(pa.uint64()), "samples": pa.list_(pa.int32())}
)

pc: Any = pyarrow.compute  # most of its functions are made when it is imported
_HEAD = ("name", "parent", "config", "digests", "counts", "detectors", "created")


@dataclass(frozen=True, slots=True)
class Head:
    """A version without its shards.

    Attributes:
        version: its record; `shards` and `units` are empty.
        train: keys of its training shards, uint64 [S], see `shard_keys`.
        samples: samples in each of them, int32 [S].
    """

    version: Version
    train: pa.Array
    samples: pa.Array

    @property
    def name(self) -> str:
        """The version's name."""
        return self.version.name


def heads(versions: Versions) -> list[Head]:
    """Return all versions of a home, oldest first; DamagedError for a new one that is damaged."""
    kept = Derived(versions.store, "versions-1", _SCHEMA)
    marks = versions.store.marks(VERSIONS, below=False)
    names = {path.rpartition("/")[2][:-5]: mark for path, mark in marks.items() if path.endswith(".json")}
    ids = {f"{mark} {name}": name for name, mark in names.items() if not name.startswith(".")}
    rows = kept.rows()
    rows = rows.filter(pc.is_in(rows["id"], value_set=pa.array(list(ids), pa.string())))
    if missing := sorted(ids.keys() - set(rows["id"].to_pylist())):
        made = pa.Table.from_pylist([_row(name, versions.load(ids[name])) for name in missing], _SCHEMA)
        kept.add(made)
        rows = pa.concat_tables([rows, made])
    found = [
        Head(Version(**json.loads(head.as_py()), shards={}), train.values, samples.values)
        for head, train, samples in zip(rows["head"], rows["train"], rows["samples"], strict=True)
    ]
    return sorted(found, key=lambda head: (head.version.created, head.name))


def latest(versions: Versions, known: list[Head]) -> str | None:
    """Return the name of the latest version; None before the first, or when it cannot be read."""
    try:
        name = versions.latest()
    except ValueError:
        return None
    return name if name in {head.name for head in known} else None


def quarantined(versions: Versions) -> set[str]:
    """Return the names of the versions in quarantine."""
    return {
        path.rpartition("/")[2][:-5] for path in versions.store.list(QUARANTINE) if path.endswith(".json")
    }


def shard_keys(paths: list[str]) -> list[int]:
    """Return the first 64 bits of the hashes in the names of shards."""
    return [int(path.rpartition("/")[2][:16], 16) for path in paths]


def _row(name: str, version: Version) -> dict[str, Any]:
    shards = version.shards.get("train", [])
    return {
        "id": name,
        "head": json.dumps({field: getattr(version, field) for field in _HEAD}),
        "train": shard_keys([shard.path for shard in shards]),
        "samples": [shard.samples for shard in shards],
    }
