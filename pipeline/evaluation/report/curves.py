"""Training curves from the step log (log.jsonl): charts by key, and their colours."""

import math
from collections.abc import Sequence
from typing import Any

from hyco.pipeline.evaluation.report.charts import Line, line_chart, number
from hyco.pipeline.training.step_log import flat

MINUS = "\N{MINUS SIGN}"
NODE_NAMES = {"image": "image", "text": "caption", "image_box": "part", "text_box": "phrase"}
TONES = {"image": "image", "text": "text", "image_box": "image-box", "text_box": "text-box"}
Log = Sequence[dict[str, Any]]


def line(log: Log, key: str, name: str, tone: str, dashed: bool = False) -> Line:
    """The values of one key over the steps that have it."""
    held = [(row["step"], row[key]) for row in log if _is_number(row.get(key))]
    return Line(name, tone, [step for step, _ in held], [float(value) for _, value in held], dashed)


def curves(log: Log) -> list[dict[str, Any]]:
    """The charts for which the rows of a step log have data: {name, chart, legend, note}."""
    log = [flat(row) for row in log]
    keys = sorted({key for row in log for key in row})
    contrast = [key for key in keys if key.startswith("terms/contrast/")]
    entail = [key for key in keys if key.startswith("terms/entail/")]
    member = [key for key in keys if key.startswith("terms/member/")]
    norm = [key for key in keys if key.startswith("terms/norm/")]
    known = {*contrast, *entail, *member, *norm}
    other = [key for key in keys if key.startswith("terms/") and key not in known]
    charts = [
        ("Loss", [line(log, "loss", "total", "accent")], "", "", True),
        (
            "Contrastive loss by direction",
            [_pair_line(log, key, " to ") for key in contrast],
            "",
            "Cross-entropy of the matching item within a batch.",
            False,
        ),
        (
            "Entailment loss",
            [_pair_line(log, key, " holds ") for key in entail],
            "rad",
            "Mean angle by which a point lies outside its cone.",
            True,
        ),
        (
            "Membership in the cones",
            [_pair_line(log, key, " holds ") for key in member],
            "",
            "Cross-entropy of the matching pair inside its cone and the others of the batch outside.",
            True,
        ),
        (
            "Cost of the radii",
            [_node_line(log, key, key.rpartition("/")[2]) for key in norm],
            "",
            "By type of node.",
            True,
        ),
        (
            "Other terms of the loss",
            [line(log, key, key.removeprefix("terms/"), "scalar") for key in other],
            "",
            "",
            True,
        ),
        (
            "Mean radius",
            [_node_line(log, f"radius/{node}/mean", node) for node in NODE_NAMES],
            "",
            "√c |x| of each type of node.",
            True,
        ),
        (
            "Curvature",
            [line(log, "curvature", "c", "scalar")],
            "",
            f"The space has curvature {MINUS}c.",
            False,
        ),
        ("Temperature", [line(log, "temperature", "temperature", "scalar")], "", "", True),
        ("Learning rate", [line(log, "lr", "rate", "scalar")], "", "", True),
        ("Speed", [line(log, "samples_per_second", "samples per second", "accent")], "", "", True),
        (
            "Model FLOPs utilisation",
            [line(log, "mfu", "fraction of a matrix product's rate", "accent")],
            "",
            "FLOPs of the towers, without padding, beside a matrix product measured at the start.",
            True,
        ),
        ("Waiting for data", [line(log, "data_wait", "fraction of time", "accent")], "", "", True),
    ]
    made = []
    for name, lines, unit, note, zero in charts:
        lines = [one for one in lines if len(one.x) > 1]
        label = f"{name} over training steps: " + ", ".join(
            f"{one.name} from {number(one.y[0])} to {number(one.y[-1])}" for one in lines
        )
        if chart := line_chart(lines, label, unit, zero):
            legend = [
                {"name": one.name, "tone": one.tone, "dashed": one.dashed, "value": number(one.y[-1])}
                for one in lines
            ]
            made.append({"name": name, "chart": chart, "legend": legend, "note": note})
    return made


def _pair_line(log: Log, key: str, verb: str) -> Line:
    ends = key.rpartition("/")[2].split(">")
    tone = TONES.get(ends[0], "scalar")
    dashed = ends in (["text_box", "text"], ["image_box", "image"])
    return line(log, key, verb.join(NODE_NAMES.get(end, end) for end in ends), tone, dashed)


def _node_line(log: Log, key: str, node: str) -> Line:
    return line(log, key, NODE_NAMES.get(node, node), TONES.get(node, "scalar"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
