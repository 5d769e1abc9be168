"""Where captioned images come from: tars, parquet, jsonl, arrow, csv, json, or images with text files beside them.

A source is a list of units and a unit is a stream of samples. A unit, the piece of work that is resumed, is one file,
or a run of images where they lie loose (sources.gathered). Bad samples become failures with a stable code; a file that
is not of its kind is an error of its unit. A unit is read once, start to end, so that an image that occurs twice in it
becomes one sample with the captions of both; meanwhile its images wait in a spool, in memory up to 64 MiB and on disk
beyond. Nothing is extracted and no path in the data is followed out of the source's folder.
"""

import contextlib
import gc
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hyco.pipeline.imaging.decode import ImageError, inspect
from hyco.pipeline.imaging.orientation import told_orientation, with_orientation
from hyco.pipeline.sources.boxes import BoxFields, objects_from
from hyco.pipeline.sources.caption_lists import Entry
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.gathered import rows as gathered_rows
from hyco.pipeline.sources.gathered import units_of
from hyco.pipeline.sources.known_hashes import KnownHashes
from hyco.pipeline.sources.listing import BESIDE, kind_of, list_source, store_of
from hyco.pipeline.sources.readers import READERS, jsonl_sizes
from hyco.pipeline.sources.reading_rules import differs
from hyco.pipeline.sources.records import Limits, RecordError, SourceRecord, clean, join_objects
from hyco.pipeline.sources.tar_rows import Admit
from hyco.storage.deletions import NONE, OPTED_OUT
from hyco.storage.sample import Failure, Sample, content_key, short
from hyco.storage.store import Store, content_mark, file_mark

_MEMORY = 64 << 20
_HASHERS = 4
_MESSAGE = 500

OnFailure = Callable[[Failure], None]


class UnitGoneError(ValueError):
    """A unit's file was removed or changed since the source was listed: no fault of the data."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One file of a source.

    Attributes:
        name: the start of its hash, so that a moved folder or a renamed file has the same units.
        path: the file's name in the source's folder, for people.
        sha256: of the file's bytes; for remote files of the identity (etag, size) their store gives them."""

    name: str
    path: str
    sha256: str


def open_source(
    url: str | os.PathLike[str],
    limits: Limits | None = None,
    columns: Columns = USUAL,
    home: Store | None = None,
) -> "Source":
    """Open a source: a folder of one of the kinds of pipeline.sources.listing, a file, or several files.

    Args:
        url: local path or fsspec URL; patterns (`DIR/*.tar`), ranges (`{00000..00099}.tar`) and lists with commas too.
            Beside tars, parquet files of the same names are img2dataset's tables and are left alone.
        limits: maximum sizes of a sample.
        columns: names of columns and fields that are not the usual ones.
        home: store of a home that keeps the hashes of local files, so that they are read once.

    Raises:
        FileNotFoundError: the path, or a file of a list, is absent.
        ValueError: an empty folder, an unknown extension, or files of mixed kinds.
    """
    found = list_source(os.fspath(url))
    return Source(found.store, found.files, limits or Limits(), columns, home)


def open_unit(
    url: str | os.PathLike[str], unit: Unit, limits: Limits | None = None, columns: Columns = USUAL
) -> "Source":
    """Open the source of a unit that was listed before, whatever has come to it since."""
    return Source(store_of(os.fspath(url)), [unit.path], limits or Limits(), columns)


def look_again(url: str | os.PathLike[str], home: Store, units: Iterable[Unit]) -> None:
    """Forget the hashes that a home keeps of the files of units that were gone: the next listing reads them again.

    Raises ValueError when one is as it was listed: then its worker did not see this source.
    """
    gone = list(units)
    for unit in gone:
        if open_unit(url, unit).unchanged(unit):
            raise ValueError(
                f"{unit.path}: a worker found it removed or changed, and here it is as it was listed: start again if "
                f"it was away for a while; on a cluster, {os.fspath(url)} must be the same on every node"
            )
    if gone:
        KnownHashes(store_of(os.fspath(url)), home).forget([unit.path for unit in gone])


