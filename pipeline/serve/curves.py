"""The curves of a training run as one SVG, from its log.jsonl; while it trains and after."""

import io
from pathlib import Path

from pipeline.steplog import read_log


def draw(run_dir: Path) -> bytes:
    """Loss, its terms, and the rate of samples against steps; FileNotFoundError before the first logged step."""
    from matplotlib.figure import Figure

    lines = read_log(run_dir)
    if not lines:
        raise FileNotFoundError(f"run {run_dir.name} has logged no step yet")
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, terms, rate = figure.subplots(1, 3)
    loss.plot(steps, [line["loss"] for line in lines], color="#0f6b63")
    loss.set_title("loss")
    for name in lines[-1].get("terms", {}):
        terms.plot(steps, [line.get("terms", {}).get(name) for line in lines], label=name)
    terms.set_title("terms")
    if lines[-1].get("terms"):
        terms.legend(fontsize=6, frameon=False)
    rate.plot(steps, [line.get("samples_per_second") for line in lines], color="#5b5f97")
    rate.set_title("samples a second")
    rate.set_ylim(bottom=0)
    for axis in (loss, terms, rate):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
