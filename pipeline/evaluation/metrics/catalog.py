"""Every number of metrics.json that can be judged, as a flat list: metrics.csv and the suite's table.

A number can be judged when it has a chance level or an interval beside it.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from pipeline.evaluation.coverage import complete

COLUMNS = ("name", "value", "low", "high", "chance", "n", "source", "of", "gallery")
NO_MEASURES = ("intervals", "skipped", "versions", "train", "mining", "geometry", "assessed", "coverage")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: its dotted name, the 95 % interval, the value of a guess, what the interval is drawn over.

    `of` is how many images its set has of which not all were used; `gallery` the size of what was ranked.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    n: int | None
    source: str
    of: int | None = None
    gallery: int | None = None


def figures(metrics: dict[str, Any]) -> list[Figure]:
    """All numbers of the measured sections, in the order of metrics.json; sets of the suite name their folder."""
    source = str((metrics.get("assessed") or {}).get("source") or "")
    found: list[Figure] = []
    for section, held in metrics.items():
        if section not in NO_MEASURES and isinstance(held, dict):
            context = _Context(None, None, source, _of({"coverage": metrics.get("coverage") or {}}), None)
            found += _walk(section, held, metrics.get("intervals") or {}, context)
    return found


def csv_text(metrics: dict[str, Any]) -> str:
    """metrics.csv: a head and a row for each figure; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(figure) for figure in figures(metrics))
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class _Context:
    """What enclosing blocks say of a number: `chance` by name, n, the source, of, gallery."""

    chance: dict[str, Any] | None
    n: int | None
    source: str
    of: int | None
    gallery: int | None


def _walk(path: str, block: dict[str, Any], intervals: dict[str, Any], around: _Context) -> Iterator[Figure]:
    """A block's own "chance", "n", "source", "coverage" and "gallery" go before those of the enclosing one."""
    own = block.get("chance", around.chance)
    n = block.get("n", block.get("images", around.n))
    source, of = block.get("source", around.source), _of(block) or around.of
    gallery = block.get("gallery", around.gallery)
    for key, value in block.items():
        name = f"{path}.{key}"
        guess = own.get(key) if isinstance(own, dict) else block.get(f"chance_{key}", own)
        if key == "chance" or key.startswith("chance_"):
            continue
        if isinstance(value, dict):
            inner = _Context(guess if isinstance(guess, dict) else None, n, source, of, gallery)
            yield from _walk(name, value, intervals, inner)
        elif isinstance(value, float):
            low, high = intervals.get(name) or (None, None)
            guess = guess if isinstance(guess, int | float) else None
            if low is not None or guess is not None:
                yield Figure(name, value, low, high, guess, n, source, of, gallery)


def _of(block: dict[str, Any]) -> int | None:
    """How many images (or sets, of a mean over sets) there are to a block, where fewer were used."""
    counts = next(iter((block.get("coverage") or {}).values()), None)
    return None if not counts or complete(counts) else counts.get("listed", counts["of"])
