"""What is done: one JSON record for each unit of work, created once and never changed."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storage.store import Store

_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REMOTE_READS = 16


class Manifest:
    """The records below one folder of a store.

    A unit is done when its record exists, and only then: objects without a record are garbage. Records are
    created if absent, so of two workers that finish the same unit one wins and both see the same result.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix.rstrip("/")

    def record(self, unit: str) -> dict[str, Any] | None:
        """Return the record of a unit, or None while it is not done."""
        try:
            data = self.store.read_bytes(self._path(unit))
        except FileNotFoundError:
            return None
        try:
            return json.loads(data)
        except ValueError:
            where = f"{self.store.url}/{self._path(unit)}"
            raise ValueError(f"record {where} is not JSON: delete it to do the unit again") from None

    def commit(self, unit: str, record: dict[str, Any]) -> bool:
        """Make `record` the result of a unit; return False, changing nothing, when it has one already."""
        text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return self.store.create(self._path(unit), text.encode())

    def forget(self, unit: str) -> bool:
        """Delete a record so that the unit is done anew; return False when there was none."""
        return self.store.delete(self._path(unit))

    def units(self) -> list[str]:
        """Return the names of all units that are done, sorted."""
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

    def _path(self, unit: str) -> str:
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"unit name {unit!r} must match {_UNIT.pattern}: it becomes a file name")
        return f"{self.prefix}/{unit}.json"
