"""Comparison with other evaluated runs: their metrics in metrics.json, and a table of the report with a column each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyco.pipeline.evaluation.metrics.catalog import find
from hyco.pipeline.evaluation.metrics.document import context, measured, read_metrics
from hyco.pipeline.evaluation.report.charts import number
from hyco.pipeline.evaluation.report.tables import interval_text, title, value_text
from hyco.storage.folder import Folder


def read_beside(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The entries of runs for the comparison, from their metrics.json and config.json.

    Keys: run, recipe, images (kind of the image tower), samples_seen, seconds of training, source, numbers
    {name: {value, low, high, chance, n, gallery}}.

    Raises:
        FileNotFoundError: a run that has not been assessed.
    """
    return [_read(Folder.of(run)) for run in runs]


def _read(folder: Folder) -> dict[str, Any]:
    path = folder.fetch("metrics.json", "config.json")
    if not folder.exists("metrics.json"):
        raise FileNotFoundError(
            f"{folder} has no metrics.json to compare with: give the directory of an assessed run"
        )
    return summary(read_metrics(path / "metrics.json"), path)


def summary(metrics: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry of one run, from its metrics and its config.json."""
    path, train = folder / "config.json", metrics.get("train") or {}
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    recipe = config.get("recipe") or {}
    return {
        "run": metrics.get("run") or folder.name,
        "recipe": recipe.get("name"),
        "images": ((recipe.get("model") or {}).get("vision") or {}).get("kind", "vit"),
        "samples_seen": train.get("samples_seen"),
        "seconds": train.get("seconds"),
        "source": (metrics.get("assessed") or {}).get("source"),
        "numbers": {
            name: held
            | {"gallery": context(metrics, name)["gallery"], "protocol": protocol_of(metrics, name)}
            for name, _, held in measured(metrics)
        },
    }


def beside_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Note, columns and rows for the template; None without other runs.

    Rows are the numbers that this run and at least one other have; the note states the number of other metrics. The
    best value of a row is marked, but not where the runs were evaluated on different numbers of images (fewer images
    are easier) or by another protocol.
    """
    others = metrics.get("beside")
    if not others:
        return None
    own = others[0]
    runs = [own, *others[1:]]
    rows = []
    for name in own["numbers"]:
        cells = [run["numbers"].get(name) for run in runs]
        if sum(cell is not None for cell in cells) > 1:
            rows.append(_row(name, cells))
    facts = []
    for label, key, told in (
        ("recipe", "recipe", str),
        ("image tower", "images", str),
        ("samples seen in training", "samples_seen", lambda n: f"{n:,}"),
        ("seconds of training", "seconds", number),
    ):
        values = [run.get(key) for run in runs]
        facts.append({"name": label, "cells": ["" if v is None else told(v) for v in values]})
    sources = {run["source"] for run in runs}
    notes = ["the best value of a row is bold"]
    if any(sources):
        notes.append(f"all on {own['source']}" if len(sources) == 1 else "NOT on the same held-out images")
    if any(row["unequal"] for row in rows):
        notes.append(
            "rows with n were measured on different numbers of images or by another protocol: no best value is marked"
        )
    if alone := len(set().union(*(run["numbers"] for run in runs))) - len(rows):
        notes.append(f"{alone} metrics that only one run has are left out")
    note = "; ".join(notes)
    return {"note": note, "columns": [run["run"] for run in runs], "facts": facts, "rows": rows}


def _row(name: str, cells: list[dict[str, Any] | None]) -> dict[str, Any]:
    metric = find(name)
    assert metric is not None, "summary takes only what the catalog knows"
    values = [cell["value"] for cell in cells if cell]
    unequal = any(
        _differ([cell.get(size) for cell in cells if cell]) for size in ("n", "gallery", "protocol")
    )
    best = None
    if not unequal and metric.higher_is_better is not None:
        best = max(values) if metric.higher_is_better else min(values)
    shown = []
    for cell in cells:
        if cell is None:
            shown.append({"value": "", "interval": "", "best": False})
            continue
        interval = interval_text(metric, cell)
        if unequal and cell["n"]:
            interval += f" n = {cell['n']:,}"
            interval += f", among {cell['gallery']:,}" if cell.get("gallery") else ""
            interval += ", published protocol" if cell.get("protocol") == "published" else ""
        value = value_text(metric, cell["value"])
        shown.append({"value": value, "interval": interval, "best": cell["value"] == best})
    note = "lower is better" if metric.higher_is_better is False else ""
    return {"name": title(name, metric), "note": note, "cells": shown, "unequal": unequal}


def protocol_of(metrics: dict[str, Any], name: str) -> str | None:
    """How the data set of a metric of the suite was asked; None for other metrics."""
    section, *steps = name.split(".")
    block = (metrics.get("suite") or {}).get(steps[0]) if section == "suite" else None
    return block.get("protocol", "hyco") if isinstance(block, dict) else None


def _differ(sizes: Sequence[int | str | None]) -> bool:
    """Whether the known values differ; older metrics do not record their gallery."""
    return len({size for size in sizes if size is not None}) > 1
