"""Boxes that a source has already: its columns or json fields become `objects`, as Hyco's own sources label theirs.

One object is {"phrase", "box", "score", "caption", "span", "rule", "expression"}: box is x0, y0, x1, y1 in fractions of
the image's width and height; caption is the index of the caption that the phrase comes from, span its characters there.
"""

import json
import math
from collections.abc import Callable
from typing import Any, Literal

from hyco.pipeline.config import Config, ConfigError, nearest

Captions = list[Any]
Objects = list[dict[str, Any]]
Size = Callable[[], tuple[int, int]]
"""Width and height of the image in pixels, asked only where boxes are in pixels."""


class BoxFields(Config):
    """Where a source keeps its boxes: a list with one entry for each box."""

    field: str = "objects"
    """Column or field that holds the list; several separated by commas are joined."""
    layout: Literal["entries", "spans"] = "entries"
    """"entries": objects whose fields are named below. "spans": GRIT's arrays [start, end, x1, y1, x2, y2, score], with
    start and end in characters of the caption.
    """
    phrase: str = "phrase"
    """Field of the phrase in an entry."""
    box: str = "box"
    """Field of the box in an entry, or four fields separated by commas, such as "x,y,width,height"."""
    form: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    """Meaning of the four numbers: two corners; a corner, width and height; the centre, width and height."""
    pixels: bool = False
    """Whether boxes are in pixels of the image; otherwise they are fractions of its width and height."""
    score: str | None = "score"
    """Field of the score in an entry. Boxes without a score have 1."""


PRESETS = {
    "objects": BoxFields(),
    "grit": BoxFields(field="noun_chunks,ref_exps", layout="spans"),
    "coco": BoxFields(field="objects"),
}
"""Spellings of --boxes. "objects": Hyco's own. "grit": the columns of GRIT. "coco": instances_*.json beside
captions_*.json, of which pipeline.sources.gathered makes `objects`.
"""


def preset(name: str) -> BoxFields:
    """Return the fields of a preset; ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(
            f"--boxes {name}: unknown preset{nearest(name, PRESETS)}; set others with columns.boxes"
        )
    return PRESETS[name]


def objects_from(meta: dict[str, Any], captions: Captions, fields: BoxFields, size: Size) -> Objects | None:
    """Return the boxes of a row as objects, and take their fields out of `meta`; None for a row without the fields.

    Entries that are no box with a phrase are passed over.
    """
    names = [name.strip() for name in fields.field.split(",")]
    lists = [_listed(meta.pop(name)) for name in names if name in meta]
    if not lists:
        return None
    if fields.layout == "spans":
        chunks = lists[0]
        longer = lists[1] if len(lists) > 1 else []
        return _of_spans(
            chunks, longer, next((text for text in captions if isinstance(text, str)), ""), fields, size
        )
    found = []
    for entry in (entry for entries in lists for entry in entries if isinstance(entry, dict)):
        phrase = entry.get(fields.phrase)
        box = _corners(_four(entry, fields), fields, size)
        if isinstance(phrase, str) and phrase.strip() and box:
            kept = {name: entry[name] for name in ("caption", "span", "rule", "expression") if name in entry}
            score = _score(entry.get(fields.score) if fields.score else None)
            found.append({"phrase": phrase.strip(), "box": box, "score": score, **kept})
    return found


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):  # img2dataset writes some columns as text
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict):  # datasets: a struct of lists for a list of structs
        lists = {name: column for name, column in value.items() if isinstance(column, list)}
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=False)]
    return value if isinstance(value, list) else []


def _of_spans(
    chunks: list[Any], longer: list[Any], caption: str, fields: BoxFields, size: Size
) -> list[dict[str, Any]]:
    """GRIT: a referring expression has the box of the noun chunk that it grew from."""
    nouns = [span for one in chunks if (span := _span(one, caption, fields, size))]
    expressions = [span for one in longer if (span := _span(one, caption, fields, size))]
    found: list[dict[str, Any]] = []
    grown: set[int] = set()
    for start, end, box, score in expressions:
        inside = [
            number
            for number, (first, last, other, _) in enumerate(nouns)
            if other == box and start <= first and last <= end and number not in grown
        ]
        grown.update(inside)
        named = [nouns[number] for number in inside] or [(start, end, box, score)]
        for first, last, _, own in named:
            found.append(_object(caption, first, last, box, own, "expression", caption[start:end]))
    for number, (start, end, box, score) in enumerate(nouns):
        if number not in grown:
            rule = "chunk" if expressions else "expression"
            found.append(_object(caption, start, end, box, score, rule, caption[start:end]))
    return found


def _object(
    caption: str, start: int, end: int, box: Any, score: float, rule: str, expression: str
) -> dict[str, Any]:
    phrase = caption[start:end]
    return {
        "phrase": phrase,
        "box": box,
        "score": score,
        "caption": 0,
        "span": [start, end],
        "rule": rule,
        "expression": expression,
    }


def _span(
    one: Any, caption: str, fields: BoxFields, size: Size
) -> tuple[int, int, list[float], float] | None:
    if not isinstance(one, list | tuple) or len(one) < 6:
        return None
    try:
        start, end = int(one[0]), int(one[1])
        box = _corners([float(value) for value in one[2:6]], fields, size)
    except (TypeError, ValueError, OverflowError):
        return None
    if box is None or not 0 <= start < end <= len(caption) or not caption[start:end].strip():
        return None
    return start, end, box, _score(one[6] if len(one) > 6 else None)


def _four(entry: dict[str, Any], fields: BoxFields) -> list[float] | None:
    names = [name.strip() for name in fields.box.split(",")]
    values: Any = entry.get(names[0]) if len(names) == 1 else [entry.get(name) for name in names]
    if not isinstance(values, list | tuple) or len(values) != 4:
        return None
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None


def _corners(four: list[float] | None, fields: BoxFields, size: Size) -> list[float] | None:
    """x0, y0, x1, y1 in fractions, inside the image; None for a box without area or out of the image."""
    if four is None or not all(map(math.isfinite, four)):
        return None
    x0, y0, x1, y1 = four
    if fields.form == "xywh":
        x1, y1 = x0 + x1, y0 + y1
    elif fields.form == "cxcywh":
        x0, y0, x1, y1 = x0 - x1 / 2, y0 - y1 / 2, x0 + x1 / 2, y0 + y1 / 2
    width, height = size() if fields.pixels else (1, 1)
    box = [min(max(value, 0.0), 1.0) for value in (x0 / width, y0 / height, x1 / width, y1 / height)]
    return box if box[0] < box[2] and box[1] < box[3] else None


def _score(value: Any) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else 1.0
