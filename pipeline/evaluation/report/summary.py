"""The metrics of metrics.json as table rows, for the terminal and for Prefect's artifact."""

from typing import Any

from hyco.pipeline.evaluation.report.page import gaps
from hyco.pipeline.evaluation.report.tables import tables
from hyco.pipeline.runtime.markdown import table

COLUMNS = ("measure", "value", "95 % interval", "chance")


def rows(metrics: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row of COLUMNS per metric with a chance level."""
    return [
        (
            row["name"] + (f" ({row['note']})" if row["note"] else ""),
            row["value"],
            row["interval"],
            row["chance"],
        )
        for each in tables(metrics)
        for row in each["rows"]
    ]


def markdown_table(metrics: dict[str, Any]) -> str:
    """The rows as a Markdown table, then the metrics that could not be measured, with the reason."""
    lines = table(COLUMNS, ([cell.replace("|", "\\|") for cell in row] for row in rows(metrics)))
    lines += ["", *(f"- {name}: not complete, {words}" for name, words in gaps(metrics))]
    lines += [*(f"- {section}: not measured, {why}" for section, why in metrics["skipped"].items())]
    return "\n".join(lines)
