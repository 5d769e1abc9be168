"""The disk of the report as SVG text: one path of dots for each type of node, rings of equal radius."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

from hyco.pipeline.evaluation.report.charts import tick_text, ticks

SIDE = 440
FULL = 0.85  # with points beyond it, the entire disk is drawn with its rim


def disk_chart(
    groups: Sequence[tuple[str, Float[np.ndarray, "_ 2"]]], label: str, hyperbolic: bool
) -> Markup:
    """Points of the unit disk by tone, the first group at the bottom, enlarged to fit.

    Rings are labelled by the radius sqrt(c)|x| where the disk is Poincare's, else by the radius itself.
    """
    points = np.concatenate([np.zeros((1, 2)), *(values for _, values in groups)])
    reach = float(np.hypot(*points.T).max())
    edge = 1.0 if reach > FULL else max(1.06 * reach, 1e-3)
    middle, scale = SIDE / 2, (SIDE / 2 - 4) / edge

    def at(value: float) -> float:
        return round(middle + scale * value, 1)

    parts = [f'<circle class="rim" cx="{middle}" cy="{middle}" r="{round(scale * edge, 1)}"/>']
    outer = math.sinh(2 * math.atanh(min(edge, 0.9999))) if hyperbolic else edge
    for mark in ticks(0.0, outer, 5)[1:]:
        radius = math.tanh(math.asinh(mark) / 2) if hyperbolic else mark
        if radius < 0.97 * edge:
            ring = round(scale * radius, 1)
            parts.append(f'<circle class="ring" cx="{middle}" cy="{middle}" r="{ring}"/>')
            parts.append(
                f'<text class="mark" x="{middle}" y="{round(middle - ring + 4, 1)}">{tick_text(mark)}</text>'
            )
    for tone, values in groups:
        dots = "".join(f"M{at(x)} {at(-y)}h0" for x, y in values)
        parts.append(f'<path class="dots" style="stroke:var(--{escape(tone)})" d="{dots or "M0 0"}"/>')
    parts.append(f'<path class="origin" d="M{middle - 5} {middle}h10M{middle} {middle - 5}v10"/>')
    return Markup(
        f'<svg class="chart disk" role="img" aria-label="{escape(label)}" viewBox="0 0 {SIDE} {SIDE}">'
        f"{''.join(parts)}</svg>"
    )
