"""The curves of a training run as one SVG, from its log.jsonl; during and after the training."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hyco.pipeline.evaluation.report.charts import HEIGHT, WIDTH
from hyco.pipeline.evaluation.report.curves import curves
from hyco.pipeline.evaluation.report.report import chart_style
from hyco.pipeline.training.run_dir import RunDir
from hyco.pipeline.training.step_log import read_log
from hyco.storage.folder import Folder

COLUMNS, TITLE, LEGEND, GAP = (
    3,
    28,
    17,
    24,
)  # charts in a row; heights of a title and of a legend's row; pixels


def draw(run_dir: RunDir) -> bytes:
    """The report's charts of the step log, side by side; FileNotFoundError before the first logged step."""
    folder = Folder.of(run_dir)
    log = read_log(folder)
    if not log:
        raise FileNotFoundError(f"run {folder.name} has logged no step yet")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    charts = curves(log)
    rows = [charts[start : start + COLUMNS] for start in range(0, len(charts), COLUMNS)]
    tops, top = [], GAP
    for row in rows:
        tops.append(top)
        top += TITLE + HEIGHT + LEGEND * max((len(chart["legend"]) + 1) // 2 for chart in row) + GAP
    return (
        environment.get_template("curves.svg.j2")
        .render(
            style=chart_style(),
            rows=list(zip(tops, rows, strict=True)),
            size=(COLUMNS * (WIDTH + GAP) + GAP, max(top, 80)),
            chart=(WIDTH, HEIGHT),
            gap=GAP,
            title=TITLE,
            legend=LEGEND,
        )
        .encode()
    )
