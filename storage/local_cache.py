"""This machine's cache of remote homes: their objects by hash, and the folders that programs open by path.

HYCO_CACHE (by default ~/.cache/hyco) holds objects/, named by their sha256 and together at most HYCO_CACHE_GB, and the
copies/ and marks/ of storage.folder. It may be deleted whenever no process of Hyco runs.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from hyco.storage import faults
from hyco.storage.files import TEMPORARY
from hyco.storage.objects import DamagedError, check_sha256, read_object
from hyco.storage.store import Store

LIMIT_GB = 50.0
_BLOCK = 1 << 20
_LOCK = ".lock"


def cache_root() -> Path:
    """Return the folder of this machine's cache: HYCO_CACHE, or hyco in the user's folder of caches."""
    if chosen := os.environ.get("HYCO_CACHE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyco"


def cache_identity() -> str:
    """Return an identifier of this cache, made when it is first asked for; two machines that share none differ."""
    store = Store(cache_root())
    if not store.exists("identity"):
        store.create("identity", uuid.uuid4().hex.encode())
    return store.read_bytes("identity").decode()


def cache_limit() -> int:
    """Return the maximum number of bytes of all cached objects: HYCO_CACHE_GB; ValueError for one that is no size."""
    told = os.environ.get("HYCO_CACHE_GB") or str(LIMIT_GB)
    with contextlib.suppress(ValueError, OverflowError):
        if (limit := int(float(told) * 1e9)) >= 0:
            return limit
    raise ValueError(
        f"HYCO_CACHE_GB is {told!r}: give the size of the cache in GB, such as 50; 0 caches nothing"
    )


def open_cached(store: Store, path: str, sha256: str, size: int) -> BinaryIO:
    """Open an object for reading: the file itself in a local store, this machine's copy of a remote one."""
    if store.local:
        return store.open(path)
    return ObjectCache(cache_root() / "objects", cache_limit()).open(store, path, sha256, size)


def forget(hashes: Iterable[str]) -> None:
    """Remove objects from this machine's cache."""
    for sha256 in hashes:
        (cache_root() / "objects" / sha256).unlink(missing_ok=True)


class ObjectCache:
    """Objects of remote stores in one folder, named by their sha256, at most `limit` bytes together.

    Safe with any number of threads and processes. One process fetches an object under a temporary name, while the
    others wait, compares it with its hash and renames it, so a process that is killed at any instant leaves no
    incomplete object. The least recently used objects are removed first; a reader of one keeps its open file.
    """

    _intact: set[Path] = set()  # noqa: RUF012  the files that this process has compared with their hash

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def open(
        self, store: Store, path: str, sha256: str, size: int, tell: Callable[[str], object] | None = None
    ) -> BinaryIO:
        """Open an object for reading, fetching it if it is absent; one without room is read without the cache.

        A process compares a cached object with its hash when it first opens it. One that has changed is fetched again,
        and `tell` gets a line about it, by default printed to stderr.

        Raises:
            DamagedError: the object is missing in the store, or has another hash there.
        """
        final, tell = self.folder / sha256, tell or _to_stderr
        while True:
            with contextlib.suppress(FileNotFoundError):
                file = final.open("rb")
                if self._proven(file, final):
                    os.utime(file.fileno())
                    return file
                file.close()
                tell(
                    f"{final}, the cached copy of {path}, has changed since it was fetched: fetching it again"
                )
                final.unlink(missing_ok=True)
            if not self._fetch(store, path, sha256, size, tell):
                return io.BytesIO(read_object(store, path, sha256))

    def _proven(self, file: BinaryIO, final: Path) -> bool:
        if final not in self._intact:
            if hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != final.name:
                return False
            file.seek(0)
            self._intact.add(final)
        return True

    def _fetch(self, store: Store, path: str, sha256: str, size: int, tell: Callable[[str], object]) -> bool:
        """Put an object into the cache; False, fetching nothing, when there is no room for it."""
        final = self.folder / sha256
        with _locked_draft(self.folder / f"{TEMPORARY}{sha256}") as (draft, file):
            if final.exists():  # another process fetched it while this one waited
                return True
            if not self._reserve(draft, file, size):
                return False
            with faults.local(draft, lambda: size):
                found = _copy(store, path, file)
                if found != sha256:
                    tell(f"{path} of {store.url} arrived with another hash: fetching it once more")
                    found = _copy(store, path, file)
                check_sha256(path, found, sha256, store.url)
                os.fsync(file.fileno())
            with self._counting():
                self._intact.add(final)
                draft.rename(final)
        return True

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Exclude other processes that count, add or remove files: a renamed one must be counted once."""
        with (self.folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _reserve(self, draft: Path, file: BinaryIO, size: int) -> bool:
        """Make room for an object and let its temporary file take it at once; False when there is none.

        Temporary files without a lock were left by killed processes and are removed.
        """
        with self._counting():
            held: list[tuple[float, int, Path]] = []
            taken = 0
            for path in self.folder.iterdir():
                if path.name == _LOCK:  # removed, it would let a second process in
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    if path.name.startswith(TEMPORARY):
                        if path != draft and _abandoned(path):
                            path.unlink()
                            continue
                    else:
                        held.append((stat.st_mtime, stat.st_size, path))
                    taken += stat.st_size
            for _, freed, path in sorted(held):
                if taken + size <= self.limit:
                    break
                path.unlink(missing_ok=True)
                taken -= freed
            if taken + size > self.limit:
                return False
            with faults.local(draft, lambda: size):
                file.truncate(size)
            return True


@contextlib.contextmanager
def _locked_draft(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield an empty file of this name that this process alone has locked; it is removed unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is(file, path):
            break
        file.close()  # whoever held the lock has renamed or removed the file
    with file:
        file.truncate(0)
        try:
            yield path, file
        finally:
            if _is(file, path):
                path.unlink()


def _is(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _abandoned(path: Path) -> bool:
    """Whether no process has a temporary file locked."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _copy(store: Store, path: str, file: BinaryIO) -> str:
    """Copy an object into a file and return the sha256 of its bytes."""
    hasher = hashlib.sha256()
    file.seek(0)
    try:
        with store.open(path) as source:
            while block := source.read(_BLOCK):
                hasher.update(block)
                file.write(block)
    except (FileNotFoundError, IsADirectoryError):
        raise DamagedError(path, "is missing", store.url) from None
    file.truncate()
    file.flush()
    return hasher.hexdigest()


def _to_stderr(text: str) -> None:
    print(f"hyco: {text}", file=sys.stderr, flush=True)
