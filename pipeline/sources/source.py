"""Where captioned images come from: webdataset or img2dataset tars, parquet files, or a folder with jsonl.

A source is a list of units (one file each, the unit of work and of resume) and a unit is a stream of
samples. Bad samples become failures with a stable code; a file that is not what it claims to be is an error
of its unit. A unit is read once, start to end, so that one image met twice in it becomes one sample with
the captions of both; its images wait meanwhile in a spool, in memory up to 64 MiB and on disk beyond.
Nothing is extracted and no path in the data is followed out of its folder.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.imaging.decode import ImageError, inspect
from pipeline.sources.readers import READERS, jsonl_sizes
from pipeline.sources.reading_rules import differs
from pipeline.sources.records import Limits, RecordError, clean, join_objects
from storage.sample import Failure, Sample, content_key, short
from storage.store import Store

KINDS = tuple(READERS)
_MEMORY = 64 << 20
_HASHERS = 4
_MESSAGE = 500

OnFailure = Callable[[Failure], None]


class UnitGoneError(ValueError):
    """A unit's file was removed, or holds other bytes, since the source was listed: no fault of the data."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One file of a source.

    Attributes:
        name: the start of its hash, so that a moved folder or a renamed file still holds the same units.
        path: the file's name in the source's folder, for people.
        sha256: of the file's bytes; for remote files of the identity (etag, size) their store gives them."""

    name: str
    path: str
    sha256: str


def open_source(url: str | os.PathLike[str], limits: Limits | None = None) -> "Source":
    """Open a folder of .tar, .parquet or .jsonl files, or a single one of them.

    Args:
        url: local path or fsspec URL. Beside tars, parquet files of the same names are img2dataset's
            tables and are left alone.
        limits: what a sample may weigh.

    Raises:
        FileNotFoundError: the path is absent.
        ValueError: an empty folder, an unknown extension, or a folder of mixed kinds.
    """
    text = os.fspath(url).rstrip("/") or "/"
    suffix = os.path.splitext(text)[1].lower()  # noqa: PTH122  (may be a URL)
    whole = Store(text)
    if whole.local and not Path(whole.root).exists():
        raise FileNotFoundError(f"source {text} does not exist")
    if _is_file(whole):
        if suffix not in READERS:
            raise ValueError(
                f"source {text} has the unknown extension {suffix!r}: give {_kinds()} or a folder of them"
            )
        folder, _, name = whole.url.rpartition("/")
        store = Store(folder or "/")
        if not store.exists(name):
            raise FileNotFoundError(f"source {text} does not exist")
        return Source(store, [name], limits or Limits())
    if whole.local and not Path(whole.root).is_dir():
        raise ValueError(f"source {text} is a pipe or a device: give a file or a folder")
    try:
        names = [name for name in whole.names() if not name.startswith(".")]  # "._00.tar": a note of macOS
    except FileNotFoundError:
        raise FileNotFoundError(f"source {text} does not exist") from None
    by_kind = {kind: [name for name in names if name.lower().endswith(kind)] for kind in READERS}
    stems = {name[:-4] for name in by_kind[".tar"]}
    by_kind[".parquet"] = [name for name in by_kind[".parquet"] if name.rsplit(".", 1)[0] not in stems]
    found = [kind for kind, files in by_kind.items() if files]
    if not found:
        seen = sorted({os.path.splitext(name)[1] or name for name in names})[:5]  # noqa: PTH122
        holds = f"it holds {', '.join(seen)}" if seen else "it holds no files"
        raise ValueError(
            f"source {text} has no {_kinds()} file ({holds}): name the folder that holds the shards"
        )
    if len(found) > 1:
        raise ValueError(f"source {text} mixes {' and '.join(found)} files: keep one kind in a folder")
    return Source(whole, by_kind[found[0]], limits or Limits())


def open_unit(url: str | os.PathLike[str], unit: Unit, limits: Limits | None = None) -> "Source":
    """Open the source of a unit that was listed before, whatever has come to it since."""
    whole = Store(os.fspath(url).rstrip("/") or "/")
    store = Store(whole.url.rpartition("/")[0] or "/") if _is_file(whole) else whole
    return Source(store, [unit.path], limits or Limits())


