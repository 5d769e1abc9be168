"""Tables that can be made again from other files of the home: hashes of a source, summaries of records, image indexes.

A table is a set of rows with a unique `id`, kept as parquet segments in HOME/cache/<name>. Writers only add segments,
under names that hold the number of rows and the sha256 of the bytes, so they need no lock and no conditional put: two
that add the same row make it twice, and readers take one of each id. Many small segments are merged into one, which is
written before the small ones are deleted; a writer that is killed between leaves rows twice.

A segment that is damaged, unreadable or deleted costs the work that its rows save, and nothing else: the caller
compares the ids with what there is and makes the others again. The whole folder may be deleted at any time.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Container
from typing import Any

import pyarrow as pa
import pyarrow.compute

from hyco.storage.layout import CACHE
from hyco.storage.sealed import read_table, write_table
from hyco.storage.store import Store

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

_NAME = re.compile(r"(\d{10})-([0-9a-f]{64})\.parquet")
_LOOKS = 5
_MERGED = 16
"""Segments of one size class (powers of this number of rows) that are merged."""


class Derived:
    """One table.

    Args:
        store: the home.
        name: folder below HOME/cache. A table with other columns needs another name.
        schema: of the rows; its first column is `id`.
    """

    def __init__(self, store: Store, name: str, schema: pa.Schema) -> None:
        assert schema.names[0] == "id", "the first column of a derived table is its id"
        self.store, self.folder, self.schema = store, f"{CACHE}/{name}", schema

    def rows(self) -> pa.Table:
        """Return all rows, one of each id, in any order."""
        return _joined(list(self.segments().values()), self.schema)

    def names(self) -> list[str]:
        """Return the names of the segments; a name never stands for other rows."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [name for name in self.store.names(self.folder) if _NAME.fullmatch(name)]
        return []

    def segments(self, known: Container[str] = ()) -> dict[str, pa.Table]:
        """Return the rows of the readable segments by name, except the names that are `known`."""
        found: dict[str, pa.Table | None] = {}
        for _ in range(_LOOKS):
            names = [name for name in self.names() if name not in known]
            found = {name: found.get(name) or self._segment(name) for name in names}
            lost = [name for name, table in found.items() if table is None]
            if all(self.store.exists(f"{self.folder}/{name}") for name in lost):
                break  # else another process has merged some of them: look for what it wrote
        return {name: table for name, table in found.items() if table is not None}

    def add(self, rows: pa.Table | list[dict[str, Any]]) -> None:
        """Add rows. In a home that cannot be written to nothing is added, and nothing is raised."""
        table = pa.Table.from_pylist(rows, self.schema) if isinstance(rows, list) else rows.cast(self.schema)
        if not table.num_rows:
            return
        with contextlib.suppress(OSError):
            self._write(table)
            self._merge()

    def discard(self, ids: list[str]) -> None:
        """Drop the rows of these ids; a process that merges segments at the same time may keep some of them."""
        held = self.segments()
        rows = _joined(list(held.values()), self.schema)
        kept = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=pa.array(ids, pa.string()))))
        if kept.num_rows == rows.num_rows:
            return
        with contextlib.suppress(OSError):
            made = self._write(kept)
            for name in held:
                if name != made:
                    self.store.delete(f"{self.folder}/{name}")

    def _write(self, table: pa.Table) -> str:
        data = io.BytesIO()
        write_table(table, data)
        name = f"{table.num_rows:010d}-{hashlib.sha256(data.getvalue()).hexdigest()}.parquet"
        try:
            self.store.replace(f"{self.folder}/{name}", data.getvalue())
        except ValueError as error:  # a store to which nothing can be committed
            raise OSError(str(error)) from None
        return name

    def _merge(self) -> None:
        """Merge the segments of each size class that has many of them, the small ones first."""
        while True:
            classes: dict[int, list[str]] = {}
            for name in self.names():
                classes.setdefault(_size_class(name), []).append(name)
            full = next((names for _, names in sorted(classes.items()) if len(names) >= _MERGED), None)
            if full is None:
                return
            held = (self._segment(name) for name in full)
            made = self._write(_joined([table for table in held if table is not None], self.schema))
            for name in full:
                if name != made:
                    self.store.delete(f"{self.folder}/{name}")

    def _segment(self, name: str) -> pa.Table | None:
        """Return the rows of a segment; None for one that is damaged, of other columns, or gone."""
        try:
            data = self.store.read_bytes(f"{self.folder}/{name}")
            table = read_table(data)
        except (FileNotFoundError, ValueError):
            return None
        whole = hashlib.sha256(data).hexdigest() == _NAME.fullmatch(name)[2]  # type: ignore[index]
        return table if whole and table.schema.equals(self.schema) else None


def problem(store: Store, path: str) -> str:
    """Return what is wrong with a file below HOME/cache; "" for a whole one and for one that is gone."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        return "is not a file of Hyco"
    with contextlib.suppress(FileNotFoundError):
        found = store.sha256(path)
        return "" if found == match[2] else f"sha256 {found[:12]}, expected {match[2][:12]}"
    return ""


def _size_class(name: str) -> int:
    rows, level = int(name.partition("-")[0]), 0
    while rows >= _MERGED:
        rows, level = rows // _MERGED, level + 1
    return level


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the rows of several segments, the first one of each id."""
    table = pa.concat_tables([schema.empty_table(), *tables])
    if len(tables) < 2:  # within a segment every id is there once
        return table
    if pc.count_distinct(table["id"]).as_py() == table.num_rows:
        return table
    first: dict[str, int] = {}
    for place, row in enumerate(table["id"].to_pylist()):
        first.setdefault(row, place)
    return table.take(pa.array(list(first.values())))
