"""A row of a columnar file (parquet, arrow): which columns hold image and captions, and what its values are.

A value that pyarrow holds and Python cannot costs its own row, or is left out of meta.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.image_files import FILES, image_file
from hyco.pipeline.sources.records import (
    CAPTION_OPTION,
    CAPTIONS,
    IMAGE_OPTION,
    MAX_DEPTH,
    Limits,
    RecordError,
    SourceRecord,
    depth_of,
    failed_download,
)
from hyco.pipeline.sources.tar_rows import IMAGES, Admit
from hyco.storage.store import Store

NUMBERED = re.compile(r"(?:caption|text|sentence)_?\d+")
"""Caption columns that are used where there is none of the usual names."""
_BYTES = frozenset({*IMAGES, "image_bytes", "bytes"})
_NAMES = ("__key__", "key", "id", "image_id")
_UNREADABLE = object()
"""Marks a value that pyarrow holds and Python cannot."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the file and its number in it, the image's value, the captions' values, and the other columns."""

    path: str
    number: int
    image: pa.Scalar
    said: list[pa.Scalar]
    values: dict[str, Any]

    def record(self, store: Store, limits: Limits, admit: Admit) -> SourceRecord:
        """Return the row as a record whose image is admitted, or with the error why there is none."""
        place = f"{self.path}:{self.number}"
        name = next((str(self.values[key]) for key in _NAMES if self.values.get(key) is not None), place)
        meta = {key: value for key, value in self.values.items() if value is not None}
        try:
            data = self._bytes(store, limits)
            if data is None:
                raise failed_download(meta) or RecordError("no_image", f"{place} holds no image bytes")
            if len(data) > limits.max_bytes:
                text = f"image has {len(data)} bytes: more than {limits.max_bytes} (limits.max_bytes)"
                raise RecordError("too_many_bytes", text)
            captions = [text for scalar in self.said for text in texts_of(scalar)]
            readable = [text for text in captions if text is not _UNREADABLE]
            if len(readable) < len(captions) and not any(readable):
                raise RecordError("bad_text", f"{place} has a caption that is not UTF-8")
            return SourceRecord(name, admit(data), readable, meta)
        except RecordError as error:
            return SourceRecord(name, error=error)

    def _bytes(self, store: Store, limits: Limits) -> bytes | None:
        scalar, file = self.image, None
        while isinstance(scalar, pa.StructScalar) and scalar.is_valid:
            file = scalar["path"] if "path" in scalar.type.names else None  # may be invalid text
            scalar = scalar["bytes"]
        data = value_of(scalar)
        if data is None and file is not None:
            data = value_of(file)
        if isinstance(data, str):  # `datasets` stores absolute paths; those below the source are allowed
            inside = f"{store.root}/"
            own = data.startswith(inside)
            return image_file(store, "" if own else self.path, data.removeprefix(inside), limits)
        return data if isinstance(data, bytes) else None


def columns_of(schema: pa.Schema, path: str, columns: Columns) -> tuple[str, list[str]]:
    """Return the column of images and those of captions; ValueError, naming what there is, when they are not found.

    Images: the column asked for, else the only one of bytes (or struct with `bytes`), else a text column with a usual
    name. Captions: those asked for, else the first of captions, caption, text, texts, sentences in any case, else all
    numbered ones (caption_0, caption_1 ...).
    """
    listed = ", ".join(f"{column.name} ({column.type})" for column in schema)
    for wanted, option in (
        (columns.image, IMAGE_OPTION),
        *((name, CAPTION_OPTION) for name in columns.captions),
    ):
        if wanted is not None and wanted not in schema.names:
            raise ValueError(f"{path} has no column '{wanted}': set {option} to one of its columns: {listed}")
    lower = {column.name.lower(): column.name for column in schema}
    image = columns.image or _image_column(schema, lower, path, listed)
    captions = (
        list(columns.captions)
        or [lower[name] for name in CAPTIONS if name in lower and lower[name] != image][:1]
    )
    captions = captions or [column.name for column in schema if NUMBERED.fullmatch(column.name.lower())]
    if not captions:
        raise ValueError(
            f"{path} has no caption column; call it one of {', '.join(CAPTIONS)} or set {CAPTION_OPTION}. Its columns: "
            f"{listed}"
        )
    return image, captions


def _image_column(schema: pa.Schema, lower: dict[str, str], path: str, listed: str) -> str:
    binary = [column.name for column in schema if holds_bytes(column.type)]
    named = [name for name in binary if name.lower() in _BYTES]
    if binary and (len(binary) == 1 or len(named) == 1):
        return (named or binary)[0]
    files = [lower[name] for name in FILES if name in lower and _is_text(schema.field(lower[name]).type)]
    if not binary and files:
        return files[0]
    found = (
        f"several columns of bytes ({', '.join(binary)})"
        if binary
        else "no column of image bytes or file names"
    )
    raise ValueError(f"{path} has {found}; call it 'image' or set {IMAGE_OPTION}. Its columns: {listed}")


def torn(error: Exception, path: str, kind: str) -> Exception:
    """Return the error of a file that pyarrow cannot read: a ValueError, or the fault of the disk or network itself."""
    if isinstance(error, OSError) and (error.errno or type(error) is not OSError):
        return error  # pyarrow's own have no number and no class
    first = str(error).partition("\n")[0]
    return ValueError(f"{path} is not a whole {kind} file ({first}): fetch it or make it again")


def value_of(scalar: pa.Scalar) -> Any:
    """Return the value of a scalar as Python has it; one that Python cannot hold is a marker that is no JSON."""
    try:
        return scalar.as_py()
    except Exception:  # as_py runs conversions of many types, each with errors of its own
        return _UNREADABLE


def texts_of(scalar: pa.Scalar) -> list[Any]:
    """Return the captions in one value: a string, or a list of which each entry is read by itself."""
    if isinstance(scalar, pa.ListScalar) and scalar.is_valid:
        return [value_of(entry) for entry in scalar.values]
    return [value_of(scalar)]


def holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes, plain or in a struct."""
    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_json(value: Any) -> bool:
    """Return whether JSON can hold a value: finite and not nested too deep."""
    if value is None or type(value) in (str, int, bool):
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return depth_of(value) <= MAX_DEPTH


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
