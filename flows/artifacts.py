"""What a flow run leaves in the Prefect UI: tables of what was mined, packed, trained, decided and what failed."""

import json
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pipeline.assess.table import markdown_table
from pipeline.mine import MineConfig
from storage.registry import Row
from storage.versions import Version


def mined(found: dict[str, Any], config: MineConfig) -> None:
    """The counts of a source, and its failures by code."""
    rows = [
        {"what": name, "count": str(value)} for name, value in found.items() if not isinstance(value, dict)
    ]
    rows += [{"what": f"failures: {code}", "count": str(n)} for code, n in found["failures_by_code"].items()]
    create_table_artifact(table=rows, key="mining", description=f"{config.source} with {config.grounder}")


def packed(version: Version) -> None:
    """The counts of a dataset version."""
    rows = [{"what": name, "count": str(count)} for name, count in version.counts.items()]
    create_table_artifact(table=rows, key="version", description=f"dataset version {version.name}")


def trained(result: dict[str, Any], folder: Path) -> None:
    """The numbers of a training run."""
    rows = [
        {"what": key, "value": str(value)} for key, value in result.items() if not isinstance(value, dict)
    ]
    create_table_artifact(table=rows, key="training", description=str(folder))


def assessed(metrics: dict[str, Any], run_dir: str) -> None:
    """The metrics with their intervals and chance levels."""
    create_markdown_artifact(
        markdown_table(metrics), key="metrics", description=str(Path(run_dir) / "report.html")
    )


def failed_units(verb: str, failed: dict[str, Exception]) -> None:
    """The units that failed, by path, with what each died of."""
    rows = [{"unit": path, "error": f"{type(error).__name__}: {error}"} for path, error in failed.items()]
    create_table_artifact(table=rows, key=f"{verb}-failed", description=f"{len(rows)} units failed to {verb}")


def decided(row: Row) -> None:
    """A promotion, refusal or rollback: why, each number beside the champion's, and where the model came from."""
    lines = [f"# {row.kind.replace('_', ' ').capitalize()}: {row.model}", "", row.reason, ""]
    comparisons = json.loads(row.verdict).get("comparisons") or []
    if comparisons:
        lines += ["| metric | challenger | 95 % interval | champion | worse |", "|---|---|---|---|---|"]
        for one in comparisons:
            span = " to ".join(f"{end:.4g}" for end in one["interval"]) if one["interval"] else ""
            numbers = ["" if one[who] is None else f"{one[who]:.4g}" for who in ("challenger", "champion")]
            worse = "yes" if one["worse"] else "no"
            lines.append(f"| {one['metric']} | {numbers[0]} | {span} | {numbers[1]} | {worse} |")
    lineage = {
        "source": row.source,
        "detections": row.detections,
        "version": row.version,
        "run": row.run,
        "report": row.report or "",
        "champion before": row.before or "",
    }
    lines += ["", "| lineage | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lineage.items())]
    create_markdown_artifact("\n".join(lines), key="decision", description=f"{row.kind} {row.model}")
