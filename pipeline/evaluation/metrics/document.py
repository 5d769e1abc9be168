"""metrics.json, schema 2: "metrics" has {value, low, high, chance, n} of each metric by its dotted name.

The other sections describe the data of the metrics: counts, sources, coverage. The older schema 1 had the numbers
inside the sections, chance levels in blocks of their own and the intervals in a third place: `upgrade` reads it.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyco.pipeline.evaluation.coverage import complete
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.catalog import WAYS, Metric, find
from hyco.storage.store import Store

SCHEMA = 2
COLUMNS: tuple[str, ...] = ("name", "value", "low", "high", "chance", "n", "source", "of", "gallery")
MEASURED = (
    "zero_shot",
    "retrieval",
    "hierarchy",
    "parts",
    "boxes",
    "compositional",
    "traversal",
    "geometry",
    "attribution",
)
CLASSIFIED = ("classification", "ood", "open_set", "attack")  # of `hyco fit`


def new(run: str, *sections: str) -> dict[str, Any]:
    """The content of a metrics.json before anything is measured: the sections are null."""
    return {"schema": SCHEMA, "run": run, "metrics": {}, **dict.fromkeys(sections), "skipped": {}}


def put(metrics: dict[str, Any], section: str, found: MetricResult) -> None:
    """Add the result of a protocol: its metrics to "metrics", other facts to its section."""
    spans = {f"{section}.{key}": span for key, span in found.intervals.items()}
    assert all(map(find, spans)), f"no row in the catalog for some of {', '.join(spans)}"
    metrics[section], numbers = split(section, found.numbers, spans)
    metrics["metrics"] |= numbers


def split(
    name: str,
    block: dict[str, Any],
    intervals: dict[str, Any],
    chance: dict[str, Any] | None = None,
    n: int | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Divide a block of numbers with chance levels inside into (facts, metrics by dotted name).

    Args:
        name: the dotted name of the block.
        block: its own "chance" and "n" (or "images") take precedence over those of the enclosing block.
        intervals: (low, high) by dotted name.
        chance: chance levels for this block in the enclosing block.
        n: number of resampled units of the enclosing block's intervals.
    """
    own = block.get("chance", chance)
    own_n = block.get("n", block.get("images"))
    n = own_n if isinstance(own_n, int) else n  # the coverage of a set has a block named "images"
    facts: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for key, value in block.items():
        path = f"{name}.{key}"
        if key == "chance" or key.startswith("chance_"):
            continue
        guess = own.get(key) if isinstance(own, dict) else block.get(f"chance_{key}", own)
        if isinstance(value, dict):
            facts[key], inner = split(path, value, intervals, guess if isinstance(guess, dict) else None, n)
            found |= inner
        elif isinstance(value, float) and find(path):
            low, high = intervals.get(path) or (None, None)
            found[path] = {"value": value, "low": low, "high": high, "chance": guess, "n": n}
        else:
            facts[key] = value
    return facts, found


def upgrade(metrics: dict[str, Any]) -> dict[str, Any]:
    """The same content in schema 2; ValueError when it was written by a newer Hyco."""
    schema = metrics.get("schema", 1)
    if schema > SCHEMA:
        raise ValueError(
            f"metrics of schema {schema}, this Hyco reads up to {SCHEMA}: update it, or assess again"
        )
    if schema == SCHEMA:
        return metrics
    rest = {key: value for key, value in metrics.items() if key != "intervals"}
    found: dict[str, Any] = {"schema": SCHEMA, "metrics": {}, "skipped": {}} | rest
    for section in (*MEASURED, "suite"):
        if isinstance(block := metrics.get(section), dict):
            found[section], numbers = split(section, block, metrics.get("intervals") or {})
            found["metrics"] |= numbers
    chance = found.pop("chance", {})  # of classifiers, by dotted name
    for section in CLASSIFIED:
        if isinstance(block := metrics.get(section), dict):
            found[section], numbers = split(section, block, metrics.get("intervals") or {})
            for name, held in numbers.items():
                held["chance"] = chance.get(name)
            found["metrics"] |= numbers
    for section in ("retrieval", "parts"):  # older files have the size of the gallery only in the section
        block = found.get(section) or {}
        for way, (_, gallery) in WAYS.items():
            ranked = "crops" if gallery == "parts" else gallery
            if way in block and ranked in block:
                block[way].setdefault("gallery", block[ranked])
    if runs := metrics.get("beside"):
        found["beside"] = [run | {"numbers": _with_ends(run["numbers"])} for run in runs]
    return found


def _with_ends(numbers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Numbers of a run for comparison, with "interval" as "low" and "high"."""
    found = {}
    for name, held in numbers.items():
        rest = {key: value for key, value in held.items() if key != "interval"}
        low, high = held.get("interval") or (None, None)
        found[name] = {"low": low, "high": high, "chance": None, "n": None} | rest
    return found


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json in schema 2; ValueError when it is incomplete or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{path} is not JSON ({error}): assess the run again") from None
    try:
        return upgrade(found)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no document of metrics ({error!r}): assess the run again") from None


def measured(metrics: dict[str, Any], section: str = "") -> Iterator[tuple[str, Metric, dict[str, Any]]]:
    """(name, row of the catalog, {value, low, high, chance, n}) of each metric, of one section if it is named."""
    for name, held in (metrics.get("metrics") or {}).items():
        if name.startswith(section and f"{section}.") and held["value"] is not None and (row := find(name)):
            yield name, row, held


def context(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """`source`, `of` and `gallery` of a metric, from the facts of its block or the nearest enclosing one.

    `of` is the number of images of its set, if not all were used; `gallery` the number of ranked items.
    """
    whole = {"source": (metrics.get("assessed") or {}).get("source"), "coverage": metrics.get("coverage")}
    blocks = [] if name.startswith("suite.") else [whole]
    block: Any = metrics
    for step in name.split(".")[:-1]:
        block = block.get(step) if isinstance(block, dict) else None
        blocks.append(block if isinstance(block, dict) else {})
    blocks.reverse()
    source, gallery = (next((b[key] for b in blocks if b.get(key)), None) for key in ("source", "gallery"))
    return {"source": source or "", "of": next(filter(None, map(_of, blocks)), None), "gallery": gallery}


def _of(block: dict[str, Any]) -> int | None:
    """The number of images of a block (or of sets, for a mean over sets), where fewer were used."""
    counts = next(iter((block.get("coverage") or {}).values()), None)
    return None if not counts or complete(counts) else counts.get("listed", counts["of"])


def write_numbers(folder: Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json and metrics.csv, each atomically."""
    store = Store(folder)
    store.replace("metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    store.replace("metrics.csv", csv_text(metrics).encode())


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(metrics: dict[str, Any]) -> str:
    """metrics.csv: a header and one row per metric; unknown values are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, _, held in measured(metrics):
        writer.writerow({"name": name} | held | context(metrics, name))
    return out.getvalue()
