"""The values of the columns that a condition names (FilterConfig.where), unit by unit: read once, kept in HOME/columns.

Another threshold on the same columns reads nothing; another column reads the source again, and decodes no image.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from hyco.pipeline.config import digest
from hyco.pipeline.packing.image_hashes import Place
from hyco.pipeline.packing.where import Where
from hyco.pipeline.runtime.executor import Executor
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.sources.source import Unit, open_unit
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import read_object
from hyco.storage.sealed import read_table, write_table

_SCHEMA = pa.schema([("key", pa.string()), ("name", pa.string()), ("values", pa.string())])
_NAMED = 12  # fields of a source, in a message


def read_columns(
    home: Home,
    place: Place,
    units: Sequence[Unit],
    where: str,
    executor: Executor,
    listener: Listener | None = None,
) -> None:
    """Read the columns of every unit that has not been read for them; a unit whose file has gone is left out."""
    done = results(home, place, where).whole()
    pending = [unit for unit in units if unit.name not in done]
    if not pending:
        return
    with Progress(None, "columns", "images", listener) as progress:

        def submit(unit: Unit) -> Future[Any]:
            return executor.submit(read_unit, home, place, unit, where, report=progress.advance)

        run_units(submit, pending, lambda record: None)


def read_unit(
    home: Home, place: Place, unit: Unit, where: str, report: Any = lambda done: None
) -> dict[str, Any]:
    """Read the columns of one unit and return its record, whose "fields" are the names that its rows have."""
    records = results(home, place, where)
    if (record := records.done(unit.name)) is not None:
        return record
    columns = Where(where).columns
    source = open_unit(place.source, unit, place.limits, place.columns)
    source.deleted = stones = home.deletions.tombstones()
    rows, fields = [], dict[str, None]()
    for sample in source.samples(unit, lambda failure: None):
        report(1)
        values = {name: sample.meta[name] for name in columns if sample.meta.get(name) is not None}
        name = str(sample.meta.get("source_key", sample.key))
        fields |= dict.fromkeys(sample.meta)
        rows.append({"key": sample.key, "name": name, "values": json.dumps(values)})
    if home.deletions.number() != stones.number:  # an image was deleted meanwhile
        return read_unit(home, place, unit, where, report)
    table = pa.Table.from_pylist(rows, _SCHEMA)
    made = home.store.commit(records.objects, ".parquet", lambda file: write_table(table, file))
    held = {"path": made.path, "sha256": made.sha256, "rows": len(rows)}
    record = {"unit": unit.name, "path": unit.path, "columns": held, "fields": sorted(fields)}
    records.commit(unit.name, record)
    return records.record(unit.name) or record


def refused(home: Home, place: Place, units: Sequence[Unit], where: str) -> dict[str, dict[str, str]]:
    """Return by unit name the images for which a condition is not true: key to name in the source.

    Units that have not been read are left out.

    Raises:
        ValueError: no row of any unit has one of the columns.
    """
    if not where:
        return {}
    condition, records = Where(where), results(home, place, where).whole()
    found: dict[str, dict[str, str]] = {}
    seen, fields = set[str](), set[str]()
    for unit in units:
        if (record := records.get(unit.name)) is None:
            continue
        fields |= set(record["fields"])
        found[unit.name] = {}
        for key, name, values in _rows(home, record):
            seen |= values.keys()
            if not condition(values):
                found[unit.name][key] = name
    if found and (absent := [name for name in condition.columns if name not in seen]):
        there = ", ".join(sorted(fields - {"source_key"})[:_NAMED]) or "none"
        raise ValueError(
            f"no row of {place.source} has a column {absent[0]!r} (filters.where {where!r}); its columns: {there}"
        )
    return found


def results(home: Home, place: Place, where: str) -> UnitResults:
    """Return the values of units for a condition; they depend on its columns alone, and not on the source's place."""
    key = {"limits": place.limits, "columns": place.columns, "names": Where(where).columns}
    return home.columns(digest(key))


def _rows(home: Home, record: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    table = read_table(read_object(home.store, record["columns"]["path"], record["columns"]["sha256"]))
    columns = (table[name].to_pylist() for name in _SCHEMA.names)
    for key, name, values in zip(*columns, strict=True):
        yield key, name, json.loads(values)