class Source:
    """The units of one folder, all of one kind."""

    def __init__(
        self,
        store: Store,
        files: list[str],
        limits: Limits,
        columns: Columns = USUAL,
        home: Store | None = None,
    ) -> None:
        self.store, self.files, self.limits, self.columns = store, files, limits, columns
        self.kind = kind_of(files[0]) or ""
        self.deleted = NONE  # what a home must not hold: left out of the samples
        self.hashes = KnownHashes(store, home)

    def units(self, settle_s: float = 0.0) -> list[Unit]:
        """Return the units in the order of their file names; files of equal content are one unit.

        Args:
            settle_s: local files that changed within this many seconds are left out: they may still be written.
        """
        return self.listed(settle_s)[0]

    def listed(self, settle_s: float = 0.0, young: bool = False) -> tuple[list[Unit], list[Unit]]:
        """Return the units as `units` does and, with `young`, those of the files that it leaves out, of one listing."""
        there: dict[str, str | None] = {}
        later: dict[str, str | None] = {}
        if self.kind in READERS:
            local, recent = self._look(settle_s)
            files = [path for path in self.files if path not in recent] if recent else self.files
            there = self._hashed(files, local)
            later = self._hashed(sorted(recent), local) if young else {}
        else:
            for file in self.files:
                for path, sha256, entries in units_of(self.store, file, self.columns, self.hashes):
                    settled = not settle_s or self._all_settled(file, entries, settle_s)
                    (there if settled else later)[path] = sha256
        units = _of_hashes(there)
        others = _of_hashes(later, units) if young else {}
        self.hashes.save()
        return list(units.values()), list(others.values())

    def _hashed(self, files: list[str], local: dict[str, str]) -> dict[str, str | None]:
        """Return the hashes of files, in their order; None for one that is gone."""
        told: dict[str, str | None] = dict(self.hashes.known(local)) if self._by_bytes else {}
        if unknown := [path for path in files if path not in told]:
            marks = self._marks(files)
            with ThreadPoolExecutor(_HASHERS) as pool:  # hashing releases the interpreter lock
                told |= zip(unknown, pool.map(lambda path: self._identity(path, marks), unknown), strict=True)
        return {path: told[path] for path in files}

    @property
    def _by_bytes(self) -> bool:
        """Whether the hash of a unit's file is that of its bytes alone."""
        return self.store.local and self.kind in READERS and not self._names_images

    def samples(self, unit: Unit, on_failure: OnFailure) -> Iterator[Sample]:
        """Yield the good samples of a unit, each image once, and report the others.

        Args:
            unit: one of `units()`.
            on_failure: called with a Failure of every sample that is not yielded; its key is the name in the file.

        Raises:
            UnitGoneError: the file was removed or replaced since it was listed, or while it was read.
            ValueError: the file is torn or not of its kind. Nothing has been yielded in these cases.
        """
        merged: dict[str, _Draft] = {}
        boxes = Labels(self.columns.boxes, unit.path)
        with Spool(self.limits) as spool:
            with self._unchanged(unit), contextlib.closing(self.rows(unit.path, spool.admit)) as rows:
                for row in rows:
                    try:
                        boxes.label(row, spool)
                        captions, meta = clean(row, self.limits)
                        stored = row.key
                        if self.columns.boxes is None:  # boxes belong to the pixels as they are stored
                            row.key = spool.turned(row.key, told_orientation(meta.get("exif")))
                    except RecordError as error:
                        name, message = _unicode(short(row.name)), _unicode(short(str(error), _MESSAGE))
                        on_failure(Failure(name, "source", error.code, message))
                        continue
                    if self.deleted.names(meta, stored, row.key):
                        on_failure(Failure(row.key, "source", OPTED_OUT, "a deletion names this image"))
                        continue
                    draft = merged.get(row.key)
                    if draft is None:
                        merged[row.key] = _Draft(captions, {**meta, "source_key": short(row.name)})
                        continue
                    draft.captions += [caption for caption in captions if caption not in draft.captions]
                    places = [draft.captions.index(text) for text in captions]
                    draft.meta = join_objects(draft.meta, meta, places)
            boxes.require()
            for key, draft in merged.items():
                yield Sample(key, spool.read(key), tuple(draft.captions), draft.meta)

    def size_of(self, unit: Unit) -> int:
        """Return the bytes that reading a unit reads: of its file, and of local images that it names; 0 when gone."""
        try:
            if self.kind in READERS:
                named = jsonl_sizes(self.store, unit.path, self.columns) if self._names_images else []
                return self.store.size(unit.path) + sum(size for size in named if size > 0)
            file, _, number = unit.path.rpartition("#")
            entries = units_of(self.store, file, self.columns, self.hashes)[int(number)][2]
        except (FileNotFoundError, IndexError):
            return 0
        return sum(
            self._size(path) for entry in entries for path in (entry.image, *entry.texts.values()) if path
        )

    def _size(self, path: str) -> int:
        try:
            return self.store.size(path)
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def _names_images(self) -> bool:
        return self.kind == ".jsonl" and self.store.local

    def rows(self, path: str, admit: Admit) -> Generator[SourceRecord, None, None]:
        """Yield the unchecked rows of a unit; errors as `samples`."""
        if self.kind in READERS:
            with self.store.open(path) as file:
                yield from READERS[self.kind](file, path, self.store, self.limits, admit, self.columns)
            return
        file, _, number = path.rpartition("#")
        units = units_of(self.store, file, self.columns)
        if int(number) >= len(units):
            raise FileNotFoundError(f"{path} is gone: {file} has {len(units)} units")
        yield from gathered_rows(self.store, units[int(number)][2], self.limits, admit, self.columns)

    def read_otherwise(self, unit: Unit, since: int) -> bool:
        """Return whether the rules up to version `since` read other samples from a unit, see reading_rules."""
        if self.kind not in READERS:
            return False  # such units were never read by older rules
        try:
            with self.store.open(unit.path) as file:
                return differs(self.kind, file, unit.path, since, self.columns)
        except FileNotFoundError:  # removed since it was listed
            return False

    def unchanged(self, unit: Unit) -> bool:
        """Return whether the file of a unit is the one that was listed."""
        return self._identity(unit.path) == unit.sha256

    @contextlib.contextmanager
    def _unchanged(self, unit: Unit) -> Iterator[None]:
        """Raise UnitGoneError when the file that was read is not the one that was listed."""
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

    def _look(self, settle_s: float) -> tuple[dict[str, str], set[str]]:
        """Return the marks of the files of a local source that are there, and the files younger than `settle_s`.

        No status is kept: of 10^5 files they would be half of the time, in the garbage collector.
        """
        marks, recent = dict[str, str](), set[str]()
        if self.store.local:
            root, now = self.store.root, time.time()
            for path in self.files:
                try:
                    stat = os.stat(f"{root}/{path}")  # noqa: PTH116
                except OSError:
                    continue
                marks[path] = file_mark(stat)
                if settle_s and not _settled(stat, settle_s, now):
                    recent.add(path)
        return marks, recent

    def _stat(self, path: str) -> os.stat_result | None:
        """Return the status of a local file; None when it is gone."""
        try:
            return os.stat(self.store.path(path))  # noqa: PTH116
        except (OSError, ValueError):
            return None

    def _all_settled(self, file: str, entries: list[Entry], settle_s: float) -> bool:
        paths = [] if file.endswith(BESIDE) else [file]
        for entry in entries:
            paths += [path for path in (entry.image, *entry.texts.values()) if path]
        return not self.store.local or all(
            _settled(self._stat(path), settle_s, time.time()) for path in paths
        )

    def _marks(self, files: list[str]) -> dict[str, str]:
        """Return the marks of remote files, with one listing of each folder instead of a request for each file."""
        if self.store.local or not self.store.tells_in_listings:
            return {}
        folders = {file.rpartition("/")[0] for file in files}
        return {
            path: mark for folder in folders for path, mark in self.store.marks(folder, below=False).items()
        }

    def _identity(self, path: str, marks: Mapping[str, str] = MappingProxyType({})) -> str | None:
        """Return the hash that identifies a unit's content; None when it is gone.

        `marks` has those of a listing that was just made.
        """
        try:
            return self._mark(path, marks)
        except FileNotFoundError:
            return None

    def _mark(self, path: str, marks: Mapping[str, str]) -> str | None:
        if self.kind not in READERS:
            file = path.rpartition("#")[0]
            return next(
                (sha for name, sha, _ in units_of(self.store, file, self.columns) if name == path), None
            )
        if self.store.local:
            content = self.hashes.sha256(path)
        else:
            mark = marks.get(path) or content_mark(path, self.store.info(path))
            content = hashlib.sha256(mark.encode()).hexdigest()
        if not self._names_images:
            return content
        # A jsonl only names its images; reading them all would be expensive, so their sizes identify them.
        sizes = jsonl_sizes(self.store, path, self.columns)
        return hashlib.sha256(f"{content} {json.dumps(sizes)}".encode()).hexdigest()


