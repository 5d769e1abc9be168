"""The suite in a run's metrics and report; and evaluation of models without a run."""

import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation import answers
from hyco.pipeline.evaluation.benchmarks.classification import mean_of_paper_sets
from hyco.pipeline.evaluation.benchmarks.protocol import Protocol
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.captioned import measure_captioned
from hyco.pipeline.evaluation.config import EvaluationSpec
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.document import finite, new, put, write_numbers
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.report import report
from hyco.pipeline.evaluation.report.compare_runs import read_beside, summary
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.runtime.progress import Listener
from hyco.pipeline.training.run_dir import current_commit


def add_suite(
    metrics: dict[str, Any],
    embedder: Embedder,
    spec: EvaluationSpec,
    listener: Listener | None = None,
) -> None:
    """Run the suite and add its metrics and reasons for gaps to the document.

    ValueError without a directory of data sets; otherwise as `run_suite`.
    """
    config = spec.config
    if spec.suite is None or spec.data is None:
        raise ValueError(f"the suite {spec.suite!r} needs --data: the directory of your data sets")
    protocol = Protocol.load(spec.protocol, spec.published, spec.prompts)
    found = run_suite(
        embedder,
        spec.suite,
        spec.data,
        Bootstrap(config.draws, seed=config.seed),
        limit=config.suite_images,
        seed=config.seed,
        least=config.min_coverage,
        heads=config.probe_heads,
        prompt_sensitivity=config.prompt_sensitivity,
        protocol=protocol,
        listener=listener,
    )
    if mean := mean_of_paper_sets(found):
        found["suite"]["paper"] = mean.numbers | ({"protocol": protocol.way} if protocol.published else {})
        found["intervals"] |= {f"suite.paper.{key}": list(span) for key, span in mean.intervals.items()}
    spans = {name.removeprefix("suite."): span for name, span in found["intervals"].items()}
    put(metrics, "suite", MetricResult(found["suite"], spans))
    metrics["skipped"] |= found["skipped"]


def evaluate_model(
    folder: str | Path, spec: EvaluationSpec, *, listener: Listener | None = None
) -> dict[str, Any]:
    """Evaluate a model directory (exported or imported) without a run; metrics and report are written into it.

    Args:
        folder: model.safetensors, config.json, tokenizer.json.
        spec: an assess_source, a suite or both; a model directory has no version with a val split.
        listener: as in `evaluate`.

    Raises:
        FileNotFoundError: no such source, taxonomy or directory of data sets.
        ValueError: neither suite nor source, labels that are not leaves, no such data set.
    """
    began = time.monotonic()
    folder, config = Path(folder), spec.config
    if spec.suite is None and spec.assess_source is None:
        raise ValueError(f"no data to evaluate {folder} on: give a suite with its data, or an assess_source")
    tree = Taxonomy.load(spec.taxonomy) if spec.taxonomy else None
    others = read_beside(config.beside)
    source = spec.assess_source
    found = None if source is None else of_source(source, config.max_images, spec.columns)
    embedder = Embedder.load(folder, config.device, config.batch_size)
    metrics = new(folder.resolve().name)
    shown: dict[str, Any] = {}
    if spec.suite is not None:
        add_suite(metrics, embedder, spec, listener)
    if found is not None:
        shown = measure_captioned(metrics, embedder, found, tree, {}, config, listener)
    metrics["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    metrics["commit"] = current_commit()
    metrics["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    metrics["seconds"] = round(time.monotonic() - began, 2)
    metrics = finite(metrics)
    if others:
        metrics["beside"] = [summary(metrics, folder), *others]
    write_numbers(folder, metrics)
    answers.write(folder, shown.get("answers"))
    asked = ", ".join(str(place) for place in (spec.assess_source, spec.data) if place)
    origin = [("Model", str(folder)), ("Assessed on", asked), ("Commit", str(metrics["commit"] or ""))]
    page = Exhibits(
        images=[scene.key for scene in found.scenes] if found else [],
        config={"assess": config.model_dump(mode="json")},
        lineage=origin,
        draws=config.draws,
        **shown,
    )
    report.write(folder / "report.html", metrics, page)
    return metrics
