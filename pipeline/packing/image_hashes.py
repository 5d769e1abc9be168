"""Perceptual hashes of the images of a source, unit by unit, and of evaluation sources: made once, kept in HOME/hashes.

They compare images that a packing may leave out (pipeline.packing.copies). No detector runs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hyco.pipeline.config import digest
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.imaging.perceptual_hash import BYTES, VERSION, perceptual_hash
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.listing import EmptySourceError
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import Unit, open_source, open_unit
from hyco.pipeline.sources.tar_rows import IMAGES
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import read_object
from hyco.storage.sample import content_key
from hyco.storage.sealed import read_table, write_table

BARE = "images of "
"""Begins the path of a unit of images without captions."""
_BARE_UNIT = 2000  # images
_SCHEMA = pa.schema([("key", pa.string()), ("name", pa.string()), ("hash", pa.binary(BYTES))])


@dataclass(frozen=True, slots=True)
class Hashes:
    """Hashes of images, in order.

    Attributes:
        keys: content keys, [N].
        names: their names in the source, [N].
        values: hashes, uint8 [N, 32].
    """

    keys: list[str]
    names: list[str]
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Place:
    """Where units lie and how they are read."""

    source: str
    limits: Limits
    columns: Columns = USUAL


def evaluation_units(place: Place) -> list[Unit]:
    """Return the units of an evaluation source: captioned images, or a folder of images alone.

    Raises FileNotFoundError or ValueError when it is neither.
    """
    try:
        return open_source(place.source, place.limits, place.columns).units()
    except EmptySourceError:
        folder = Path(place.source)
        files = sorted(
            path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGES and path.is_file()
        )
        if not files:
            raise
    units = []
    for start in range(0, len(files), _BARE_UNIT):
        told = "".join(
            f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files[start:][:_BARE_UNIT]
        )
        sha256 = hashlib.sha256(told.encode()).hexdigest()
        units.append(Unit(sha256[:12], f"{BARE}{start}", sha256))
    return units


def hash_all(
    home: Home, work: Sequence[tuple[Place, Unit]], executor: Executor, listener: Listener | None = None
) -> None:
    """Hash every unit that is not hashed; a unit whose file has gone is left out."""
    done = {one: results(home, one).whole() for one in {place for place, _ in work}}
    pending = [(place, unit) for place, unit in work if unit.name not in done[place]]
    if not pending:
        return
    with Progress(None, "hash", "images", listener) as progress:

        def submit(pair: tuple[Place, Unit]) -> Future[Any]:
            return executor.submit(hash_unit, home, *pair, report=progress.advance)

        run_units(submit, pending, lambda record: None)


def hash_unit(home: Home, place: Place, unit: Unit, report: Any = lambda done: None) -> dict[str, Any]:
    """Hash the images of one unit and return its record; images that cannot be decoded are left out."""
    records = results(home, place)
    if (record := records.done(unit.name)) is not None:
        return record
    stones = home.deletions.tombstones()
    rows = []
    for key, name, image in _images(home, place, unit):
        report(1)
        try:
            pixels = decode(image, place.limits.max_pixels, place.limits.max_bytes)
        except ImageError:
            continue
        rows.append({"key": key, "name": name, "hash": perceptual_hash(pixels).tobytes()})
    if home.deletions.number() != stones.number:  # an image was deleted meanwhile
        return hash_unit(home, place, unit, report)
    table = pa.Table.from_pylist(rows, _SCHEMA)
    made = home.store.commit(records.objects, ".parquet", lambda file: write_table(table, file))
    record = {"unit": unit.name, "path": unit.path,
              "hashes": {"path": made.path, "sha256": made.sha256, "rows": len(rows)}}  # fmt: skip
    records.commit(unit.name, record)
    return records.record(unit.name) or record


def hashes_of(home: Home, place: Place, units: Sequence[Unit]) -> dict[str, Hashes]:
    """Return the hashes of the units that are hashed, by unit name."""
    records = results(home, place).whole()
    found = {}
    for unit in units:
        if unit.name in records:
            held = records[unit.name]["hashes"]
            table = read_hashes(home, held["path"], held["sha256"])
            values = np.frombuffer(b"".join(table["hash"].to_pylist()), np.uint8).reshape(-1, BYTES)
            found[unit.name] = Hashes(table["key"].to_pylist(), table["name"].to_pylist(), values)
    return found


def read_hashes(home: Home, path: str, sha256: str = "") -> pa.Table:
    """Read a table of hashes; DamagedError when it is missing or has changed."""
    return read_table(read_object(home.store, path, sha256))


def results(home: Home, place: Place) -> UnitResults:
    """Return the hashes of units that are read in this way; their place does not matter."""
    return home.hashes(digest({"limits": place.limits, "columns": place.columns, "hash": VERSION}))


def _images(home: Home, place: Place, unit: Unit) -> Iterator[tuple[str, str, bytes]]:
    if not unit.path.startswith(BARE):
        source = open_unit(place.source, unit, place.limits, place.columns)
        source.deleted = home.deletions.tombstones()
        for sample in source.samples(unit, lambda failure: None):
            yield sample.key, str(sample.meta.get("source_key", sample.key)), sample.image
        return
    start = int(unit.path.removeprefix(BARE))
    folder = Path(place.source)
    files = sorted(path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGES and path.is_file())
    for path in files[start : start + _BARE_UNIT]:
        image = path.read_bytes()
        yield content_key(image), path.relative_to(folder).as_posix(), image
