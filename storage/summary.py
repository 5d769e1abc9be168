"""What the records of a stage say, in one table: looking at a home reads the records that are new, and no others.

The table (storage.derived) has a row for each record, by the record's name and the mark of its file: its size and
times, or the tag that an object store gives it. A record that is deleted, written anew or changed has no row that
counts any more, so the records stay the truth. Only their folder is listed, and a local folder not even that while its
own times are those of a moment when the table was complete: a row without a unit notes these and the number of rows.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute

from hyco.storage.derived import Derived
from hyco.storage.layout import DETECTIONS, OBJECTS, PACKS
from hyco.storage.manifest import Manifest
from hyco.storage.objects import DamagedError, objects_in

pc: Any = pyarrow.compute  # most of its functions are made when it is imported
SETTLED_S = 2.0
"""Age in seconds from which a folder's times are believed: longer than a tick of any filesystem's clock."""
_UNIT = re.compile(r"(?!\.tmp-).+\.json")
_REMOTE_READS = 16
_SAVED = 2000  # records read between two additions to the table
_TEXT, _TEXTS, _NUMBER = pa.string(), pa.list_(pa.string()), pa.float64()
_MARKS = pa.schema({"id": _TEXT})
_COMMON = {"id": _TEXT, "unit": _TEXT, "objects": _TEXTS, "detections": _TEXT}
COUNTS = (
    "images",
    "failed",
    "captions",
    "phrases",
    "boxes",
    "phrases_with_boxes",
    "phrases_unknown",
    "captions_unknown",
    "not_downloaded",
    "opted_out",
    "reused",
)
"""Numbers in a mining record; null where an earlier Hyco did not count them."""
TIMES = ("started", "finished", "seconds")
SCHEMAS = {
    DETECTIONS: pa.schema(
        {
            **_COMMON,
            "path": _TEXT,
            "sha256": _TEXT,
            **dict.fromkeys(COUNTS, pa.int64()),
            **dict.fromkeys(TIMES, _NUMBER),
            "codes": _TEXT,
            "reading": pa.int32(),
        }
    ),
    PACKS: pa.schema({**_COMMON, "without": _TEXT, "train": _TEXTS}),
}
"""Columns by stage: "objects" are the paths that a record names, "path" and "sha256" those of the unit in its source,
"codes" the JSON of failed_by_code, "seconds" those of all work, "train" the paths of the training shards."""


def summarise(manifest: Manifest, folder: str) -> tuple[pa.Table, list[DamagedError]]:
    """Return a row for each record of a folder of detections or packs, in any order, and the damaged records.

    A damaged record has no row; it is named at each look until it is repaired.
    """
    stage, _, digest = folder.partition("/")
    kept = Derived(manifest.store, f"records-2/{stage}/{digest}", SCHEMAS[stage])
    mark, rows = _folder_mark(manifest), kept.rows()
    complete = rows.filter(pc.is_null(rows["unit"]))
    rows = rows.filter(pc.is_valid(rows["unit"]))
    if mark and f"{rows.num_rows} {mark}" in complete["id"].to_pylist():
        return rows, []  # the folder has not changed since every record was in the table, and no other
    start = len(manifest.prefix) + 1
    marks = manifest.store.marks(manifest.prefix, below=False).items()
    ids = {
        f"{mark} {path[start:-5]}": path[start:-5] for path, mark in marks if _UNIT.fullmatch(path[start:])
    }
    there = pc.is_in(rows["id"], value_set=pa.array(list(ids), _TEXT))
    if stale := rows.filter(pc.invert(there))["id"].to_pylist():
        kept.discard(stale)
        rows = rows.filter(there)
    missing = sorted(ids.keys() - set(rows["id"].to_pylist())) if rows.num_rows < len(ids) else []
    found, damaged = [rows], list[DamagedError]()
    for first in range(0, len(missing), _SAVED):
        names = missing[first : first + _SAVED]
        made = []
        for name, record in _read(manifest, ids, names):
            if isinstance(record, DamagedError):
                damaged.append(record)
            elif record:
                made.append(_row(stage, name, ids[name], record))
        found.append(pa.Table.from_pylist(made, SCHEMAS[stage]))
        kept.add(found[-1])
    rows = pa.concat_tables(found)
    if mark and rows.num_rows == len(ids) and mark == _folder_mark(manifest):
        kept.add([{"id": f"{rows.num_rows} {mark}"}])
    return rows, damaged


def _folder_mark(manifest: Manifest, folder: str = "") -> str:
    """Return the times of a local folder, that of the records: creating or deleting a file in it changes them.

    "" for a remote folder, and for one in which something may still happen within the same tick of the clock.
    """
    with contextlib.suppress(OSError):
        if manifest.store.local:
            stat = os.stat(manifest.store.path(folder or manifest.prefix))  # noqa: PTH116
            if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED_S:
                return f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return ""


def whole(manifest: Manifest, rows: pa.Table) -> pa.Table:
    """Return the rows whose objects all exist, of a summary of all records.

    Lists the folder of the stage's own objects and asks for others. A local folder is not listed while its times, and
    those of the records, are those of a moment when every object was there.
    """
    own = f"{manifest.prefix.rpartition('/')[0]}/{OBJECTS}"
    mark, kept = (
        _whole_mark(manifest, own, rows),
        Derived(manifest.store, f"whole-1/{manifest.prefix}", _MARKS),
    )
    if mark and mark in kept.rows()["id"].to_pylist():
        return rows
    objects = rows["objects"].combine_chunks()
    named = pc.list_flatten(objects)
    absent = pc.invert(pc.is_in(named, value_set=pa.array(manifest.store.list(own), _TEXT)))
    elsewhere = [path for path in pc.unique(named.filter(absent)).to_pylist() if manifest.store.exists(path)]
    if mark and not pc.any(absent).as_py() and mark == _whole_mark(manifest, own, rows):
        kept.add([{"id": mark}])
    absent = pc.and_not(absent, pc.is_in(named, value_set=pa.array(elsewhere, _TEXT)))
    torn = pc.unique(pc.filter(pc.list_parent_indices(objects), absent))
    if not len(torn):
        return rows
    places = pa.array(range(rows.num_rows), torn.type)
    return rows.filter(pc.invert(pc.is_in(places, value_set=torn)))


def _whole_mark(manifest: Manifest, own: str, rows: pa.Table) -> str:
    """Return the times of the folders of records and of objects, and the number of records; "" as _folder_mark."""
    marks = (_folder_mark(manifest), _folder_mark(manifest, own))
    return f"{rows.num_rows} {' '.join(marks)}" if all(marks) else ""


def total(rows: pa.Table, column: str) -> int:
    """Return the sum of a column of counts, where null counts nothing."""
    return int(pc.sum(rows[column]).as_py() or 0)


def _read(
    manifest: Manifest, ids: dict[str, str], names: list[str]
) -> Iterable[tuple[str, dict[str, Any] | DamagedError | None]]:
    def read(name: str) -> dict[str, Any] | DamagedError | None:
        try:
            return manifest.record(ids[name])
        except DamagedError as error:
            return error

    if manifest.store.local:
        return ((name, read(name)) for name in names)
    with ThreadPoolExecutor(_REMOTE_READS) as pool:  # a remote read waits for the network
        return list(zip(names, pool.map(read, names), strict=True))


def _row(stage: str, name: str, unit: str, record: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": name, "unit": unit, "objects": sorted(objects_in(record))}
    if stage == PACKS:
        shards = record.get("shards", {}).get("train", ())
        return row | {
            "detections": record.get("detections"),
            "without": record.get("without", ""),
            "train": [shard["path"] for shard in shards],
        }
    return row | {
        "detections": record["detections"]["path"] if "detections" in record else None,
        "path": record.get("path", ""),
        "sha256": record.get("sha256", ""),
        **{count: record.get(count) for count in COUNTS},
        **{time: record.get(time) for time in TIMES[:2]},
        "seconds": record.get("seconds", {}).get("total"),
        "codes": json.dumps(record.get("failed_by_code", {})),
        "reading": record.get("reading", 1),
    }
