"""A row of a source file before and after checking: name, image, captions and further fields."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hyco.pipeline.config import Config
from hyco.pipeline.imaging.decode import MAX_BYTES, MAX_PIXELS
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.markup import plain_text
from hyco.storage.sample import short

NOT_DOWNLOADED = "not_downloaded"
"""Code of img2dataset's own failed rows: they are counted, and are no failures of the shard."""

MAX_DEPTH = 64
"""Levels of arrays and objects in a sample's JSON: deeper ones could break a reader with a deeper stack than ours."""

_RAW_FACTOR = 4  # mark-up is not searched for in a caption longer than this many times the limit

CAPTIONS = ("captions", "caption", "text", "texts", "sentences")
"""Names under which captions are looked for, in this order."""

IMAGE_OPTION = "--image-column NAME (columns.image)"
CAPTION_OPTION = "--caption-column NAME (columns.caption)"
_FIELDS = 12  # of a row, named in a message

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height."""

Places = Callable[[float], float]
"""Maps a position in the caption as read to the position in the caption as used."""


class Limits(Config):
    """Maximum sizes of a sample."""

    max_bytes: int = MAX_BYTES
    """Maximum size of an encoded image, in bytes."""
    max_pixels: int = MAX_PIXELS
    """Maximum width * height of an image, from its header. Pillow's own limit of 179 million also applies,
    except to plain JPEGs.
    """
    max_caption: int = 2000
    """Maximum length of a caption, in characters; a longer one is left out; a sample with no other fails."""
    max_text: int = 1 << 20
    """Maximum size of a .txt or .json member, or of a line of jsonl, in bytes."""


class RecordError(ValueError):
    """A sample that cannot be used; failures are counted by `code`, which never changes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class SourceRecord:
    """One image-caption pair as found. `key` names the admitted image; `error` is the reason when there is none."""

    name: str
    key: str = ""
    captions: list[Any] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    error: RecordError | None = None


def captions_of(meta: dict[str, Any], columns: Columns = USUAL) -> list[Any]:
    """Take the captions out of a JSON object, as a list: the columns asked for, else the first of the known names."""
    if columns.caption:
        values = [meta.pop(name) for name in columns.captions if meta.get(name) is not None]
        return [text for value in values for text in (value if isinstance(value, list) else [value])]
    for name in CAPTIONS:
        if (value := meta.pop(name, None)) is not None:
            return value if isinstance(value, list) else [value]
    return []


