"""Hashes of the local files of a source, kept in the home: a look at an unchanged source reads no byte of it.

A hash is known for a path with one size, time of change and time of its entry. A file that was just written may change
again within the same tick of a filesystem's clock, so its hash is kept only later. The bytes decide in the end: a unit
is mined and packed only when the file that was read has the hash that was listed.
"""

import functools
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from hyco.storage.derived import Derived
from hyco.storage.files import sha256_of
from hyco.storage.store import Store, file_mark

SETTLED_S = 2.0
"""Minimum age of a file, in seconds, before its hash is kept: longer than a tick of any filesystem's clock."""
SAVE_EVERY_S = 30.0
"""Seconds of hashing that a killed process may lose."""
_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("sha256", pa.string())])


class KnownHashes:
    """The hashes of one source's files.

    Args:
        source: the store of the source.
        home: the store of the home; None keeps them in this process alone.
    """

    def __init__(self, source: Store, home: Store | None = None) -> None:
        self.source, self._lock, self._saved = source, threading.Lock(), time.monotonic()
        self._kept = Derived(home, _name(source), _SCHEMA) if home is not None and source.local else None
        self._known = self._read()
        self._new: dict[str, str] = {}

    def known(self, marks: Mapping[str, str]) -> dict[str, str]:
        """Return the sha256 of the local files that were hashed before and have these marks, by path."""
        if not self._known:
            return {}
        known = self._known
        return {
            path: sha256
            for path, mark in marks.items()
            if (sha256 := known.get(f"{mark} {path}")) is not None
        }

    def sha256(self, path: str) -> str:
        """Return the sha256 of a local file of the source; FileNotFoundError when it is gone."""
        full = self.source.path(path)
        stat = os.stat(full)  # noqa: PTH116
        mark = file_mark(stat)
        name = f"{mark} {path}"
        if (known := self._known.get(name)) is not None:
            return known
        sha256 = _file_sha256(full, mark)
        age = time.time() - max(stat.st_mtime, stat.st_ctime)
        if self._kept is not None and age > SETTLED_S and mark == file_mark(os.stat(full)):  # noqa: PTH116
            with self._lock:
                self._new[name] = sha256
                if time.monotonic() - self._saved > SAVE_EVERY_S:
                    self._save()
        return sha256

    def save(self) -> None:
        """Keep in the home what was hashed since the last time."""
        with self._lock:
            self._save()

    def forget(self, paths: Iterable[str]) -> None:
        """Drop the hashes of files that turned out to be others than they were, so that they are hashed again."""
        if self._kept is not None:
            gone = set(paths)
            self._kept.discard([name for name in self._known if name.split(" ", 3)[3] in gone])
            self._known = self._read()

    def _read(self) -> dict[str, str]:
        if self._kept is None:
            return {}
        rows = self._kept.rows()
        return dict(zip(rows["id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._kept is not None:
            self._kept.add([{"id": name, "sha256": sha256} for name, sha256 in self._new.items()])
            self._known |= self._new
            self._new = {}


def _name(source: Store) -> str:
    return f"hashes-1/{hashlib.sha256(source.url.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


@functools.lru_cache(1 << 16)
def _file_sha256(path: str, mark: str) -> str:
    """Hash a local file once per process, as long as its mark stays the same."""
    return sha256_of(Path(path))
