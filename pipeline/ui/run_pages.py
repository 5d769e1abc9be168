"""Content of the pages of runs and decisions: numbers, curves, two runs beside each other, champions over time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyco.pipeline.evaluation import answers
from hyco.pipeline.evaluation.held_out import pictures_of
from hyco.pipeline.evaluation.metrics.document import read_metrics
from hyco.pipeline.evaluation.report.charts import line_chart, number, share
from hyco.pipeline.evaluation.report.compare_runs import beside_table, summary
from hyco.pipeline.evaluation.report.curves import MINUS, line
from hyco.pipeline.evaluation.report.page import duration
from hyco.pipeline.evaluation.report.tables import tables
from hyco.pipeline.training.step_log import flat, read_log
from hyco.pipeline.ui.status import run_state
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError)
SHOWN = 40  # images that two runs answered differently
CURVES = (  # key of the step log, title, whether the axis begins at 0
    ("loss", "Loss", True),
    ("temperature", "Temperature", True),
    ("curvature", f"Curvature {MINUS}c", False),
    ("radius/image/mean", "Mean radius of the images", True),
    ("radius/text/mean", "Mean radius of the captions", True),
    ("samples_per_second", "Samples per second", True),
)


def run_page(run: Folder, rows: Sequence[Decision], others: Sequence[str]) -> dict[str, Any]:
    """The content of the page of a run.

    Args:
        run: its folder.
        rows: the registry's log.
        others: names of the other runs, to compare with.
    """
    lost: dict[str, str] = {}
    folder = run.fetch(*READ)
    config = _object(folder / "config.json", lost)
    trained = _object(folder / "train.json", lost)
    try:
        metrics = read_metrics(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        measured, skipped = tables(metrics), dict(metrics.get("skipped") or {})
    except UNREADABLE as error:
        lost["metrics.json"], metrics, measured, skipped = str(error), {}, [], {}
    return {
        "name": folder.name,
        "state": run_state(run),
        "version": str(config.get("version", "")),
        "facts": _facts(config, trained, metrics),
        "tables": measured,
        "skipped": skipped,
        "files": [one for one in FILES if run.exists(one)],
        "log": (folder / "log.jsonl").is_file(),
        "decisions": [row for row in rows if Path(row.run).name == folder.name],
        "others": [name for name in others if name != folder.name],
        "lost": lost,
    }


READ = ("config.json", "train.json", "metrics.json", "log.jsonl", answers.FILE)
FILES = ("report.html", "metrics.csv", "metrics.json", "answers.json", "train.json")


def comparison(one: Folder, other: Folder) -> dict[str, Any]:
    """The content of the page that compares two runs: numbers, configuration, curves, errors that changed."""
    lost: dict[str, str] = {}
    first, second = one.fetch(*READ), other.fetch(*READ)
    entries = []
    for folder in (first, second):
        try:
            entries.append(summary(read_metrics(folder / "metrics.json"), folder))
        except FileNotFoundError:
            lost[folder.name] = "it has not been evaluated: hyco assess"
        except UNREADABLE as error:
            lost[folder.name] = str(error)
    table = beside_table({"beside": entries}) if len(entries) == 2 else None
    logs = [_log(folder) for folder in (first, second)]
    return {
        "names": (first.name, second.name),
        "lost": lost,
        "table": table,
        "settings": _differences(first, second),
        "charts": list(_charts(logs, (first.name, second.name))),
        "errors": _errors(first, second),
    }


def changed_pictures(one: Folder, other: Folder, home: Home) -> dict[str, bytes]:
    """The images that the comparison of two runs shows, by key, as far as they can still be read.

    ValueError when what was evaluated is not recorded, or cannot be read from here.
    """
    first, second = one.fetch(*READ), other.fetch(*READ)
    changed = _errors(first, second)
    lists = (changed or {}).get("lists", ())
    keys = {row[0] for _, rows in lists for row in rows}
    try:
        assessed = read_metrics(second / "metrics.json").get("assessed")
        return pictures_of(home, assessed, keys) if assessed and keys else {}
    except UNREADABLE as error:
        raise ValueError(
            f"the images that run {second.name} was evaluated on cannot be read: {error}"
        ) from None


def decision_page(row: Decision, flag: str | None) -> dict[str, Any]:
    """The content of the page of a decision: each metric beside the champion's, and what the gate could have seen."""
    verdict = _text_object(row.verdict)
    rows = [
        {
            "metric": one["metric"],
            "cells": [
                _shown(one.get("challenger")),
                _shown(one.get("champion")),
                " to ".join(_shown(end) for end in one["interval"]) if one.get("interval") else "",
                _shown(one.get("chance")),
                _shown(one.get("sees")),
                "" if one.get("n") is None else f"{one['n']:,}",
            ],
            "verdict": _judged(one),
            "bad": bool(one.get("worse")),
        }
        for one in verdict.get("comparisons") or ()
    ]
    return {"row": row, "rows": rows, "exam": str(verdict.get("exam") or ""), "flag": flag}


def trained_on(version: str, runs: Sequence[Folder]) -> list[dict[str, Any]]:
    """The runs of a dataset version with the numbers that a report begins with."""
    found = []
    for run in runs:
        folder = run.fetch("config.json", "metrics.json")
        config = _object(folder / "config.json", {})
        if config.get("version") == version:
            found.append(
                {
                    "name": folder.name,
                    "recipe": (config.get("recipe") or {}).get("name", ""),
                    "scores": scores(run),
                }
            )
    return found


