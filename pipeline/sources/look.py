"""A first look at a source: what it is, which columns it has, what would be mined and what would fail."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hyco.pipeline.imaging.decode import ImageError, inspect
from hyco.pipeline.imaging.orientation import told_orientation
from hyco.pipeline.sources.gathered import PER_UNIT, units_of
from hyco.pipeline.sources.listing import BESIDE
from hyco.pipeline.sources.readers import READERS
from hyco.pipeline.sources.records import NOT_DOWNLOADED, RecordError, clean
from hyco.pipeline.sources.source import Labels, Source, Spool
from hyco.storage.sample import short

KINDS = {
    ".tar": "tars (webdataset, img2dataset)",
    ".parquet": "parquet files",
    ".jsonl": "jsonl that names images",
    ".arrow": "arrow files (datasets on disk)",
    ".csv": "csv or tsv that names images",
    ".json": "json that names images (COCO, Karpathy, a list)",
    BESIDE: "images with a text file beside each",
}
"""Kind of a source, for people."""


@dataclass(slots=True)
class Look:
    """What was found in the first rows of a source.

    Attributes:
        kind: of its files, one of KINDS.
        files: their paths in the source.
        units: number of units; None where only reading everything would tell.
        unit: the one that was looked at.
        rows: number of rows read, of which `good` would be mined, with `captions` captions.
        fields: of its rows beside image and captions, in the order in which they were met.
        samples: name, size in pixels, format and captions of the first good rows.
        failures: number of rows by code, and the message of the first of each.
        not_downloaded: rows that img2dataset could not download.
        turned: images that are turned because `exif` says so.
        boxes: number of boxes that the rows have, where boxes are asked for.
        error: why the file cannot be read (further); "" when it can.
    """

    kind: str
    files: list[str]
    units: int | None = None
    unit: str = ""
    rows: int = 0
    good: int = 0
    captions: int = 0
    fields: dict[str, None] = field(default_factory=dict)
    samples: list[tuple[str, str, list[str]]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    not_downloaded: int = 0
    turned: int = 0
    boxes: int = 0
    error: str = ""


def look(source: Source, rows: int = 200, seconds: float = 1.0, shown: int = 5) -> Look:
    """Read the first rows of a source.

    Args:
        source: as `open_source` gives it.
        rows: maximum number of rows.
        seconds: after so long no further row is read.
        shown: number of samples that are kept.
    """
    found = Look(KINDS[source.kind], source.files, unit=source.files[0])
    ends = time.monotonic() + seconds
    try:
        if source.kind not in READERS:
            found.units = sum(len(units_of(source.store, path, source.columns)) for path in source.files)
            found.unit = f"{source.files[0]}#0"
        else:
            found.units = len(source.files)
        boxes = Labels(source.columns.boxes, found.unit)
        with Spool(source.limits) as spool, contextlib.closing(source.rows(found.unit, spool.admit)) as every:
            for row in every:
                boxes.label(row, spool)
                _take(found, row, source, spool, shown)
                if found.rows >= rows or time.monotonic() > ends:
                    break
        found.boxes = boxes.boxes
        boxes.require()
    except (ValueError, OSError) as error:
        found.error = str(error)
    return found


def _take(found: Look, row: Any, source: Source, spool: Spool, shown: int) -> None:
    found.rows += 1
    try:
        captions, meta = clean(row, source.limits)
    except RecordError as error:
        if error.code == NOT_DOWNLOADED:
            found.not_downloaded += 1
            return
        found.failures[error.code] += 1
        found.first.setdefault(error.code, short(str(error)))
        return
    found.good += 1
    found.captions += len(captions)
    found.turned += source.columns.boxes is None and told_orientation(meta.get("exif")) != 1
    found.fields.update(dict.fromkeys(meta))
    if len(found.samples) < shown:
        with contextlib.suppress(ImageError):
            width, height, kind = inspect(
                spool.read(row.key), source.limits.max_pixels, source.limits.max_bytes
            )
            found.samples.append((short(row.name, 60), f"{width} x {height} {kind}", captions))


def lines(found: Look, url: str) -> Iterator[str]:
    """Yield what was found as lines for a person."""
    files = f"{len(found.files)} file{'s' * (len(found.files) != 1)}"
    units = (
        "" if found.units in (None, len(found.files)) else f", {found.units} units of up to {PER_UNIT} images"
    )
    yield f"{url}: {found.kind}, {files}{units}"
    if found.fields:
        yield f"fields beside image and captions: {short(', '.join(found.fields), 400)}"
    for name, size, captions in found.samples:
        more = f" (and {len(captions) - 1} more captions)" if len(captions) > 1 else ""
        yield f"  {name}: {size}: {short(captions[0], 100)}{more}"
    yield f"first {found.rows} rows of {found.unit}: {found.good} would be mined, with {found.captions} captions"
    if found.boxes:
        yield f"  {found.boxes} boxes in these rows"
    if found.turned:
        yield f"  {found.turned} images are turned, as their exif field says"
    if found.not_downloaded:
        yield f"  {found.not_downloaded} rows were not downloaded by img2dataset: they are counted, and are no failures"
    for code, number in found.failures.most_common():
        yield f"  {number} would fail, {code}: {found.first[code]}"
    if found.error:
        yield f"error: {found.error}"
