"""Readers of source files, one for each kind: each yields rows and never stops at a bad one."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.sources.parquet_rows import parquet_rows
from pipeline.sources.records import (
    Limits,
    RecordError,
    SourceRecord,
    captions_of,
    failed_download,
    parse_object,
)
from pipeline.sources.tar_rows import Admit, tar_rows
from storage.sample import short
from storage.store import Store

_FILES = ("file", "image", "file_name", "filename", "path")
_LONGEST_LINE = (
    Limits().max_text
)  # of the lines that make a unit's identity, whatever the limits it is mined with


def jsonl_rows(
    file: BinaryIO, path: str, store: Store, limits: Limits, admit: Admit
) -> Iterator[SourceRecord]:
    """Rows of a jsonl file, one object a line: {"file": "a/b.jpg", "caption": "..."} or a list of "captions".

    Files are looked for below the jsonl's own folder only. Other entries become meta.
    """
    for number, line in enumerate(lines(file, limits.max_text), start=1):
        if line is not None and not line.strip():
            continue
        try:
            if line is None:
                text = f"line {number} of {path} is longer than {limits.max_text} bytes (limits.max_text)"
                raise RecordError("bad_json", text)
            meta = parse_object(line)
            name = next((meta.pop(key) for key in _FILES if isinstance(meta.get(key), str)), None)
            if name is None:
                raise failed_download(meta) or RecordError(
                    "no_image", f"line {number} of {path} names no file: one of {', '.join(_FILES)}"
                )
            captions = captions_of(meta)
            yield SourceRecord(name, admit(_image_file(store, path, name, limits)), captions, meta)
        except RecordError as error:
            yield SourceRecord(f"{path}:{number}", error=error)


def lines(file: BinaryIO, longest: int = _LONGEST_LINE) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for one of more than `longest` bytes, which is passed over piece by piece."""
    while line := file.readline(longest + 1):
        if len(line) <= longest:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(longest)
        yield None


def jsonl_sizes(store: Store, path: str) -> list[int]:
    """Sizes in bytes of the images a jsonl names, -1 where there is none: a cheap mark of their content."""
    with store.open(path) as file:
        return [-1 if line is None else _size(store, path, line) for line in lines(file)]


def _size(store: Store, path: str, line: bytes) -> int:
    try:
        meta: dict[str, Any] = parse_object(line)
        name = next((meta[key] for key in _FILES if isinstance(meta.get(key), str)), "")
        return store.size(_beside(path, name)) if name else -1
    except (RecordError, ValueError, OSError):
        return -1


def _image_file(store: Store, path: str, name: str, limits: Limits) -> bytes:
    try:
        place = _beside(path, name)
        if store.local and not stat.S_ISREG(Path(store.path(place)).stat().st_mode):
            raise OSError("not a regular file")  # reading a pipe or a device may never end
        if (size := store.size(place)) > limits.max_bytes:
            text = f"{short(name)} has {size} bytes: more than {limits.max_bytes} (limits.max_bytes)"
            raise RecordError("too_many_bytes", text)
        return store.read_bytes(place)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        text = f"{short(name)} named in {path} cannot be read: {short(str(error))}"
        raise RecordError("no_image", text) from None


def _beside(path: str, name: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name.removeprefix("./")


READERS = {".tar": tar_rows, ".parquet": parquet_rows, ".jsonl": jsonl_rows}
"""The reader of each kind of file."""
