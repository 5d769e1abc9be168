"""Evaluation on held-out captioned images: the sections of metrics.json and the data of the report's pictures."""

from typing import Any

import torch

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation import sections
from hyco.pipeline.evaluation.config import AssessConfig
from hyco.pipeline.evaluation.coverage import Coverage, as_numbers
from hyco.pipeline.evaluation.embedded import embed, work
from hyco.pipeline.evaluation.held_out import HeldOut
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.document import MEASURED
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.report import pictures
from hyco.pipeline.evaluation.scenes import limit_regions
from hyco.pipeline.runtime.progress import Listener, Progress


def measure_captioned(
    metrics: dict[str, Any],
    embedder: Embedder,
    found: HeldOut,
    tree: Taxonomy | None,
    run: dict[str, Any],
    config: AssessConfig,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Fill MEASURED, "assessed" and "coverage" of the metrics; returns the fields of panels.Exhibits.

    With fewer than two images, or a fraction of those listed below config.min_coverage, every section is skipped
    with the reason.
    """
    scenes = limit_regions(found.scenes, config.max_parts, config.seed)
    metrics["coverage"] = as_numbers(found.coverage())
    if reason := _refusal(found.coverage()[0], config) or _too_few(found):
        return _skip(metrics, reason)
    boot = Bootstrap(config.draws, seed=config.seed)
    with Progress(work(scenes), "assess", "items", listener) as progress, torch.inference_mode():
        embedded = embed(embedder, scenes, progress.advance)
        coverage = found.coverage(embedded.undecodable)
        drawn, parts = (sum(len(scene.regions) for scene in some) for some in (scenes, found.scenes))
        if drawn < parts:
            coverage.append(Coverage("parts", drawn, listed=parts))
        metrics["coverage"] = as_numbers(coverage)
        if reason := _refusal(coverage[0], config):
            return _skip(metrics, reason)
        measured = sections.measure(metrics, embedder, embedded, tree, run, boot, config)
        shown = pictures.draw(embedder, embedded, tree, measured, config)
    metrics["assessed"] = {
        "source": found.name,
        "images": len(embedded.scenes),
        "captions": len(embedded.captions.text),
        "parts": len(embedded.crops),
        "undecodable": embedded.undecodable,
    }
    if columns := found.columns.model_dump(mode="json", exclude_defaults=True):
        metrics["assessed"]["columns"] = columns
    return shown


def _refusal(images: Coverage, config: AssessConfig) -> str | None:
    try:
        images.require(config.min_coverage)
    except ValueError as error:
        return str(error)
    return None


def _too_few(found: HeldOut) -> str | None:
    if len(found.scenes) >= 2:
        return None
    return (
        f"{len(found.scenes)} held-out images: give assess_source, or pack with a holdout so that the version has a "
        "val split"
    )


def _skip(metrics: dict[str, Any], reason: str) -> dict[str, Any]:
    for section in MEASURED:
        sections.keep(metrics, section, reason)
    return {}
