"""A row of a source file before and after checking: name, image, captions and what else the file says of them."""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Config
from pipeline.images import MAX_BYTES, MAX_PIXELS

CAPTIONS = ("captions", "caption", "text", "texts", "sentences")
"""Names under which captions are looked for, in this order."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of an image's width and height."""


class Limits(Config):
    """What a sample may weigh.

    Attributes:
        max_bytes: of an encoded image.
        max_pixels: width * height, from the header. Pillow's own limit of 179 million stays, for all but plain JPEGs.
        max_caption: characters; a longer caption is set aside, and a sample with no other fails.
        max_text: bytes of a .txt or .json member, or of a line of jsonl.
    """

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_caption: int = 2000
    max_text: int = 1 << 20


class RowError(ValueError):
    """One sample that cannot be used; `code` is a stable word to count by."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Row:
    """One image-caption pair as found. `key` names the admitted image; `error` says why there is none."""

    name: str
    key: str = ""
    captions: list[Any] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    error: RowError | None = None


def captions_of(meta: dict[str, Any]) -> list[Any]:
    """Take the captions out of a JSON object: the first of the known names, as a list."""
    for name in CAPTIONS:
        if (value := meta.pop(name, None)) is not None:
            return value if isinstance(value, list) else [value]
    return []


def objects_of(meta: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The labels of a source: its "objects" that have a phrase and a box, others are passed over.

    None where nobody labelled: no list of that name, or one of another form.
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
    """Four finite numbers in order, rounded so that the same box from two captions is one part; else None."""
    try:
        x0, y0, x1, y1 = (round(float(v), 4) for v in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 2 else None


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`, NaN and infinities as null; RowError "bad_json" for anything else."""
    try:
        value = json.loads(data, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RowError("bad_json", f"json cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RowError("bad_json", f"json holds a {type(value).__name__}, expected an object")
    return value


def _finite(text: str) -> float | None:
    """JSON has no other numbers, though Python reads and writes NaN, Infinity and 1e999."""
    return value if math.isfinite(value := float(text)) else None


def clean(row: Row, limits: Limits) -> tuple[list[str], dict[str, Any]]:
    """Return a row's usable captions and its meta; RowError when there is none.

    Line breaks and tabs become spaces, ends are stripped, empty and over-long captions are set aside.
    "objects" in meta, which point at captions by index and characters, follow.
    """
    if row.error:
        raise row.error
    kept: list[str] = []
    moved: dict[int, tuple[int, int]] = {}  # old index -> new index, characters stripped at the start
    long = 0
    for index, caption in enumerate(row.captions):
        if caption is None:
            continue
        if not isinstance(caption, str):
            raise RowError("bad_text", f"caption {index} is a {type(caption).__name__}, expected text")
        flat = re.sub(r"\s", " ", caption)
        text = flat.strip()
        if len(text) > limits.max_caption:
            long += 1
        elif text:
            _check_text(text)
            moved[index] = (len(kept), len(flat) - len(flat.lstrip()))
            kept.append(text)
    if not kept and long:
        raise RowError("caption_too_long", f"no caption of at most {limits.max_caption} characters")
    if not kept:
        raise RowError("empty_caption" if row.captions else "no_caption", "no caption with any text in it")
    objects = row.meta.get("objects")
    if isinstance(objects, list):
        return kept, {
            **row.meta,
            "objects": [_follow(item, moved) for item in objects if _points_at(item, moved)],
        }
    return kept, row.meta


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can smuggle in half a surrogate pair, which no file could hold
        raise RowError("bad_text", f"caption is not Unicode text: {error}") from None


def _points_at(item: Any, moved: dict[int, tuple[int, int]]) -> bool:
    if not isinstance(item, dict) or "caption" not in item:
        return True
    return isinstance(item["caption"], int | float) and item["caption"] in moved


def _follow(item: Any, moved: dict[int, tuple[int, int]]) -> Any:
    if not isinstance(item, dict) or "caption" not in item:
        return item
    caption, shift = moved[item["caption"]]
    span = (
        [place - shift if isinstance(place, int | float) else place for place in item["span"]]
        if isinstance(item.get("span"), list)
        else item.get("span")
    )
    return {**item, "caption": caption, "span": span}
