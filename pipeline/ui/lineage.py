"""The lineage of models as one SVG: source, detections, version, run and decision in a row, newest on top."""

from collections.abc import Container
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hyco.pipeline.evaluation.report.report import chart_style
from hyco.storage.model_registry import Decision

COLUMNS = ("source", "detections", "version", "run", "decision")
MOST = 12
LONGEST = 24  # characters per box


def draw(rows: list[Decision], champion: Decision | None, flagged: Container[int] = ()) -> bytes:
    """The lineage of the newest decisions.

    Args:
        rows: the registry's log, newest first.
        champion: its row.
        flagged: numbers of the rows whose models saw images that were deleted since.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    chains = [
        {
            "kind": row.kind,
            "champion": champion is not None and row.number == champion.number,
            "boxes": [
                (_short(Path(row.source).name), _short(row.source)),
                (_short(row.detections.rpartition("/")[2]), _short(", ".join(row.detectors))),
                (_short(row.version), "images deleted since" if row.number in flagged else ""),
                (_short(Path(row.run).name), _short(f"commit {row.commit[:12]}" if row.commit else "")),
                (_short(row.kind.replace("_", " ")), _short(f"model {row.model}")),
            ],
        }
        for row in rows[:MOST]
    ]
    return (
        environment.get_template("lineage.svg.j2")
        .render(chains=chains, columns=COLUMNS, style=chart_style())
        .encode()
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