class Source:
    """The units of one folder, all of one kind."""

    def __init__(self, store: Store, files: list[str], limits: Limits) -> None:
        self.store, self.files, self.limits = store, files, limits
        self.kind = os.path.splitext(files[0])[1].lower()  # noqa: PTH122

    def units(self, settle_s: float = 0.0) -> list[Unit]:
        """Return the units in the order of their file names; files of equal content are one unit.

        Args:
            settle_s: local files that changed less than so many seconds ago are left out: they may still be written.
        """
        files = [path for path in self.files if not settle_s or self._settled(path, settle_s)]
        with ThreadPoolExecutor(_HASHERS) as pool:  # hashing releases the interpreter lock
            hashes = list(pool.map(self._identity, files))
        units: dict[str, Unit] = {}
        for path, sha256 in zip(files, hashes, strict=True):
            if sha256 is not None:
                units.setdefault(sha256, Unit(sha256[:12], path, sha256))
        return list(units.values())

    def samples(self, unit: Unit, on_failure: OnFailure) -> Iterator[Sample]:
        """Yield the good samples of a unit, each image once, and report the others.

        Args:
            unit: one of `units()`.
            on_failure: called with every sample that is not yielded; stage "source", its key the name in
                the file.

        Raises:
            UnitGoneError: the file was removed or replaced since it was listed, or while it was read.
            ValueError: the file is torn or not of its kind. Nothing has been yielded in either case.
        """
        merged: dict[str, _Draft] = {}
        with _Spool(self.limits) as spool:
            with self._unchanged(unit), self.store.open(unit.path) as file:
                read = READERS[self.kind]
                for row in read(file, unit.path, self.store, self.limits, spool.admit):
                    try:
                        captions, meta = clean(row, self.limits)
                    except RecordError as error:
                        name, message = _unicode(short(row.name)), _unicode(short(str(error), _MESSAGE))
                        on_failure(Failure(name, "source", error.code, message))
                        continue
                    draft = merged.get(row.key)
                    if draft is None:
                        merged[row.key] = _Draft(captions, {**meta, "source_key": short(row.name)})
                        continue
                    draft.captions += [caption for caption in captions if caption not in draft.captions]
                    places = [draft.captions.index(text) for text in captions]
                    draft.meta = join_objects(draft.meta, meta, places)
            for key, draft in merged.items():
                yield Sample(key, spool.read(key), tuple(draft.captions), draft.meta)

    def read_otherwise(self, unit: Unit) -> bool:
        """Say whether older rules read other captions or pairs out of a unit, see reading_rules; reads it once."""
        try:
            with self.store.open(unit.path) as file:
                return differs(self.kind, file, unit.path)
        except FileNotFoundError:  # removed since it was listed
            return False

    @contextlib.contextmanager
    def _unchanged(self, unit: Unit) -> Iterator[None]:
        """Let nothing pass that was read from another file than the one that was listed."""
        try:
            yield
        except (ValueError, OSError) as error:
            if self._identity(unit.path) == unit.sha256:
                raise
            raise self._gone(unit) from error
        if self._identity(unit.path) != unit.sha256:
            raise self._gone(unit)

    def _gone(self, unit: Unit) -> UnitGoneError:
        return UnitGoneError(
            f"{self.store.url}/{unit.path} was removed or changed after the source was listed: "
            "start again to use what is there now"
        )

    def _settled(self, path: str, settle_s: float) -> bool:
        """Say whether a file is older than `settle_s`. A time far in the future says nothing, so it counts as old."""
        if not self.store.local:
            return True  # an object appears whole
        try:
            return abs(time.time() - Path(self.store.path(path)).stat().st_mtime) >= settle_s
        except FileNotFoundError:
            return False

    def _identity(self, path: str) -> str | None:
        """Name the bytes of a file; None when it is not there (any more)."""
        try:
            return self._mark(path)
        except FileNotFoundError:
            return None

    def _mark(self, path: str) -> str:
        if self.store.local:
            full = Path(self.store.path(path))
            stat = full.stat()
            content = _file_sha256(str(full), stat.st_size, stat.st_mtime_ns)
        else:
            info = self.store.info(path)
            mark = next(
                (info[name] for name in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(name)), ""
            )
            content = hashlib.sha256(f"{mark} {info.get('size')}".encode()).hexdigest()
        if self.kind != ".jsonl" or not self.store.local:
            return content
        # A jsonl only names its images; reading them all would be expensive, so their sizes stand for them.
        sizes = jsonl_sizes(self.store, path)
        return hashlib.sha256(f"{content} {json.dumps(sizes)}".encode()).hexdigest()


@dataclass(slots=True)
class _Draft:
    captions: list[str]
    meta: dict[str, Any]


class _Spool:
    """Images of one unit by content key: checked on the way in, kept in a file, read back one at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.places: dict[str, tuple[int, int]] = {}
        self.file = tempfile.SpooledTemporaryFile(_MEMORY)  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def admit(self, data: bytes) -> str:
        """Keep an image and return its key; RowError for one that cannot be used."""
        try:
            inspect(data, self.limits.max_pixels, self.limits.max_bytes)
        except ImageError as error:
            raise RecordError(error.code, str(error)) from None
        key = content_key(data)
        if key not in self.places:
            self.places[key] = (self.file.seek(0, os.SEEK_END), len(data))
            self.file.write(data)
        return key

    def read(self, key: str) -> bytes:
        offset, size = self.places[key]
        self.file.seek(offset)
        return self.file.read(size)


@functools.lru_cache(1 << 16)
def _file_sha256(path: str, size: int, modified_ns: int) -> str:
    """Hash a local file once a process, as long as its size and time stay the same."""
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(store: Store) -> bool:
    """Say whether a source is one file, not a folder of them."""
    if store.local:
        return Path(store.root).is_file()
    return store.url.lower().endswith(KINDS)


def _unicode(text: str) -> str:
    """Half surrogate pairs written out: a name that is not UTF-8 holds some, and no table can."""
    return text.encode("utf-8", "backslashreplace").decode()


def _kinds() -> str:
    return ", ".join(READERS)
