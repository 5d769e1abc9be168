"""Provenance of a result: versions, commit, and the chain from source to run."""

import platform
from datetime import UTC, datetime
from typing import Any

import torch

from hyco.pipeline.training.run_dir import current_commit
from hyco.storage.versions import Version


def provenance(run: dict[str, Any], dataset: Version) -> dict[str, Any]:
    """versions, commit and created of metrics.json."""
    return {
        "versions": {
            "dataset": dataset.name,
            "parent": dataset.parent,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "commit": run.get("environment", {}).get("commit") or current_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def lineage(run: dict[str, Any], dataset: Version, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """The chain from source to run, as (name, value) for the report; unknown values are left out."""
    counts = ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in dataset.counts.items() if value
    )
    facts = [
        ("Source", dataset.source),
        ("Found by", dataset.grounder),
        ("Detector digest", ", ".join(dataset.detectors)),
        *((f"{stage.capitalize()} digest", str(value)) for stage, value in dataset.digests.items()),
        ("Dataset version", f"{dataset.name}, {counts}"),
        ("Evaluation images left out of training", _excluded(dataset)),
        ("Parent version", dataset.parent or ""),
        ("Recipe", str(run.get("recipe", {}).get("name") or "")),
        ("Run", metrics["run"]),
        ("Commit", str(metrics["commit"] or "")),
        ("Assessed on", str((metrics.get("assessed") or {}).get("source") or "")),
        ("Software", f"Python {metrics['versions']['python']}, torch {metrics['versions']['torch']}"),
    ]
    return [(name, value) for name, value in facts if value]


def _excluded(dataset: Version) -> str:
    """What the version was compared with, so that no image of an evaluation is trained on."""
    pack = dataset.config.get("pack") or {}
    counts = dataset.counts
    if not pack.get("exclude"):
        return "not compared (pack.exclude)"
    how = (
        "equal bytes"
        if pack.get("near_duplicates") is None
        else f"up to {pack['near_duplicates']} of 255 bits"
    )
    return f"{counts.get('contaminated', 0):,}, compared with {', '.join(pack['exclude'])} by {how}"
