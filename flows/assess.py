"""Assess: measure a trained run and write its report."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.common import ProgressArtifact
from pipeline import assess as assessing
from pipeline.assess import AssessConfig
from pipeline.assess.table import markdown_table


@flow(name="assess", persist_result=True, result_serializer="json")
def assess(
    run_dir: str,
    home: str = "var",
    version: str = "latest",
    assess_source: str | None = None,
    taxonomy: str | None = None,
    mining: dict[str, Any] | None = None,
    config: AssessConfig | None = None,
) -> dict[str, Any]:
    """Zero-shot, retrieval, hierarchy, parts and geometry of a run, each beside its chance level.

    Args:
        run_dir: directory of a finished run.
        home: where everything Hyco makes is kept.
        version: the dataset version it was trained on.
        assess_source: held-out captioned images; the version's val split when absent.
        taxonomy: taxonomy.json with the classes.
        mining: summary of mining for the report.
        config: sizes, seeds, device.
    """
    metrics = assessing.assess(
        run_dir,
        home,
        version,
        assess_source,
        taxonomy,
        mining,
        config=config,
        listener=ProgressArtifact("assess-progress", "assess"),
    )
    create_markdown_artifact(
        markdown_table(metrics), key="metrics", description=str(Path(run_dir) / "report.html")
    )
    return metrics
