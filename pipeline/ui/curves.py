"""The curves of a training run as one SVG, from its log.jsonl; while it trains and after."""

import io
import math
from pathlib import Path
from typing import Any

from pipeline.training.step_log import read_log


def draw(run_dir: Path) -> bytes:
    """Loss, its terms, and the rate of samples against steps; FileNotFoundError before the first logged step."""
    from matplotlib.figure import Figure

    lines = read_log(run_dir)
    if not lines:
        raise FileNotFoundError(f"run {run_dir.name} has logged no step yet")
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, terms, rate = figure.subplots(1, 3)
    loss.plot(steps, [_number(line.get("loss")) for line in lines], color="#0f6b63")
    loss.set_title("loss")
    for name in _terms(lines[-1]):
        terms.plot(steps, [_number(_terms(line).get(name)) for line in lines], label=name)
    terms.set_title("terms")
    if _terms(lines[-1]):
        terms.legend(fontsize=6, frameon=False)
    rate.plot(steps, [_number(line.get("samples_per_second")) for line in lines], color="#5b5f97")
    rate.set_title("samples a second")
    rate.set_ylim(bottom=0)
    for axis in (loss, terms, rate):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _terms(line: dict[str, Any]) -> dict[str, Any]:
    terms = line.get("terms")
    return terms if isinstance(terms, dict) else {}


def _number(value: Any) -> float:
    """NaN, which is not drawn, for what is no number: a torn log costs a point and not the curve."""
    return float(value) if isinstance(value, int | float) else math.nan