class Labels:
    """Makes `objects` of the boxes that a source has, row by row; without fields it does nothing."""

    def __init__(self, fields: BoxFields | None, path: str) -> None:
        self.fields, self.path = fields, path
        self.rows = self.labelled = self.boxes = 0
        self.seen: dict[str, None] = {}

    def label(self, row: SourceRecord, spool: "Spool") -> None:
        """Replace the boxes of a row in its meta."""
        if self.fields is None or row.error:
            return
        self.rows += 1
        self.seen.update(dict.fromkeys(row.meta))
        stored = tuple(
            row.meta.get(name) for name in ("original_width", "original_height")
        )  # img2dataset resizes

        def size() -> tuple[int, int]:
            if all(isinstance(side, int) and side > 0 for side in stored):
                return stored  # type: ignore[return-value]
            return inspect(spool.read(row.key), spool.limits.max_pixels, spool.limits.max_bytes)[:2]

        objects = objects_from(row.meta, row.captions, self.fields, size)
        if objects is not None:
            self.labelled += 1
            self.boxes += len(objects)
            row.meta["objects"] = objects

    def require(self) -> None:
        """Raise ValueError, naming the fields there are, when rows were read and none had the boxes' field."""
        if self.fields is not None and self.rows and not self.labelled:
            fields = short(", ".join(self.seen)) or "none"
            raise ValueError(
                f"{self.path} has no boxes: no row has a field {self.fields.field}; the fields are {fields}: set "
                "--boxes or columns.boxes.field (COCO: put instances_*.json beside captions_*.json)"
            )


