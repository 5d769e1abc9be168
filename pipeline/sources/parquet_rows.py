"""Rows of a parquet file, value by value: what pyarrow cannot give to Python costs its own row or column, not the file.

A file may hold text that is not UTF-8, a time in nanoseconds, or a damaged page in a column that nobody needs. Only
the image and the captions are required. No Arrow thread ever holds the Python file: one that still runs when the
interpreter ends aborts it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.records import (
    CAPTIONS,
    MAX_DEPTH,
    Limits,
    RecordError,
    SourceRecord,
    depth_of,
    failed_download,
)
from pipeline.sources.tar_rows import IMAGES, Admit
from storage.store import Store

_NUMBERED = re.compile(r"(?:caption|text|sentence)_?\d+")
_NAMES = ("__key__", "key", "id", "image_id")
_BATCH = 32
_UNREADABLE = object()
"""Stands for a value that pyarrow holds and Python cannot."""


def parquet_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit
) -> Iterator[SourceRecord]:
    """Rows of a parquet file: an image column (binary, or struct with `bytes`) and caption column(s).

    Caption columns: the first of captions, caption, text, texts, sentences that exists in any case, string
    or list of strings; else all numbered ones (caption_0, caption_1 ...). Other columns become meta as far
    as JSON can hold them. ValueError for a file without such columns, naming those it has.
    """
    try:
        table = pq.ParquetFile(file, pre_buffer=False)
        image, captions = _columns(table.schema_arrow, path)
        others = {
            column.name: _optional(table, column.name)
            for column in table.schema_arrow
            if column.name not in (image, *captions) and not _holds_bytes(column.type)
        }
        needed = zip(_scalars(table, image), *(_scalars(table, name) for name in captions), strict=True)
        for number, (data, *said) in enumerate(needed):
            values = {name: next(column, None) for name, column in others.items()}
            yield _row(f"{path}:{number}", data, said, values, limits, admit)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.errno or type(error) is not OSError):
            raise  # of the disk or the network; pyarrow's own have no number and no class
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole parquet file ({first}): fetch it or make it again") from None


def caption_texts(file: BinaryIO, path: str) -> Iterator[str]:
    """Yield every caption of a parquet file without touching its images; errors as `parquet_rows`."""
    table = pq.ParquetFile(file, pre_buffer=False)
    for name in _columns(table.schema_arrow, path)[1]:
        for scalar in _scalars(table, name):
            yield from (text for text in _texts(scalar) if isinstance(text, str))


def _scalars(table: pq.ParquetFile, name: str) -> Iterator[pa.Scalar]:
    for batch in table.iter_batches(batch_size=_BATCH, columns=[name], use_threads=False):
        yield from batch.column(batch.schema.names.index(name))


def _optional(table: pq.ParquetFile, name: str) -> Iterator[Any]:
    """The values of a column, None for each that JSON cannot hold and from where the file cannot be read."""
    try:
        for scalar in _scalars(table, name):
            value = _value(scalar)
            yield value if _is_json(value) else None
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError):
        return
    except OSError as error:
        if error.errno or type(error) is not OSError:
            raise


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception:  # as_py runs conversions of many types, each with errors of its own
        return _UNREADABLE


def _texts(scalar: pa.Scalar) -> list[Any]:
    """The captions in one value: a string, or a list of which each entry is read by itself."""
    if isinstance(scalar, pa.ListScalar) and scalar.is_valid:
        return [_value(entry) for entry in scalar.values]
    return [_value(scalar)]


def _image_bytes(scalar: pa.Scalar) -> bytes | None:
    while isinstance(scalar, pa.StructScalar) and scalar.is_valid:
        scalar = scalar["bytes"]  # and not its path, which may be no text
    return scalar.as_py()


def _row(
    place: str, image: pa.Scalar, said: list[pa.Scalar], values: dict[str, Any], limits: Limits, admit: Admit
) -> SourceRecord:
    name = next((str(values[key]) for key in _NAMES if values.get(key) is not None), place)
    meta = {key: value for key, value in values.items() if value is not None}
    try:
        data = _image_bytes(image)
        if data is None:
            raise failed_download(meta) or RecordError("no_image", f"{place} holds no image bytes")
        if len(data) > limits.max_bytes:
            text = f"image has {len(data)} bytes: more than {limits.max_bytes} (limits.max_bytes)"
            raise RecordError("too_many_bytes", text)
        captions = [text for scalar in said for text in _texts(scalar)]
        readable = [text for text in captions if text is not _UNREADABLE]
        if len(readable) < len(captions) and not any(readable):
            raise RecordError("bad_text", f"{place} has a caption that is not UTF-8")
        return SourceRecord(name, admit(data), readable, meta)
    except RecordError as error:
        return SourceRecord(name, error=error)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and _holds_bytes(part.type) for part in kind)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _columns(schema: pa.Schema, path: str) -> tuple[str, list[str]]:
    listed = ", ".join(f"{column.name} ({column.type})" for column in schema)
    binary = [column.name for column in schema if _holds_bytes(column.type)]
    named = [name for name in binary if name.lower() in {*IMAGES, "image_bytes", "bytes"}]
    if not binary or (len(binary) > 1 and len(named) != 1):
        found = (
            "no column of image bytes" if not binary else f"several columns of bytes ({', '.join(binary)})"
        )
        raise ValueError(f"{path} has {found}; call it 'image'. Its columns: {listed}")
    lower = {column.name.lower(): column.name for column in schema}
    captions = [lower[name] for name in CAPTIONS if name in lower][:1]
    captions = captions or [column.name for column in schema if _NUMBERED.fullmatch(column.name.lower())]
    if not captions:
        raise ValueError(
            f"{path} has no caption column; call it one of {', '.join(CAPTIONS)}. Its columns: {listed}"
        )
    return (named or binary)[0], captions


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return depth_of(value) <= MAX_DEPTH