HEADLINES = {"zero_shot.top1": "zero-shot top-1", "retrieval.text_to_image.r5": "caption to image R@5",
             "hierarchy.tie": "tree distance"}  # fmt: skip


def scores(run: Folder) -> list[str]:
    """The headline numbers of an evaluated run, such as "zero-shot top-1 63.2 %"; none where it was not evaluated."""
    try:
        held = read_metrics(run.fetch("metrics.json") / "metrics.json")["metrics"]
        told = [(label, name, held[name]["value"]) for name, label in HEADLINES.items() if name in held]
        return [f"{label} {number(v) if name == 'hierarchy.tie' else share(v)}" for label, name, v in told]
    except UNREADABLE:
        return []


def _judged(one: dict[str, Any]) -> str:
    """What the gate made of one metric."""
    if one.get("worse"):
        return "worse"
    if one.get("champion") is None:
        return ""
    sees, chance, n = one.get("sees"), one.get("chance"), one.get("n")
    if sees is not None and chance is not None and sees >= abs(one["champion"] - chance):
        return f"cannot tell: n = {n}"
    return "no worse"


def _facts(config: dict[str, Any], trained: dict[str, Any], metrics: dict[str, Any]) -> dict[str, str]:
    """What was trained, on what, for how long, by name; unknown facts are left out."""
    recipe = config.get("recipe") or {}
    train = metrics.get("train") or trained
    seen, images, seconds = (train.get(name) for name in ("samples_seen", "images", "seconds"))
    passes = f", {seen / images:.1f} passes over {images:,} images" if seen and images else ""
    facts = {
        "recipe": recipe.get("name"),
        "started from": (recipe.get("start") or {}).get("checkpoint"),
        "steps": f"{train['steps']:,}, of {recipe.get('batch_size')} samples" if train.get("steps") else None,
        "samples seen": f"{seen:,}{passes}" if seen else None,
        "loss": f"{train['loss_first']:.3f} to {train['loss_last']:.3f}" if train.get("loss_last") else None,
        "duration": duration(seconds) if seconds else None,
        "machine": train.get("machine") or train.get("device"),
        "precision": train.get("precision"),
        "evaluated on": (metrics.get("assessed") or {}).get("source"),
        "commit": (config.get("environment") or {}).get("commit"),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _differences(first: Path, second: Path) -> list[tuple[str, str, str]]:
    """The options of training in which two runs differ: (name, first, second)."""
    mine, theirs = (_leaves(_object(folder / "config.json", {})) for folder in (first, second))
    names = sorted(name for name in {*mine, *theirs} if not name.startswith(("environment.", "home")))
    both = [(name, str(mine.get(name, "")), str(theirs.get(name, ""))) for name in names]
    return [row for row in both if row[1] != row[2]]


def _charts(logs: Sequence[Any], names: tuple[str, str]) -> Any:
    """The curves that both or one of two runs have, in one chart each."""
    for key, title, zero in CURVES:
        lines = [
            line(log, key, name, tone, dashed)
            for log, name, tone, dashed in zip(logs, names, ("image", "text"), (False, True), strict=True)
        ]
        lines = [one for one in lines if len(one.x) > 1]
        label = f"{title} over training steps: " + ", ".join(
            f"{one.name} from {number(one.y[0])} to {number(one.y[-1])}" for one in lines
        )
        if chart := line_chart(lines, label, zero=zero):
            legend = [
                {"name": one.name, "tone": one.tone, "dashed": one.dashed, "value": number(one.y[-1])}
                for one in lines
            ]
            yield {"name": title, "chart": chart, "legend": legend}


def _errors(first: Path, second: Path) -> dict[str, Any] | None:
    """Images that one of two runs names right and the other does not; None without answers of both."""
    try:
        mine, theirs = answers.read(first), answers.read(second)
    except ValueError as error:
        return {"lost": str(error)}
    if mine is None or theirs is None:
        return None
    found = answers.changed(mine, theirs)
    return {
        "both": found.both,
        "counts": (len(found.fixed), len(found.broken)),
        "lists": (
            (f"Right only in {second.name}", found.fixed[:SHOWN]),
            (f"Right only in {first.name}", found.broken[:SHOWN]),
        ),
        "classes": [
            (name, f"{n:,}", share(a / n), share(b / n), f"{b - a:+d}")
            for name, n, a, b in found.classes
            if a != b
        ],
    }


def _log(folder: Path) -> list[dict[str, Any]]:
    try:
        return [flat(row) for row in read_log(folder)]
    except UNREADABLE:
        return []


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _leaves(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _object(path: Path, lost: dict[str, str]) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none, or where it cannot be read, with the reason in `lost`."""
    if not path.is_file():
        return {}
    try:
        return checked(json.loads(path.read_bytes()))
    except UNREADABLE as error:
        lost[path.name] = str(error)
        return {}


def _text_object(text: str) -> dict[str, Any]:
    try:
        return checked(json.loads(text))
    except ValueError:
        return {}


def checked(held: Any) -> dict[str, Any]:
    """Return an object of a JSON file; ValueError for anything else."""
    if not isinstance(held, dict):
        raise ValueError(f"it holds a {type(held).__name__}, not an object")
    return held
