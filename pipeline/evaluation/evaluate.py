"""Evaluation of a trained run: zero-shot, retrieval, hierarchy, parts, geometry; metrics.json and report.html.

Everything is ranked by the model's score. Every metric has its chance level, and an interval where one can be computed;
a metric that cannot be measured is null, with the reason under "skipped".
"""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation import answers, sections
from hyco.pipeline.evaluation.benchmarks.standalone import add_suite, evaluate_model
from hyco.pipeline.evaluation.captioned import measure_captioned
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.held_out import held_out, training_samples
from hyco.pipeline.evaluation.metrics.document import MEASURED, finite, new, write_numbers
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.provenance import lineage, provenance
from hyco.pipeline.evaluation.report import examples as exhibits
from hyco.pipeline.evaluation.report import report
from hyco.pipeline.evaluation.report.compare_runs import read_beside, summary
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.runtime.progress import Listener
from hyco.pipeline.training.run_dir import RunDir
from hyco.pipeline.training.step_log import read_log
from hyco.storage.folder import Folder
from hyco.storage.home import Home

SHOWN_OF = 400  # training images of which the report shows some

__all__ = ["AssessConfig", "EvaluationSpec", "evaluate", "evaluate_model"]


def evaluate(
    run_dir: RunDir,
    home: Home,
    spec: EvaluationSpec,
    *,
    mining: dict[str, Any] | str | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Evaluate a run, write metrics.json, metrics.csv and report.html into it, and return the metrics.

    Args:
        run_dir: directory or URL of a finished run (model/, config.json, log.jsonl, train.json).
        home: where the dataset versions are.
        spec: data and options of the evaluation.
        mining: summary of mining, copied into the metrics; or the reason why there is none.
        listener: gets the state of pipeline.runtime.progress.Progress every few seconds.

    Raises:
        FileNotFoundError: no model in the run, no such source, taxonomy or directory of data sets.
        ValueError: no such version, labels that are not leaves, embeddings that are not finite, no such data set.
    """
    began = time.monotonic()
    config, folder = spec.config, Folder.of(run_dir)
    run_dir = folder.fetch("model", "config.json", "train.json", "log.jsonl")
    store, dataset = home.store, home.versions.load(spec.version)
    tree = Taxonomy.load(spec.taxonomy) if spec.taxonomy else None
    embedder = Embedder.load(run_dir / "model", config.device, config.batch_size)
    run = _json(run_dir / "config.json") or {}
    others = read_beside(config.beside)
    found = held_out(home, dataset, spec.assess_source, config.max_images, spec.columns)
    metrics = new(run_dir.name, "mining", "train", *MEASURED)
    if spec.suite:
        add_suite(metrics, embedder, spec, listener)
    sections.keep(metrics, "mining", mining or "no summary of mining was given")
    trained = _json(run_dir / "train.json")
    if trained and (images := dataset.counts.get("train_images")):
        trained["images"] = images
    sections.keep(metrics, "train", trained or "the run has no train.json: training has not ended")
    shown = measure_captioned(metrics, embedder, found, tree, run, config, listener)
    if spec.taxonomy and "assessed" in metrics:
        metrics["assessed"]["taxonomy"] = spec.taxonomy
    metrics |= provenance(run, dataset)
    metrics["seconds"] = round(time.monotonic() - began, 2)
    metrics = finite(metrics)
    if others:
        metrics["beside"] = [summary(metrics, run_dir), *others]
    write_numbers(run_dir, metrics)
    answers.write(run_dir, shown.get("answers"))
    images = [scene.key for scene in found.scenes]
    first = list(islice(training_samples(store, dataset, "train"), SHOWN_OF))
    samples = exhibits.mined_samples(first, config.samples, config.picture_side)
    page = Exhibits(
        samples=samples,
        log=read_log(run_dir),
        config={"run": run, "assess": config.model_dump(mode="json")},
        lineage=lineage(run, dataset, metrics),
        draws=config.draws,
        images=images + [sample.key for sample in first],
        **shown,
    )
    report.write(run_dir / "report.html", metrics, page)
    if shown.get("answers") is None:
        folder.remove(answers.FILE)
    folder.send("report.html", "metrics.csv", "metrics.json", answers.FILE)
    return metrics


def _json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of the run, None without the file; ValueError when it is incomplete."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): train the run again") from None
