"""The champions over time on one fixed exam, as one SVG: each metric of the gate, a point per decision."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from hyco.pipeline.evaluation.metrics.catalog import find
from hyco.pipeline.evaluation.report.charts import tick_text, ticks
from hyco.pipeline.evaluation.report.report import chart_style
from hyco.pipeline.evaluation.report.tables import title, value_text
from hyco.storage.model_registry import PROMOTED, REFUSED, Decision

COLUMNS, WIDTH, HEIGHT, GAP, TITLE = 2, 520, 170, 28, 34
LEFT, RIGHT, TOP, BOTTOM = 50, 16, 10, 26
MOST = 40  # decisions in a chart, the newest


Known = Callable[
    [str, str], str | None
]  # metrics.json of a model on an exam, by the digest of each; None without


def on_one_exam(rows: Sequence[Decision], known: Known) -> tuple[list[Decision], int]:
    """The judged decisions on the exam of the newest one, oldest first, and how many were made on others.

    An exam is the images and options of an evaluation: numbers of different exams cannot be compared. A champion that
    was promoted on another exam and evaluated again on this one, beside a challenger, is among them with these metrics.
    """
    judged = [(row, _verdict(row).get("exam")) for row in rows if row.kind in (PROMOTED, REFUSED)]
    judged = [(row, exam) for row, exam in judged if exam]
    if not judged:
        return [], 0
    newest = judged[-1][1]
    same = []
    for row, exam in judged:
        if exam == newest:
            same.append(row)
        elif row.kind == PROMOTED and (again := known(newest, row.model)):
            same.append(replace(row, metrics=again))
    return same[-MOST:], len(judged) - len(same)


def draw(rows: Sequence[Decision], known: Known = lambda exam, model: None) -> bytes:
    """The charts of the registry's log (oldest first): filled points are champions, hollow ones refused models."""
    shown, elsewhere = on_one_exam(rows, known)
    names = list(dict.fromkeys(one["metric"] for row in shown for one in _verdict(row)["comparisons"]))
    charts = [(heading(name), chart) for name in names if (chart := _chart(name, shown))]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    height = max(1, -(-len(charts) // COLUMNS)) * (TITLE + HEIGHT + GAP) + GAP
    note = f"Decisions made on other images, left out: {elsewhere}. " if elsewhere else ""
    return (
        environment.get_template("trend.svg.j2")
        .render(
            style=chart_style(),
            size=(COLUMNS * (WIDTH + GAP) + GAP, height + 20),
            charts=[
                (GAP + n % COLUMNS * (WIDTH + GAP), GAP + n // COLUMNS * (TITLE + HEIGHT + GAP), name, chart)
                for n, (name, chart) in enumerate(charts)
            ],
            chart=(WIDTH, HEIGHT),
            title=TITLE,
            note=note,
        )
        .encode()
    )


def _chart(name: str, rows: Sequence[Decision]) -> Markup | None:
    """One metric over the decisions; None where no decision measured it."""
    metric = find(name)
    held = [(_numbers(row).get(name), row) for row in rows]
    points = [(n, entry, row) for n, (entry, row) in enumerate(held) if entry]
    if metric is None or not points:
        return None
    ends = [v for _, e, _ in points for v in (e["value"], e.get("low"), e.get("high"), e.get("chance"))]
    factor = 100 if metric.unit == "fraction" else 1
    marks = ticks(*(factor * edge(v for v in ends if v is not None) for edge in (min, max)), about=3)
    low, high = marks[0], marks[-1]

    def at_x(n: int) -> float:
        return round(LEFT + (n + 0.5) / len(rows) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(value: float) -> float:
        part = (factor * value - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for mark in marks:
        y = at_y(mark / factor)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        unit = " %" if factor == 100 else ""
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{tick_text(mark)}{unit}</text>')
    chance = points[-1][1].get("chance")
    if chance is not None:
        parts.append(f'<path class="edge" d="M{LEFT} {at_y(chance)}H{WIDTH - RIGHT}"/>')
    kept = [(n, entry) for n, entry, row in points if row.kind == PROMOTED]
    if len(kept) > 1:
        path = "L".join(f"{at_x(n)} {at_y(entry['value'])}" for n, entry in kept)
        parts.append(f'<path class="line" style="stroke:var(--accent)" d="M{path}"/>')
    for n, entry, row in points:
        x, y = at_x(n), at_y(entry["value"])
        promoted = row.kind == PROMOTED
        tone = "accent" if promoted else "bad"
        if entry.get("low") is not None and entry.get("high") is not None:
            span = f"M{x} {at_y(entry['low'])}V{at_y(entry['high'])}"
            parts.append(f'<path d="{span}" style="stroke:var(--{tone})" stroke-opacity="0.5"/>')
        fill = f"var(--{tone})" if promoted else "var(--paper)"
        tip = (
            f"{row.time[:16].replace('T', ' ')} {row.kind} {row.model}: {value_text(metric, entry['value'])}"
        )
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="4" style="fill:{fill};stroke:var(--{tone})" stroke-width="1.6">'
            f"<title>{escape(tip)}</title></circle>"
        )
    one_day = points[0][2].time[:10] == points[-1][2].time[:10]
    for n, anchor in {points[0][0]: "start", points[-1][0]: "end"}.items():
        x = LEFT if anchor == "start" else WIDTH - RIGHT
        when = escape(held[n][1].time[: 16 if one_day else 10].replace("T", " "))
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{when}</text>')
    return Markup("".join(parts))


def heading(name: str) -> str:
    """The title of a metric's chart."""
    metric = find(name)
    return title(name, metric) if metric else name


def _numbers(row: Decision) -> dict[str, Any]:
    try:
        return json.loads(row.metrics).get("metrics") or {}
    except (ValueError, AttributeError):
        return {}


def _verdict(row: Decision) -> dict[str, Any]:
    try:
        held = json.loads(row.verdict)
    except ValueError:
        return {}
    return held if isinstance(held, dict) and isinstance(held.get("comparisons"), list) else {}
