"""What is done: one JSON record for each unit of work, created once and never changed."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storage.store import Store

_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONTENT = re.compile(r"[0-9a-f]{12}")  # a unit named by its content
_LABELLED = re.compile(rf".+-({_CONTENT.pattern})")  # homes older than that put the file's stem before it
_REMOTE_READS = 16


class Manifest:
    """The records below one folder of a store.

    A unit is done when its record exists, and only then: objects without a record are garbage. Records are
    created if absent, so of two workers that finish the same unit one wins and both see the same result. A unit is
    named by its content; records of older homes, "STEM-UNIT.json", are found under that name too.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix.rstrip("/")

    def record(self, unit: str) -> dict[str, Any] | None:
        """Return the record of a unit, or None while it is not done."""
        found = self._read(self._path(unit))
        if found is None and (labelled := self._labelled(unit)) is not None:
            found = self._read(labelled)
        return found

    def commit(self, unit: str, record: dict[str, Any]) -> bool:
        """Make `record` the result of a unit; return False, changing nothing, when it has one already."""
        text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return self.store.create(self._path(unit), text.encode())

    def forget(self, unit: str) -> bool:
        """Delete a record so that the unit is done anew; return False when there was none."""
        labelled = self._labelled(unit)
        old = labelled is not None and self.store.delete(labelled)
        return self.store.delete(self._path(unit)) or old

    def units(self) -> list[str]:
        """Return the names of all units that are done, sorted."""
        return sorted({_unit(name) for name in self._files()})

    def records(self) -> dict[str, dict[str, Any]]:
        """Return every record by unit name, sorted by name."""
        files = sorted(
            self._files(), key=lambda name: (name != _unit(name), name)
        )  # a new name before an old one
        files = list({_unit(name): name for name in reversed(files)}.values())
        if self.store.local:
            found = [self._read(f"{self.prefix}/{name}.json") for name in files]
        else:
            with ThreadPoolExecutor(_REMOTE_READS) as pool:  # a remote read waits for the network
                found = list(pool.map(lambda name: self._read(f"{self.prefix}/{name}.json"), files))
        pairs = zip(map(_unit, files), found, strict=True)
        return dict(sorted((unit, record) for unit, record in pairs if record is not None))

    def _files(self) -> list[str]:
        """The names of all record files, without folder and extension."""
        start = len(self.prefix) + 1
        paths = self.store.list(self.prefix)
        return [path[start:-5] for path in paths if path.endswith(".json") and "/" not in path[start:]]

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            data = self.store.read_bytes(path)
        except FileNotFoundError:
            return None
        try:
            return json.loads(data)
        except ValueError:
            where = f"{self.store.url}/{path}"
            raise ValueError(f"record {where} is not JSON: delete it to do the unit again") from None

    def _labelled(self, unit: str) -> str | None:
        """The path of a record that an older home put the file's stem before."""
        if not _CONTENT.fullmatch(unit):
            return None
        found = (name for name in self._files() if name.endswith(f"-{unit}"))
        name = next(found, None)
        return f"{self.prefix}/{name}.json" if name else None

    def _path(self, unit: str) -> str:
        if not _UNIT.fullmatch(unit):
            raise ValueError(f"unit name {unit!r} must match {_UNIT.pattern}: it becomes a file name")
        return f"{self.prefix}/{unit}.json"


def _unit(name: str) -> str:
    match = _LABELLED.fullmatch(name)
    return match[1] if match else name
