"""Marks at packing: the images and boxes that a person has called bad (storage.marks) are left out.

A marked box takes part in non-maximum suppression and in the number of parts, and is left out afterwards: no other box
takes its place, so that a box that overlaps the bad one is not accepted for its sake.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from hyco.pipeline.packing.repeats import units_holding
from hyco.pipeline.packing.select_parts import AcceptedPart
from hyco.pipeline.sources.source import Unit
from hyco.storage.marks import box_name
from hyco.storage.store import Store

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

MARKED = "marked"
"""Reason, and name of the count, of images that are marked as bad."""
MARKED_PARTS = "marked_parts"
"""The same of boxes."""

Named = dict[str, dict[str, tuple[str, ...]]]
"""Names of the marks of boxes by unit and by key of the image."""


def marks_of(
    store: Store, units: list[Unit], records: dict[str, dict[str, Any]], marks: Iterable[str]
) -> tuple[dict[str, set[str]], Named]:
    """Return the marked images of each unit that holds some, by key, and the marked boxes of the others.

    Args:
        store: the home.
        units: of the source.
        records: mining records by unit name.
        marks: names of marks.
    """
    images, boxes = set[str](), defaultdict[str, list[str]](list)
    for mark in marks:
        key, of_box, _ = mark.partition("-")
        if of_box:
            boxes[key].append(mark)
        else:
            images.add(key)
    holding = units_holding(store, units, records, images | boxes.keys())
    bad = {name: keys & images for name, keys in holding.items() if keys & images}
    parts = {
        name: {key: tuple(sorted(boxes[key])) for key in keys - images}
        for name, keys in holding.items()
        if keys - images
    }
    return bad, parts


def without_marked(
    table: pa.Table, chosen: dict[str, list[AcceptedPart]], bad: Mapping[str, Iterable[str]]
) -> int:
    """Take the marked boxes out of `chosen` and return their number.

    Args:
        table: detections of the unit.
        chosen: accepted parts by key; its lists are replaced.
        bad: names of marked boxes by key.

    A mark holds for the phrase and for the expression around it, whichever of the two the marked part showed.
    """
    removed = 0
    for key in bad.keys() & chosen.keys():
        names = set(bad[key])
        rows = table.filter(pc.field("key") == key).select(["phrase", "expression", "x0", "y0", "x1", "y1"])
        for row in rows.to_pylist():
            if row["x0"] is None or row["phrase"] is None:
                continue
            box = tuple(min(max(row[side], 0.0), 1.0) for side in ("x0", "y0", "x1", "y1"))
            texts = {box_name(key, text, box) for text in (row["phrase"], row["expression"]) if text}
            if not names.isdisjoint(texts):
                names |= texts
        kept = [part for part in chosen[key] if box_name(key, part.phrase, part.box) not in names]
        removed += len(chosen[key]) - len(kept)
        chosen[key] = kept
    return removed