def objects_of(meta: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the labels of a source: its "objects" that have a phrase and a box; others are skipped.

    None for an unlabelled sample: no list of that name, or one of another form.
    """
    objects = meta.get("objects")
    if not isinstance(objects, list):
        return None
    found = [item for item in objects if isinstance(item, dict) and _is_label(item)]
    return found if found or not objects else None


def _is_label(item: dict[str, Any]) -> bool:
    phrase = item.get("phrase")
    return isinstance(phrase, str) and bool(phrase.strip()) and box_of(item.get("box")) is not None


def box_of(value: Any) -> Box | None:
    """Return four finite numbers in order, rounded so that the same box from two captions is one part; else None."""
    try:
        x0, y0, x1, y1 = (round(float(v), 4) for v in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 2 else None


def failed_download(meta: dict[str, Any]) -> RecordError | None:
    """Return the error of a row that img2dataset could not download; None for other rows."""
    status = meta.get("status")
    if not isinstance(status, str) or status in ("", "success"):
        return None
    return RecordError(NOT_DOWNLOADED, f"img2dataset has no image here: {short(status)}")


def depth_of(value: Any) -> int:
    """Return the nesting depth of a JSON value; 0 for a plain value."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, NaN and infinities as null; RecordError "bad_json" for anything else."""
    try:
        value = _loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_json", f"json cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RecordError("bad_json", f"json holds a {type(value).__name__}, expected an object")
    if (depth := depth_of(value)) > MAX_DEPTH:
        raise RecordError(
            "bad_json", f"json is nested {depth} levels deep: more than {MAX_DEPTH} are refused"
        )
    return value


def parse_json(data: bytes, path: str) -> Any:
    """Return the JSON value that a whole file holds, NaN and infinities as null; ValueError for anything else."""
    try:
        return _loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no json ({error}): fetch it or make it again") from None


def _loads(data: bytes) -> Any:
    return json.loads(data, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float | None:
    """Return a finite number, else None: JSON has no others, though Python reads NaN, Infinity and 1e999."""
    return value if math.isfinite(value := float(text)) else None


def clean(row: SourceRecord, limits: Limits) -> tuple[list[str], dict[str, Any]]:
    """Return a row's usable captions and its meta; RecordError when there is none.

    Mark-up is removed (sources.markup), line breaks and tabs become spaces, ends are stripped, empty and over-long
    captions are dropped. "objects" in meta, which refer to captions by index and characters, are adjusted.
    """
    if row.error:
        raise row.error
    kept: list[str] = []
    moved: dict[int, tuple[int, Places]] = {}  # old index -> new index, where its characters went
    long = 0
    for index, caption in enumerate(row.captions):
        if caption is None:
            continue
        if not isinstance(caption, str):
            raise RecordError("bad_text", f"caption {index} is a {type(caption).__name__}, expected text")
        text, places = _clean_text(caption, limits.max_caption)
        if len(text) > limits.max_caption:
            long += 1
        elif text:
            _check_text(text)
            moved[index] = (len(kept), places)
            kept.append(text)
    if not kept and long:
        raise RecordError(
            "caption_too_long", f"no caption of at most {limits.max_caption} characters (limits.max_caption)"
        )
    if not kept and row.captions:
        raise RecordError("empty_caption", "no caption with any text in it")
    if not kept:
        fields = ", ".join(list(row.meta)[:_FIELDS]) or "none"
        raise RecordError(
            "no_caption", f"no caption; its other fields: {short(fields)}: set {CAPTION_OPTION}"
        )
    objects = row.meta.get("objects")
    if isinstance(objects, list):
        return kept, {
            **row.meta,
            "objects": [_follow(item, moved) for item in objects if _points_at(item, moved)],
        }
    return kept, row.meta


def _clean_text(caption: str, longest: int) -> tuple[str, Places]:
    """Return the text of a caption without mark-up, and the map of its positions."""
    flat = re.sub(r"\s", " ", caption)
    places: list[int] | None = None
    if len(flat) <= _RAW_FACTOR * longest:
        flat, places = plain_text(flat)
        flat = re.sub(r"\s", " ", flat)  # an entity may be a line break
    text = flat.strip()
    shift = len(flat) - len(flat.lstrip())
    if places is None:
        return text, lambda place: place - shift
    return text, lambda place: _moved(places, place) - shift


def _moved(places: list[int], place: float) -> int:
    """Return the new place of a position; one outside the caption moves to the nearer end, as objects are unchecked."""
    return places[min(max(int(place), 0), len(places) - 1)]


def join_objects(meta: dict[str, Any], other: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Return the meta of a sample with the labels of another row of its image, whose captions are now at `places`."""
    more = other.get("objects")
    if not isinstance(more, list) or not isinstance(meta.get("objects", []), list):
        return meta
    moved = [
        {**item, "caption": places[int(item["caption"])]}
        if isinstance(item, dict) and "caption" in item
        else item
        for item in more
    ]
    known = meta.get("objects", [])
    return {**meta, "objects": known + [item for item in moved if item not in known]}


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no file can
        raise RecordError("bad_text", f"caption is not Unicode text: {error}") from None


def _points_at(item: Any, moved: dict[int, tuple[int, Places]]) -> bool:
    if not isinstance(item, dict) or "caption" not in item:
        return True
    return isinstance(item["caption"], int | float) and item["caption"] in moved


def _follow(item: Any, moved: dict[int, tuple[int, Places]]) -> Any:
    """Return a label that fits the clean captions: its phrase without mark-up, its caption and span moved."""
    if not isinstance(item, dict):
        return item
    for name in ("phrase", "expression"):
        if isinstance(item.get(name), str):
            item = {**item, name: plain_text(item[name])[0]}
    if "caption" not in item:
        return item
    caption, place_of = moved[item["caption"]]
    span = item.get("span")
    if isinstance(span, list):
        span = [place_of(place) if isinstance(place, int | float) else place for place in span]
    return {**item, "caption": caption, "span": span}
