"""A folder of files at any fsspec URL, with atomic commits and content-addressed names.

The commit protocol (docs/shards.md): write to a unique temporary name on the same filesystem, fsync,
sha256, rename to a content-addressed name, fsync the directory. A reader never sees half an object, and two
writers of equal bytes agree on one name.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import fsspec.utils
from fsspec.implementations.local import LocalFileSystem

from hyco.storage import faults
from hyco.storage.files import fsync_directory, sha256_of

Paths = list[str]  # defined here because Store.list hides the builtin inside the class

_T = TypeVar("_T")
_TEMPORARY = ".tmp-"
_PROBE = f"{_TEMPORARY}if-none-match"  # an empty file; every listing skips it
_BLOCK = 1 << 20
# Filesystems whose single put is atomic: an object is complete or absent.
_ATOMIC_PUT = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "az"}

_TELLING = {"s3", "s3a"}  # tests/pipeline/sources/test_remote.py


@dataclass(frozen=True, slots=True)
class Object:
    """A committed file: its path inside the store, the sha256 of its bytes, its size in bytes."""

    path: str
    sha256: str
    size: int


class Store:
    """Files under one root: a local path or an fsspec URL (memory://, s3://bucket/prefix, ...).

    Paths given to its methods are relative, with forward slashes. Nothing is created before the first write.
    """

    def __init__(self, url: str | os.PathLike[str], **options: Any) -> None:
        self.url = os.fspath(url)
        if "::" in self.url:
            raise ValueError(f"store {self.url!r} chains filesystems with '::': give the plain URL")
        protocol = fsspec.utils.get_protocol(self.url)
        try:
            known = fsspec.get_filesystem_class(protocol)
        except ImportError as error:  # fsspec names the package to install
            raise ValueError(f"store {self.url!r}: {error}, or use a local path or s3://") from None
        except ValueError as error:
            raise ValueError(f"store {self.url!r}: {error}; use a local path, s3:// or gs://") from None
        self.local = issubclass(known, LocalFileSystem)
        if self.local:
            self.url = str(
                Path(self.url.removeprefix("file://").removeprefix("local://")).expanduser().absolute()
            )
            self.root = self.url
        else:
            # A cached listing would hide what another process has just committed.
            self.fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
            self.root = root.rstrip("/")
            self._protocol, self._atomic = protocol, protocol in _ATOMIC_PUT

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, path: str) -> str:
        """Return the absolute path (local, or the filesystem's own); ValueError if it leaves the root."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"path {path!r} leaves the store {self.url}: give a relative path")
        return f"{self.root}/{path}" if path else self.root

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading; FileNotFoundError if absent."""
        if self.local:
            return Path(self.path(path)).open("rb")
        file = self._remote(path, lambda: self.fs.open(self.path(path), "rb"))
        return io.BufferedReader(faults.Reader(self.url, path, file), _BLOCK)

    def read_bytes(self, path: str) -> bytes:
        """Return all bytes of a file; FileNotFoundError if absent."""
        if self.local:
            with faults.local(self.path(path)):
                return Path(self.path(path)).read_bytes()
        return self._remote(path, lambda: cast(bytes, self.fs.cat_file(self.path(path))))

    def exists(self, path: str) -> bool:
        """Say whether a file (or folder with files) is there."""
        if self.local:
            return Path(self.path(path)).exists()
        return self._remote(path, lambda: bool(self.fs.exists(self.path(path))))

    def size(self, path: str) -> int:
        """Return a file's size in bytes; FileNotFoundError if absent."""
        if self.local:
            return Path(self.path(path)).stat().st_size
        return self._remote(path, lambda: int(self.fs.size(self.path(path))))

    def info(self, path: str) -> dict[str, Any]:
        """Return a remote filesystem's metadata of a file (size, etag, times); FileNotFoundError if absent."""
        assert not self.local, "the file is local: use os.stat"
        return self._remote(path, lambda: cast("dict[str, Any]", self.fs.info(self.path(path))))

    def list(self, prefix: str = "") -> Paths:
        """Return the relative paths of all files below a folder, sorted, without temporary files; [] if absent."""
        entries = self._entries(prefix) if self.local else self._walk(prefix)
        return sorted(path for path, _ in entries if not _is_temporary(path))

    def names(self, prefix: str = "") -> Paths:
        """Return the names of the files directly in a folder, sorted; FileNotFoundError if it is absent."""
        if self.local:
            with os.scandir(self.path(prefix)) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        entries: Any = self._remote(prefix, lambda: self.fs.ls(self.path(prefix), detail=True))
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def folders(self, prefix: str = "") -> Paths:
        """Return the names of the folders directly in a folder, sorted; [] if it is absent."""
        if self.local:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.path(prefix)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
            return []
        with contextlib.suppress(FileNotFoundError):
            found: Any = self._remote(prefix, lambda: self.fs.ls(self.path(prefix), detail=True))
            return sorted(
                one["name"].rstrip("/").rsplit("/", 1)[-1] for one in found if one["type"] == "directory"
            )
        return []

    @property
    def tells_in_listings(self) -> bool:
        """Whether a listing of a remote store tells the same tags and times of its files as a request for each."""
        return not self.local and self._protocol in _TELLING

    def marks(self, prefix: str = "", below: bool = True) -> dict[str, str]:
        """Return a mark of the content of every file below a folder, by relative path, with one listing.

        A file that is written anew has another mark: its tag or time, and its size. {} without the folder. With
        `below` False, of the files of the folder itself.
        """
        if self.local:
            marks: dict[str, str] = {}
            for path, entry in self._entries(prefix, below):
                with contextlib.suppress(FileNotFoundError):
                    marks[path] = file_mark(entry.stat())
            return marks
        try:
            depth = None if below else 1
            found: Any = self._remote(
                prefix, lambda: self.fs.find(self.path(prefix), maxdepth=depth, detail=True)
            )
        except FileNotFoundError:
            return {}
        paths = {full: full[len(self.root) :].lstrip("/") for full in found}
        return {path: content_mark(path, found[full]) for full, path in paths.items()}

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file's bytes, in hex."""
        with (
            self.open(path) as file,
            faults.local(self.path(path)) if self.local else contextlib.nullcontext(),
        ):
            return _sha256(file)

    def commit(self, prefix: str, suffix: str, write: Callable[[BinaryIO], object]) -> Object:
        """Write a new object and return it under the name `prefix/<sha256><suffix>`.

        Args:
            prefix: folder of the object.
            suffix: extension with its dot, such as ".tar".
            write: receives a writable, seekable binary file. If it raises, nothing is left behind.
        """
        if not self.local:
            with faults.local(tempfile.gettempdir()), tempfile.NamedTemporaryFile() as spool:
                write(cast(BinaryIO, spool))
                size = spool.seek(0, io.SEEK_END)
                spool.seek(0)
                sha256 = _sha256(spool)
                path = f"{prefix}/{sha256}{suffix}"
                self.upload(spool.name, path)
            return Object(path, sha256, size)
        with self._temporary(self.path(prefix)) as (temporary, file):
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            sha256 = _sha256(file)
            size = file.seek(0, io.SEEK_END)
            path = f"{prefix}/{sha256}{suffix}"
            # Replacing an equal object also updates its time, so that garbage collection keeps it.
            temporary.replace(self.path(path))
            fsync_directory(temporary.parent)
        return Object(path, sha256, size)

    def link(self, prefix: str, suffix: str, file: str, sha256: str) -> Object | None:
        """Give a local file a second name in a local store, as an object whose hash is known.

        None where the filesystem cannot: another one, or one without hard links. A file that is written to afterwards
        damages the object, which every reader detects.
        """
        target = Path(self.path(f"{prefix}/{sha256}{suffix}"))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(os.path.realpath(file), target)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno in (
                errno.EXDEV,
                errno.EPERM,
                errno.EOPNOTSUPP,
                errno.ENOSYS,
                errno.EMLINK,
                errno.EACCES,
            ):
                return None
            raise
        fsync_directory(target.parent)
        return Object(f"{prefix}/{target.name}", sha256, target.stat().st_size)

    def create(self, path: str, data: bytes) -> bool:
        """Create a file with its whole content if absent; return False, changing nothing, when it exists.

        When a remote store reports an error after the put took effect, the second try finds the file of the first and
        returns False although this writer created it. So after False read the existing file.
        """
        target = self.path(path)
        if not self.local:
            self._refuse_torn_writes()
            self._refuse_double_creation()
            return self._create_remote(path, data)
        with self._temporary(os.path.dirname(target), len(data)) as (temporary, file):  # noqa: PTH120
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(temporary, target)  # fails if the name exists: the filesystem decides who is first
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    text = f"{self.url} lies on a filesystem without hard links, so records cannot be created safely"
                    raise OSError(error.errno, f"{text}: choose another one", target) from None
                raise
            fsync_directory(temporary.parent)
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Replace a file: a reader sees the old bytes or the new ones, never a mixture."""
        target = self.path(path)
        if not self.local:
            self._refuse_torn_writes()
            with self._bucket():
                self._remote(path, lambda: self.fs.pipe_file(target, data))
            return
        with self._temporary(os.path.dirname(target), len(data)) as (temporary, file):  # noqa: PTH120
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
            fsync_directory(temporary.parent)

    def upload(self, source: str | os.PathLike[str], path: str) -> None:
        """Upload a local file to a remote store, atomically; an existing file is replaced."""
        self._refuse_torn_writes()
        try:
            with self._bucket():
                self._remote(path, lambda: self.fs.put_file(os.fspath(source), self.path(path)))
        except OSError:
            # Completing a multipart upload can take effect and still report an error; the next try is then
            # told that there is no such upload.
            with contextlib.suppress(OSError):
                if self.size(path) == Path(source).stat().st_size and self.sha256(path) == sha256_of(
                    Path(source)
                ):
                    return
            raise

    def delete(self, path: str) -> bool:
        """Remove a file; return False when it was absent already."""
        try:
            if self.local:
                Path(self.path(path)).unlink()
            else:
                if not self.exists(path):  # S3 reports success when it deletes an absent object
                    return False
                self._remote(path, lambda: self.fs.rm_file(self.path(path)))
        except FileNotFoundError:
            return False
        return True

    def collect(self, prefix: str, referenced: set[str], older_than_s: float) -> Paths:
        """Delete unreferenced files below `prefix`, including temporary files of dead writers.

        Args:
            prefix: folder to clean.
            referenced: relative paths to keep.
            older_than_s: keep files younger than this, in seconds: the maximum time from commit to record.

        Returns:
            The relative paths that were deleted, sorted.
        """
        deleted = []
        for path, modified in sorted(self._walk(prefix)):
            if path in referenced or time.time() - modified < older_than_s:
                continue
            # Check again: an equal object may have been committed since the listing.
            if time.time() - (self.modified(path) or time.time()) >= older_than_s and self.delete(path):
                deleted.append(path)
        return deleted

    def collect_temporaries(self, prefix: str, older_than_s: float) -> Paths:
        """Delete temporary files and folders of dead writers below `prefix`, and nothing else.

        A folder is kept while anything in it is younger than `older_than_s` seconds. Object stores have no temporary
        files: an upload is atomic there.

        Returns:
            The relative paths that were deleted, sorted.
        """
        deleted: Paths = []
        for folder, folders, files in os.walk(self.path(prefix)) if self.local else ():
            for path in (Path(folder) / name for name in (*folders, *files) if _is_temporary(name)):
                with contextlib.suppress(FileNotFoundError):  # its writer may remove it meanwhile
                    if time.time() - _touched(path) < older_than_s:
                        continue
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    deleted.append(path.relative_to(self.root).as_posix())
            folders[:] = [name for name in folders if not _is_temporary(name)]
        return sorted(deleted)

    def _refuse_torn_writes(self) -> None:
        if not self._atomic:
            raise ValueError(
                f"store {self.url!r} cannot commit atomically: write to a local path, s3:// or gs://"
            )

    def _refuse_double_creation(self) -> None:
        """Refuse a store in which two writers can create the same name; checked once per store and process."""
        if self.root in _probed():
            return
        # The first creation may succeed, in a new store; the second must not.
        if self._create_remote(_PROBE, b"") and self._create_remote(_PROBE, b""):
            raise ValueError(
                f"store {self.url!r} ignores If-None-Match: two writers could create the same record, and one "
                "would be lost: use a store that honours it (AWS S3, MinIO, GCS, Azure) or a local home"
            )
        _probed().add(self.root)

    def _create_remote(self, path: str, data: bytes) -> bool:
        target = self.path(path)
        try:
            with self._bucket():
                self._remote(path, lambda: self.fs.pipe_file(target, data, mode="create"))
        except FileExistsError:
            return False
        return True

    def _remote(self, path: str, call: Callable[[], _T]) -> _T:
        return faults.remote(self.url, path, call)

    @contextlib.contextmanager
    def _bucket(self) -> Iterator[None]:
        """Name a missing bucket as the cause when a write fails."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"store {self.url}: {error}: create the bucket or give another store"
            ) from error

    @contextlib.contextmanager
    def _temporary(self, folder: str, need: int = 0) -> Iterator[tuple[Path, BinaryIO]]:
        """Yield a new file in `folder`, which is removed at the end unless it was renamed."""
        path = Path(folder) / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        try:
            # Closing flushes the buffer, so it is inside too.
            with faults.local(path, lambda: max(need, path.stat().st_size + io.DEFAULT_BUFFER_SIZE)):
                Path(folder).mkdir(parents=True, exist_ok=True)
                with path.open("x+b") as file:
                    yield path, cast(BinaryIO, file)
        finally:
            path.unlink(missing_ok=True)

    def _walk(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Yield (relative path, time of last change) of every file below a folder."""
        if self.local:
            for folder, _, names in os.walk(self.path(prefix)):
                for name in names:
                    full = Path(folder) / name
                    with contextlib.suppress(FileNotFoundError):
                        yield full.relative_to(self.root).as_posix(), full.stat().st_mtime
            return
        with contextlib.suppress(FileNotFoundError):
            found: Any = self._remote(prefix, lambda: self.fs.find(self.path(prefix), detail=True))
            for full, info in found.items():
                relative = full[len(self.root) :].lstrip("/") if full.startswith(self.root) else full
                yield relative, _timestamp(info)

    def _entries(self, prefix: str, below: bool = True) -> "Iterator[tuple[str, os.DirEntry[str]]]":
        """Yield (relative path, entry) of every file below a local folder, following links to files alone."""
        folders = [prefix.rstrip("/")]
        while folders:
            folder = folders.pop()
            start = f"{folder}/" if folder else ""
            with (
                contextlib.suppress(OSError),  # as os.walk does
                os.scandir(self.path(folder)) as entries,
            ):
                for entry in entries:
                    if not entry.is_dir():
                        if not entry.is_symlink() or Path(entry.path).exists():
                            yield start + entry.name, entry
                    elif below and not entry.is_symlink():
                        folders.append(start + entry.name)

    def modified(self, path: str) -> float | None:
        """Return when a file was last changed, in seconds since 1970; None if absent."""
        try:
            if self.local:
                return Path(self.path(path)).stat().st_mtime
            return _timestamp(self.info(path))
        except FileNotFoundError:
            return None


def content_mark(path: str, info: dict[str, Any]) -> str:
    """Return what a remote filesystem's description of a file says of its content: its tag or time, and its size.

    A plain web server may give neither tag nor time: the path stands for them, as two files of one size differ.
    """
    names = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "created")
    return f"{next((info[name] for name in names if info.get(name)), path)} {info.get('size')}"


def file_mark(stat: os.stat_result) -> str:
    """Return what a local filesystem says of a file's content: its size, and when it and its entry last changed."""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


@functools.cache
def _probed() -> set[str]:
    """The roots of remote stores that are known to let only one writer create a name."""
    return set()


def _timestamp(info: dict[str, Any]) -> float:
    when = (
        info.get("mtime")
        or info.get("LastModified")
        or info.get("updated")
        or info.get("last_modified")
        or info.get("created")
    )
    return (
        float(when)
        if isinstance(when, (int, float))
        else when.timestamp()
        if when is not None
        else time.time()
    )


def _touched(path: Path) -> float:
    """When a file, or a folder or anything below it, was last changed."""
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def _is_temporary(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(_TEMPORARY)


def _sha256(file: Any) -> str:
    hasher = hashlib.sha256()
    while block := file.read(_BLOCK):
        hasher.update(block)
    return hasher.hexdigest()
