"""Every number of metrics.json that can be judged, as a flat list: metrics.csv and the suite's table.

A number can be judged when it has a chance level or an interval beside it.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

COLUMNS = ("name", "value", "low", "high", "chance", "n", "source")
NO_MEASURES = ("intervals", "skipped", "versions", "train", "mining", "geometry", "assessed")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number: its dotted name, the 95 % interval, the value of a guess, what the interval is drawn over."""

    name: str
    value: float
    low: float | None
    high: float | None
    chance: float | None
    n: int | None
    source: str


def figures(metrics: dict[str, Any]) -> list[Figure]:
    """All numbers of the measured sections, in the order of metrics.json; sets of the suite name their folder."""
    source = str((metrics.get("assessed") or {}).get("source") or "")
    found: list[Figure] = []
    for section, held in metrics.items():
        if section not in NO_MEASURES and isinstance(held, dict):
            found += _walk(section, held, metrics.get("intervals") or {}, None, None, source)
    return found


def csv_text(metrics: dict[str, Any]) -> str:
    """metrics.csv: a head and a row for each figure; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(figure) for figure in figures(metrics))
    return out.getvalue()


def _walk(
    path: str,
    block: dict[str, Any],
    intervals: dict[str, Any],
    chance: dict[str, Any] | None,
    n: int | None,
    source: str,
) -> Iterator[Figure]:
    """`chance` is what an enclosing block says of this one; a block's own "chance" goes before it."""
    own = block.get("chance", chance)
    n = block.get("n", block.get("images", n))
    source = block.get("source", source)
    for key, value in block.items():
        name = f"{path}.{key}"
        guess = own.get(key) if isinstance(own, dict) else block.get(f"chance_{key}", own)
        if key == "chance" or key.startswith("chance_"):
            continue
        if isinstance(value, dict):
            yield from _walk(name, value, intervals, guess if isinstance(guess, dict) else None, n, source)
        elif isinstance(value, float):
            low, high = intervals.get(name) or (None, None)
            guess = guess if isinstance(guess, int | float) else None
            if low is not None or guess is not None:
                yield Figure(name, value, low, high, guess, n, source)
