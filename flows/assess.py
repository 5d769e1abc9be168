"""Assess: measure a trained run and write its report."""

from pathlib import Path
from typing import Any, Literal

from prefect import flow

from hyco.flows.reporting import artifacts
from hyco.flows.runtime.concurrency import slot
from hyco.flows.runtime.progress import ProgressArtifact
from hyco.flows.runtime.runs import done, named
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.evaluate import evaluate
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.storage.home import Home


@flow(
    name="assess",
    flow_run_name=named(lambda given: f"assess {Path(given['run_dir']).name}"),
    persist_result=True,
    result_serializer="json",
)
def assess(
    run_dir: str,
    home: str = "var",
    version: str = "latest",
    assess_source: str | None = None,
    taxonomy: str | None = None,
    mining: dict[str, Any] | str | None = None,
    config: AssessConfig | None = None,
    suite: str | None = None,
    data: str | None = None,
    columns: Columns | None = None,
    protocol: Literal["hyco", "published"] = "hyco",
    published: str | None = None,
    prompts: str | None = None,
) -> dict[str, Any]:
    """Zero-shot, retrieval, hierarchy, parts and geometry of a run, each with its chance level.

    Args:
        run_dir: directory of a finished run.
        home: where Hyco stores everything.
        version: the dataset version that the run was trained on.
        assess_source: held-out captioned images; the version's val split when absent.
        taxonomy: taxonomy.json with the classes.
        mining: summary of mining for the report, or the reason why there is none.
        config: sizes, seeds, device.
        suite: published data sets to evaluate on as well, separated by commas.
        data: the directory of these data sets.
        columns: names of the columns of assess_source that are not the usual ones.
        protocol: how these data sets are asked: in Hyco's own way, or as in the papers.
        published: directory with a copy of the published prompts and class names.
        prompts: file with prompts and class names, in place of the others.
    """
    opened = Home(home)
    spec = EvaluationSpec(
        version=version,
        assess_source=assess_source,
        columns=columns or USUAL,
        taxonomy=taxonomy,
        config=config or AssessConfig(),
        suite=suite,
        data=data,
        protocol=protocol,
        published=published,
        prompts=prompts,
    )
    with slot(gpu_only=True):
        listener = ProgressArtifact("assess-progress", "assess")
        metrics = evaluate(run_dir, opened, spec, mining=mining, listener=listener)
    artifacts.assessed(metrics, run_dir, opened)
    return done(f"{run_dir}/report.html", metrics)
