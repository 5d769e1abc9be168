"""Artifacts of a flow run in the Prefect UI: mining, packing, training, evaluation, decisions and failures."""

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from hyco.flows.reporting import events as signals
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing.dataset_gate import Check
from hyco.pipeline.ui import artifact_pages as stories
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.shelf import Shelved
from hyco.storage.versions import Version


def _harmless(tell: Callable[..., None]) -> Callable[..., None]:
    """A page that cannot be made is only a warning in the log: the work that it describes is done."""

    @functools.wraps(tell)
    def told(*args: Any) -> None:
        try:
            tell(*args)
        except Exception as error:
            logging.getLogger(__name__).warning("no artifact, %s: %s", tell.__name__, error)

    return told


@_harmless
def mined(found: dict[str, Any], config: MineConfig, home: Home) -> None:
    """The phrases and boxes found in a source, their quality, and the failures by code."""
    text = stories.mining(config, home, found)
    create_markdown_artifact(text, key="mining", description=f"{config.source} with {config.grounder}")


@_harmless
def packed(version: Version, checks: list[Check], home: Home) -> None:
    """A dataset version, also a quarantined one: counts, the quality gate's verdict, pictures."""
    fit = all(check.passed for check in checks)
    create_markdown_artifact(
        stories.version(version, checks, home),
        key="version",
        description=f"dataset version {version.name}{'' if fit else ', in quarantine'}",
    )


@_harmless
def trained(result: dict[str, Any], folder: Folder, home: Home) -> None:
    """The summary of a training run, its last steps and its curves."""
    create_markdown_artifact(stories.training(result, folder, home), key="training", description=str(folder))


@_harmless
def assessed(metrics: dict[str, Any], run_dir: str, home: Home) -> None:
    """The metrics with their intervals and chance levels, and the champion's."""
    text = stories.assessment(metrics, Folder(run_dir), home, home.registry.champion())
    create_markdown_artifact(text, key="metrics", description=f"{run_dir}/report.html")


@_harmless
def failed_units(verb: str, failed: dict[str, Exception]) -> None:
    """The units that failed, by path, with their errors."""
    rows = [
        {"unit": path, "error": f"{type(error).__name__}: {error}",
         "to go on without it": f"hyco shelve {path} --reason REASON"}
        for path, error in failed.items()
    ]  # fmt: skip
    create_table_artifact(table=rows, key=f"{verb}-failed", description=f"{len(rows)} units failed to {verb}")


@_harmless
def shelved(entries: list[Shelved]) -> None:
    """The shards that are set aside, with the reasons."""
    description = f"{len(entries)} shards are set aside: hyco shelve SHARD --back returns one"
    create_table_artifact(table=[asdict(entry) for entry in entries], key="shelved", description=description)


def decided(row: Decision, home: Home) -> None:
    """A promotion, refusal or rollback: its event, its reason, each metric with the champion's, and the lineage."""
    signals.decided(row, home)
    text = stories.decision(row, home)
    create_markdown_artifact(text, key="decision", description=f"{row.kind} {row.model}")
    _lineage(home)


@_harmless
def _lineage(home: Home) -> None:
    rows = home.registry.rows()[::-1]
    create_markdown_artifact(
        stories.lineage(rows, home), key="lineage", description=f"{len(rows)} decisions of {home}"
    )
