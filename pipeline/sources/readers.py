"""Readers of source files, one per kind: each yields rows and continues after a bad one."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from hyco.pipeline.sources.arrow_rows import arrow_rows
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.image_files import FILES, beside, image_file
from hyco.pipeline.sources.parquet_rows import parquet_rows
from hyco.pipeline.sources.records import (
    IMAGE_OPTION,
    Limits,
    RecordError,
    SourceRecord,
    captions_of,
    failed_download,
    parse_object,
)
from hyco.pipeline.sources.tar_rows import Admit, tar_rows
from hyco.storage.store import Store

_LONGEST_LINE = (
    Limits().max_text
)  # of the lines that make a unit's identity, whatever the limits it is mined with


def jsonl_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit, columns: Columns = USUAL
) -> Iterator[SourceRecord]:
    """Rows of a jsonl file, one object per line: {"file": "a/b.jpg", "caption": "..."} or a list of "captions".

    Files are looked for below the source's folder only. Other entries become meta.
    """
    for number, line in enumerate(lines(file, limits.max_text), start=1):
        if line is not None and not line.strip():
            continue
        try:
            if line is None:
                text = f"line {number} of {path} is longer than {limits.max_text} bytes (limits.max_text)"
                raise RecordError("bad_json", text)
            meta = parse_object(line)
            wanted = (columns.image,) if columns.image else FILES
            name = next((meta.pop(key) for key in wanted if isinstance(meta.get(key), str)), None)
            if name is None:
                text = f"line {number} of {path} names no file ({', '.join(wanted)}); its fields: {', '.join(meta)}"
                raise failed_download(meta) or RecordError("no_image", f"{text}: set {IMAGE_OPTION}")
            captions = captions_of(meta, columns)
            yield SourceRecord(name, admit(image_file(store, path, name, limits)), captions, meta)
        except RecordError as error:
            yield SourceRecord(f"{path}:{number}", error=error)


def lines(file: BinaryIO, longest: int = _LONGEST_LINE) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for a line of more than `longest` bytes, which is skipped in pieces."""
    while line := file.readline(longest + 1):
        if len(line) <= longest:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(longest)
        yield None


def jsonl_sizes(store: Store, path: str, columns: Columns = USUAL) -> list[int]:
    """Return the sizes in bytes of the images that a jsonl names, -1 for a missing one; they identify the content."""
    wanted = (columns.image,) if columns.image else FILES
    with store.open(path) as file:
        return [-1 if line is None else _size(store, path, line, wanted) for line in lines(file)]


def _size(store: Store, path: str, line: bytes, wanted: tuple[str, ...]) -> int:
    try:
        meta: dict[str, Any] = parse_object(line)
        name = next((meta[key] for key in wanted if isinstance(meta.get(key), str)), "")
        return store.size(beside(path, name)) if name else -1
    except (RecordError, ValueError, OSError):
        return -1


READERS = {".tar": tar_rows, ".parquet": parquet_rows, ".jsonl": jsonl_rows, ".arrow": arrow_rows}
"""The reader of each kind of file that is one unit."""
