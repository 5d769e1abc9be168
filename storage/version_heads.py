"""Dataset versions without their lists of shards: what a look at all versions of a home needs of each.

A version of ten thousand shards is a file of megabytes. A table (storage.derived) has a row for each version, by its
name and the mark of its file, so that only new versions are read.
"""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from hyco.storage.deletions import Deletions
from hyco.storage.derived import Derived
from hyco.storage.layout import QUARANTINE, VERSIONS
from hyco.storage.versions import Version, Versions

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "head": pa.string(),
        "train": pa.list_(pa.uint64()),
        "samples": pa.list_(pa.int32()),
        "others": pa.list_(pa.uint64()),
    }
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
        others: keys of the shards of other splits, uint64.
    """

    version: Version
    train: pa.Array
    samples: pa.Array
    others: pa.Array

    @property
    def name(self) -> str:
        """The version's name."""
        return self.version.name

    def superseded(self, erased: pa.Array) -> bool:
        """Return whether images of the version were deleted since; `erased` is of `erased_keys`."""
        return any(pc.any(pc.is_in(keys, value_set=erased)).as_py() for keys in (self.train, self.others))


def erased_keys(deletions: Deletions) -> pa.Array:
    """Return the keys of the objects that deletions erased, uint64."""
    return pa.array([int(sha256[:16], 16) for sha256 in deletions.hashes()], pa.uint64())


def with_heirs(deletions: Deletions, keys: pa.Array) -> pa.Array:
    """Return keys of shards with those of the shards that deletions put in their place."""
    gone = erased_keys(deletions)
    wanted = set(gone.filter(pc.is_in(gone, value_set=keys)).to_pylist())
    if not wanted:
        return keys
    paths = [one.path for one in deletions.every() if shard_keys([one.path])[0] in wanted]
    heirs = [str(heir["path"]) for path in paths if (heir := deletions.heir(path)[0])]
    return pa.concat_arrays([keys, pa.array(shard_keys(heirs), pa.uint64())])


def heads(versions: Versions) -> list[Head]:
    """Return all versions of a home, oldest first; DamagedError for a new one that is damaged."""
    known, damaged = readable(versions)
    for error in damaged.values():
        raise error
    return known


def readable(versions: Versions) -> tuple[list[Head], dict[str, ValueError]]:
    """Return the versions of a home that can be read, oldest first, and by name the error of every other one."""
    kept = Derived(versions.store, "versions-1", _SCHEMA)
    marks = versions.store.marks(VERSIONS, below=False)
    names = {path.rpartition("/")[2][:-5]: mark for path, mark in marks.items() if path.endswith(".json")}
    ids = {f"{mark} {name}": name for name, mark in names.items() if not name.startswith(".")}
    rows = kept.rows()
    rows = rows.filter(pc.is_in(rows["id"], value_set=pa.array(list(ids), pa.string())))
    new, damaged = list[dict[str, Any]](), dict[str, ValueError]()
    for name in sorted(ids.keys() - set(rows["id"].to_pylist())):
        try:
            new.append(_row(name, versions.load(ids[name])))
        except ValueError as error:
            damaged[ids[name]] = error
    if new:
        made = pa.Table.from_pylist(new, _SCHEMA)
        kept.add(made)
        rows = pa.concat_tables([rows, made])
    found = [
        Head(Version(**json.loads(head.as_py()), shards={}), *(keys.values for keys in lists))
        for head, *lists in zip(*(rows[name] for name in _SCHEMA.names[1:]), strict=True)
    ]
    return sorted(found, key=lambda head: (head.version.created, head.name)), damaged


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
        "others": shard_keys(
            [ref.path for split, refs in version.shards.items() if split != "train" for ref in refs]
        ),
    }
