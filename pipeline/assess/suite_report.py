"""The suite in a run's metrics and report; and models that come without a run, measured by the suite alone."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.assess import report
from pipeline.assess.config import AssessConfig
from pipeline.assess.figures import csv_text
from pipeline.assess.labelled_sets import mean_of_paper_sets
from pipeline.assess.outcome import Bootstrap
from pipeline.assess.panels import Exhibits
from pipeline.assess.suite import run_suite
from pipeline.embedder import Embedder
from pipeline.progress import Listener
from pipeline.runs import current_commit
from storage.store import Store


def add_suite(
    metrics: dict[str, Any],
    embedder: Embedder,
    names: str,
    data: str | Path | None,
    config: AssessConfig,
    listener: Listener | None = None,
) -> None:
    """Measure the suite and put its numbers, intervals and gaps where those of the sections are.

    ValueError without a directory of data sets; otherwise as `run_suite`.
    """
    if data is None:
        raise ValueError(f"the suite {names!r} needs --data: the directory your data sets lie in")
    found = run_suite(
        embedder,
        names,
        data,
        Bootstrap(config.draws, seed=config.seed),
        limit=config.suite_images,
        seed=config.seed,
        heads=config.probe_heads,
        listener=listener,
    )
    if mean := mean_of_paper_sets(found):
        found["suite"]["paper"] = mean.numbers
        found["intervals"] |= {f"suite.paper.{key}": list(span) for key, span in mean.intervals.items()}
    metrics["suite"] = found["suite"]
    metrics["intervals"] |= found["intervals"]
    metrics["skipped"] |= found["skipped"]


def write_numbers(folder: Path, metrics: dict[str, Any]) -> None:
    """metrics.json and metrics.csv, each there whole or not at all."""
    store = Store(folder)
    store.replace("metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    store.replace("metrics.csv", csv_text(metrics).encode())


def assess_model(
    folder: str | Path,
    names: str,
    data: str | Path,
    *,
    config: AssessConfig | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Measure a model directory (exported or imported) on the suite alone; metrics and report go into it."""
    folder, config = Path(folder), config or AssessConfig()
    embedder = Embedder.load(folder, config.device, config.batch_size)
    metrics: dict[str, Any] = {"run": folder.resolve().name, "intervals": {}, "skipped": {}}
    add_suite(metrics, embedder, names, data, config, listener)
    metrics["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    metrics["commit"] = current_commit()
    metrics["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_numbers(folder, metrics)
    origin = [("Model", str(folder)), ("Assessed on", str(data)), ("Commit", str(metrics["commit"] or ""))]
    shown = Exhibits(config={"assess": config.model_dump(mode="json")}, lineage=origin, draws=config.draws)
    report.write(folder / "report.html", metrics, shown)
    return metrics
