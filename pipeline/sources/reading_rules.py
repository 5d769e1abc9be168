"""Which files of a source the present reading rules read differently from earlier ones.

Homes were mined when mark-up in captions was kept and the members of two joined tars were mixed up (rules 1), and when
photographs that img2dataset had encoded again were not turned (rules 2). Files in which that makes a difference are
mined again (pipeline.mining.mine.plan); all others keep their results.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hyco.pipeline.imaging.orientation import has_exif, told_orientation
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.markup import plain_text
from hyco.pipeline.sources.parquet_rows import caption_texts
from hyco.pipeline.sources.readers import lines
from hyco.pipeline.sources.records import CAPTIONS, Limits, RecordError, parse_object
from hyco.pipeline.sources.table_rows import columns_of
from hyco.pipeline.sources.tar_rows import IMAGES, TEXTS, repeats_names, uncompressed
from hyco.storage.tar import Member, read_members

READING = 3
"""Version of the rules: 2 since mark-up is undone and a name that comes again in a tar begins a new sample; 3 since
images are turned as img2dataset's `exif` says."""

_LIMITS = Limits()


def differs(kind: str, file: BinaryIO, path: str, since: int, columns: Columns = USUAL) -> bool:
    """Return whether the rules up to version `since` read other samples from a file, up to any damage in it."""
    try:
        return any(_differences(kind, file, path, since, columns))
    except (ValueError, OSError, pa.ArrowException):
        return False


def _differences(kind: str, file: BinaryIO, path: str, since: int, columns: Columns) -> Iterator[bool]:
    if kind == ".parquet":
        if since < 2:
            yield from (_marked(text) for text in caption_texts(file, path))
        yield from _turned_rows(file, path, columns)
    elif kind == ".jsonl":
        yield from (line is not None and (_in_json(line, since) or _turned(line)) for line in lines(file))
    elif kind == ".tar":
        seen = _Seen(since)
        repeated = repeats_names(seen.noted(read_members(uncompressed(file, path), path)))
        yield since < 2 and repeated
        yield seen.marked or bool(seen.told - seen.own)


class _Seen:
    """What the members of a tar tell: mark-up in a caption, names with a turned image, names whose image has EXIF."""

    def __init__(self, since: int) -> None:
        self.since, self.marked = since, False
        self.told: set[str] = set()
        self.own: set[str] = set()

    def noted(self, members: Iterator[Member]) -> Iterator[Member]:
        """Pass members on, taking notes."""
        for member in members:
            stem, _, suffix = member.name.rpartition(".")
            suffix = suffix.lower()
            if suffix in IMAGES and member.size <= _LIMITS.max_bytes:
                if has_exif(member.read()):
                    self.own.add(stem)
            elif member.size <= _LIMITS.max_text and (suffix == "json" or suffix in TEXTS):
                data = member.read()
                if suffix == "json" and _turned(data):
                    self.told.add(stem)
                plain = suffix != "json"
                text = data.decode("utf-8", "replace") if plain else ""
                self.marked |= self.since < 2 and (_marked(text) if plain else _in_json(data, self.since))
            yield member


def _turned(data: bytes) -> bool:
    """Say whether a sample's json tells an orientation other than the usual one."""
    if b"Image Orientation" not in data:
        return False
    try:
        return told_orientation(parse_object(data).get("exif")) != 1
    except RecordError:
        return False


def _turned_rows(file: BinaryIO, path: str, columns: Columns) -> Iterator[bool]:
    table = pq.ParquetFile(file, pre_buffer=False)
    if "exif" not in table.schema_arrow.names:
        return
    image, _ = columns_of(table.schema_arrow, path, columns)
    for batch in table.iter_batches(batch_size=32, columns=[image, "exif"], use_threads=False):
        for data, exif in zip(batch[image], batch["exif"], strict=True):
            if told_orientation(exif.as_py()) != 1:
                held = data["bytes"] if isinstance(data, pa.StructScalar) else data
                yield not has_exif(held.as_py() or b"")


def _in_json(data: bytes, since: int) -> bool:
    if since >= 2:
        return False
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
