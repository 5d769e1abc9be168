"""Detections and failures as parquet tables: all output of the detector, before any threshold."""

from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow as pa

from hyco.storage.sample import Failure
from hyco.storage.sealed import read_table, write_table

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # content key of the image
        pa.field("caption", pa.int32(), nullable=False),  # index in the sample's captions
        pa.field("text", pa.string(), nullable=False),  # that caption
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # pixels, after EXIF rotation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("phrase", pa.string()),  # null: the sample has no phrase at all
        pa.field("span_start", pa.int32()),  # characters of text, end excluded
        pa.field("span_end", pa.int32()),
        pa.field("rule", pa.string()),  # "chunk" or "expression"
        pa.field("expression", pa.string()),  # the phrase grown along the dependency tree
        pa.field("x0", pa.float32()),  # fractions of width and height; null: the phrase has no box
        pa.field("y0", pa.float32()),
        pa.field("x1", pa.float32()),
        pa.field("y1", pa.float32()),
        pa.field("score", pa.float32()),
        pa.field("detector", pa.string(), nullable=False),  # digest of the detector
        pa.field("rules", pa.string(), nullable=False),  # version of the phrase rules
    ]
)
"""One row for each (phrase, candidate box). A phrase without a box has one row with null box and score; a
sample without phrases has one row with null phrase: every sample that was mined is in the table."""

FAILURES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("retryable", pa.bool_(), nullable=False),
    ]
)


def write_detections(file: BinaryIO, rows: Any) -> int:
    """Write detections as parquet and return the number of rows.

    Args:
        file: writable binary file.
        rows: a pyarrow Table, or an iterable of dicts, with SCHEMA's names; nullable ones may be left out.

    Raises:
        ValueError: unknown or missing columns.
    """
    return _write(file, _table(rows, SCHEMA))


def read_detections(file: BinaryIO) -> pa.Table:
    """Read a detections file, which must be seekable; ValueError when it is not one."""
    return _read(file, SCHEMA, "detections")


def write_failures(file: BinaryIO, failures: Iterable[Failure]) -> int:
    """Write failures as parquet and return the number of rows."""
    rows = [{name: getattr(failure, name) for name in FAILURES.names} for failure in failures]
    return _write(file, _table(rows, FAILURES))


def read_failures(file: BinaryIO) -> list[Failure]:
    """Read a failures file; ValueError when it is not one."""
    return [Failure(**row) for row in _read(file, FAILURES, "failures").to_pylist()]


def _table(rows: Any, schema: pa.Schema) -> pa.Table:
    if isinstance(rows, pa.Table):
        if set(rows.column_names) != set(schema.names):
            raise ValueError(f"columns {rows.column_names} given, expected {schema.names}")
        return rows.select(schema.names).cast(schema)
    listed = [dict(row) for row in rows]
    required = {field.name for field in schema if not field.nullable}
    for row in listed:
        if extra := row.keys() - set(schema.names):
            raise ValueError(f"row {row} has unknown columns {sorted(extra)}: expected {schema.names}")
        if absent := [name for name in required if row.get(name) is None]:
            raise ValueError(f"row {row} has no {sorted(absent)}")
    return pa.Table.from_pylist(listed, schema=schema)


def _write(file: BinaryIO, table: pa.Table) -> int:
    write_table(table, file)
    return table.num_rows


def _read(file: BinaryIO, schema: pa.Schema, what: str) -> pa.Table:
    try:
        file.seek(0)
        table = read_table(file.read())
    except ValueError as error:
        raise ValueError(f"not a {what} file: {error}") from None
    if missing := set(schema.names) - set(table.column_names):
        raise ValueError(f"not a {what} file: no column {', '.join(sorted(missing))}")
    return table.select(schema.names).cast(schema)