@dataclass(slots=True)
class _Draft:
    captions: list[str]
    meta: dict[str, Any]


class Spool:
    """Images of one unit by content key: checked when admitted, stored in a file, read back one at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.places: dict[str, tuple[int, int]] = {}
        self.file = tempfile.SpooledTemporaryFile(_MEMORY)  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def admit(self, data: bytes) -> str:
        """Store an image and return its key; RecordError for one that cannot be used."""
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
        """Return the bytes of an image that was admitted."""
        offset, size = self.places[key]
        self.file.seek(offset)
        return self.file.read(size)

    def turned(self, key: str, orientation: int) -> str:
        """Return the key of an image with an EXIF orientation that its row tells; of the same where it has EXIF."""
        return key if orientation == 1 else self.admit(with_orientation(self.read(key), orientation))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Make many objects that all live on, without the garbage collector looking through them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_collector_paused()
def _of_hashes(told: Mapping[str, str | None], without: Container[str] = ()) -> dict[str, Unit]:
    """Return the units of paths with their hashes, by hash: of each the first path, and none of those in `without`."""
    units: dict[str, Unit] = {}
    for path, sha256 in told.items():
        if sha256 is not None and sha256 not in units and sha256 not in without:
            units[sha256] = Unit(sha256[:12], path, sha256)
    return units


def _settled(stat: os.stat_result | None, settle_s: float, now: float) -> bool:
    """Return whether a file is older than `settle_s`; a time far in the future is meaningless and counts as old.

    A file that is gone, and an object of a remote store, which appears whole, have no status and are settled.
    """
    return stat is None or not settle_s or abs(now - stat.st_mtime) >= settle_s


def _unicode(text: str) -> str:
    """Return text with half surrogate pairs escaped: a name that is not UTF-8 has some, and no table can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()
