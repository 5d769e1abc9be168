"""Records of finished work: one JSON record per unit, created once and never changed."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hyco.storage.objects import DamagedError, objects_in
from hyco.storage.sealed import seal, unseal
from hyco.storage.store import Store

_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REMOTE_READS = 16


class Manifest:
    """The records below one folder of a store.

    A unit is done exactly when its record and every object that the record names exist: objects without a record are
    garbage. Records are created only if absent: when two workers finish the same unit, one wins and both see the same
    result. A record holds a proof of its own bytes, see storage.sealed.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix.rstrip("/")

    def record(self, unit: str) -> dict[str, Any] | None:
        """Return the record of a unit, or None without one; DamagedError when it has changed since it was written."""
        try:
            data = self.store.read_bytes(self.path(unit))
        except FileNotFoundError:
            return None
        try:
            return unseal(data)
        except ValueError as error:
            raise DamagedError(self.path(unit), str(error), self.store.url) from None

    def done(self, unit: str) -> dict[str, Any] | None:
        """Return the record of a unit that is done, else None; a record that names an absent object is deleted."""
        record = self.record(unit)
        if record is None or all(self.store.exists(path) for path in objects_in(record)):
            return record
        self.forget(unit)
        return None

    def commit(self, unit: str, record: dict[str, Any]) -> bool:
        """Make `record` the result of a unit; return False, changing nothing, when it has one already."""
        return self.store.create(self.path(unit), seal(record))

    def replace(self, unit: str, record: dict[str, Any]) -> None:
        """Put another record in the place of the present one: after a deletion, see storage.deletions."""
        self.store.replace(self.path(unit), seal(record))

    def forget(self, unit: str) -> bool:
        """Delete a record so that the unit is done again; return False when there was none."""
        return self.store.delete(self.path(unit))

    def units(self) -> list[str]:
        """Return the names of all units that have a record, sorted."""
        start = len(self.prefix) + 1
        paths = self.store.list(self.prefix)
        return [path[start:-5] for path in paths if path.endswith(".json") and "/" not in path[start:]]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return every record by unit name, sorted by name."""
        units = self.units()
        if self.store.local:
            found = [self.record(unit) for unit in units]
        else:
            with ThreadPoolExecutor(_REMOTE_READS) as pool:  # a remote read waits for the network
                found = list(pool.map(self.record, units))
        return {unit: record for unit, record in zip(units, found, strict=True) if record is not None}

    def whole(self) -> dict[str, dict[str, Any]]:
        """Return the records of the units that are done, by unit name, sorted by name.

        Lists each folder of objects once instead of checking every object.
        """
        records = self.records()
        named = {unit: objects_in(record) for unit, record in records.items()}
        folders = {path.rpartition("/")[0] for paths in named.values() for path in paths}
        there = {path for folder in folders for path in self.store.list(folder)}
        return {unit: record for unit, record in records.items() if named[unit] <= there}

    def path(self, unit: str) -> str:
        """Return the path of the record of a unit; ValueError for a name that cannot be a file name."""
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"unit name {unit!r} must match {_UNIT.pattern}: it becomes a file name")
        return f"{self.prefix}/{unit}.json"
