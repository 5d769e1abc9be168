"""Assess: measure a trained run and write its report."""

from typing import Any

from prefect import flow

from flows.reporting import artifacts
from flows.runtime.concurrency import slot
from flows.runtime.progress import ProgressArtifact
from pipeline.evaluation import evaluate as assessing
from pipeline.evaluation.evaluate import AssessConfig
from storage.home import Home


@flow(name="assess", persist_result=True, result_serializer="json")
def assess(
    run_dir: str,
    home: str = "var",
    version: str = "latest",
    assess_source: str | None = None,
    taxonomy: str | None = None,
    mining: dict[str, Any] | str | None = None,
    config: AssessConfig | None = None,
) -> dict[str, Any]:
    """Zero-shot, retrieval, hierarchy, parts and geometry of a run, each beside its chance level.

    Args:
        run_dir: directory of a finished run.
        home: where everything Hyco makes is kept.
        version: the dataset version it was trained on.
        assess_source: held-out captioned images; the version's val split when absent.
        taxonomy: taxonomy.json with the classes.
        mining: summary of mining for the report, or why there is none.
        config: sizes, seeds, device.
    """
    opened = Home(home)
    with slot(gpu_only=True):
        metrics = assessing.assess(
            run_dir,
            opened,
            version,
            assess_source,
            taxonomy,
            mining,
            config=config,
            listener=ProgressArtifact("assess-progress", "assess"),
        )
    artifacts.assessed(metrics, run_dir, opened)
    return metrics
