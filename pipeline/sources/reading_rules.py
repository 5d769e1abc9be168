"""Which files of a source the present rules of reading read otherwise than those of before.

Homes were mined when mark-up in captions was kept and the members of two joined tars were mixed up. Files in which
that makes a difference are mined again (pipeline.mining.mine.plan); all others keep what was made of them.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.sources.markup import plain_text
from pipeline.sources.parquet_rows import caption_texts
from pipeline.sources.readers import lines
from pipeline.sources.records import CAPTIONS, Limits, RecordError, parse_object
from pipeline.sources.tar_rows import TEXTS, repeats_names
from storage.tar import Member, read_members

READING = 2
"""Version of the rules: 2 since mark-up is undone and a name that comes again in a tar begins a new sample."""

_LIMITS = Limits()


def differs(kind: str, file: BinaryIO, path: str) -> bool:
    """Say whether version 1 read other captions, or other pairs, out of a file, up to where it may be damaged."""
    try:
        return any(_differences(kind, file, path))
    except (ValueError, OSError, pa.ArrowException):
        return False


def _differences(kind: str, file: BinaryIO, path: str) -> Iterator[bool]:
    if kind == ".parquet":
        yield from (_marked(text) for text in caption_texts(file, path))
    elif kind == ".jsonl":
        yield from (line is not None and _in_json(line) for line in lines(file))
    else:
        marked: list[bool] = []
        yield repeats_names(_noted(read_members(file, path), marked))
        yield any(marked)


def _noted(members: Iterator[Member], marked: list[bool]) -> Iterator[Member]:
    """Pass members on, noting of each whether a caption in it has mark-up."""
    for member in members:
        suffix = member.name.rpartition(".")[2].lower()
        if member.size <= _LIMITS.max_text and (suffix == "json" or suffix in TEXTS):
            data = member.read()
            marked.append(_in_json(data) if suffix == "json" else _marked(data.decode("utf-8", "replace")))
        yield member


def _in_json(data: bytes) -> bool:
    if b"&" not in data and b"<" not in data and b"\\u00" not in data:
        return False
    try:
        meta: dict[str, Any] = parse_object(data)
    except RecordError:
        return False
    values = [meta.get(name) for name in CAPTIONS]
    return any(_marked(text) for value in values for text in (value if isinstance(value, list) else [value]))


def _marked(caption: Any) -> bool:
    return isinstance(caption, str) and len(caption) < 8000 and plain_text(caption)[1] is not None
