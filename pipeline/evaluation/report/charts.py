"""Small charts as SVG text: sized for a narrow column, coloured by the page's CSS variables.

Every chart is an <svg role="img"> with a describing label; the values of a line chart are stored as JSON in data-lines,
which the page's script reads for its cross-hair.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 28
MOST_POINTS = 240
PER_CENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class Line:
    """A named series; `tone` is the page's colour variable, such as "image" for --image."""

    name: str
    tone: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def number(value: int | float, digits: int = 3) -> str:
    """A number as text: 3 significant digits, thousands grouped; an integer in full."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000_000:
        return f"{value / 1e6:,.0f} M"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.1e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}"


def share(value: float) -> str:
    """A fraction in percent, with a non-breaking space before the sign: 63.2 %, 0.71 %."""
    value *= 100
    return f"{value:.{0 if value >= 99.95 or value == 0 else 1 if value >= 1 else 2}f}{PER_CENT}"


def plain_share(value: float) -> str:
    """The same for a sentence: 73 % where it is 73.0 %."""
    return share(value).replace(".0" + PER_CENT, PER_CENT)


def tick_text(value: float) -> str:
    """A round number in its shortest form: 0.5, 1, 2,000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that span [low, high], 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points, each the mean of its stretch; non-finite points are left out."""
    points = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)])
    if len(points) > MOST_POINTS:
        points = np.stack([part.mean(axis=0) for part in np.array_split(points, MOST_POINTS)])
    points = points.reshape(-1, 2)
    return points[:, 0].tolist(), points[:, 1].tolist()


def line_chart(lines: Sequence[Line], label: str, unit: str = "", zero: bool = False) -> Markup:
    """Curves over training steps; empty Markup when no line has two points."""
    drawn = [(line, *thin(line.x, line.y)) for line in lines]
    drawn = [(line, x, y) for line, x, y in drawn if len(x) > 1]
    if not drawn:
        return Markup("")
    flat = [value for _, _, y in drawn for value in y]
    marks = ticks(0.0 if zero else min(flat), max(flat))
    x_end = max(x[-1] for _, x, _ in drawn)
    x_start = min(x[0] for _, x, _ in drawn)
    low, high = marks[0], marks[-1]

    def at_x(value: float) -> float:
        return round(LEFT + (value - x_start) / ((x_end - x_start) or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for mark in marks:
        y = at_y(mark)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{tick_text(mark)}</text>')
    for mark in ticks(x_start, x_end):
        if x_start <= mark <= x_end and at_x(mark) > LEFT + 40:  # the axis title is there
            parts.append(
                f'<text x="{at_x(mark)}" y="{HEIGHT - 8}" text-anchor="middle">{tick_text(mark)}</text>'
            )
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" text-anchor="start">step</text>')
    for line, x, y in drawn:
        path = "L".join(f"{at_x(a)} {at_y(b)}" for a, b in zip(x, y, strict=True))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<path class="line" style="stroke:var(--{escape(line.tone)})"{dash} d="M{path}"/>')
    parts.append(f'<path class="cross" d="M0 {TOP}V{HEIGHT - BOTTOM}"/>')
    data = {
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "unit": unit,
        "start": x_start,
        "end": x_end,
        "lines": [
            {"name": line.name, "tone": line.tone, "x": [_short(v) for v in x], "y": [_short(v) for v in y]}
            for line, x, y in drawn
        ],
    }
    return _svg(parts, label, WIDTH, HEIGHT, f'class="chart lines" data-lines="{escape(json.dumps(data))}"')


def ridges(
    rows: Sequence[tuple[str, str, Float[np.ndarray, " _"]]],
    label: str,
    edge: float,
    edge_name: str,
    bins: int = 56,
) -> Markup:
    """Histograms of several groups, one above the other on one axis, with a mark at `edge`.

    `rows` holds (name, tone, values); each is scaled to its own peak, so shapes are comparable and heights are not.
    """
    rows = [(name, tone, values) for name, tone, values in rows if len(values)]
    if not rows:
        return Markup("")
    reach = max(float(np.quantile(values, 0.998)) for _, _, values in rows)
    marks = ticks(0.0, max(reach, edge * 1.1), 5)
    high = marks[-1]
    edges = np.linspace(0.0, high, bins + 1)
    width, left, right, step = 440, 74, 14, 62
    height = step * len(rows) + 50
    base = height - 30

    def at_x(value: float) -> float:
        return round(left + min(value / high, 1.0) * (width - left - right), 1)

    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{at_x(mark)} 20V{base}"/>')
        parts.append(f'<text x="{at_x(mark)}" y="{height - 9}" text-anchor="middle">{tick_text(mark)}</text>')
    parts.append(f'<path class="edge" d="M{at_x(edge)} 14V{base}"/>')
    parts.append(f'<text class="edge-name" x="{at_x(edge) + 5}" y="12">{escape(edge_name)}</text>')
    for index, (name, tone, values) in enumerate(rows):
        floor, mean = 20 + step * (index + 1), float(values.mean())
        count, _ = np.histogram(np.clip(values, 0.0, high), edges)
        tops = [round(floor - share * (step - 10), 1) for share in count / (count.max() or 1)]
        stairs = "".join(
            f"L{at_x(a)} {y}L{at_x(b)} {y}" for a, b, y in zip(edges[:-1], edges[1:], tops, strict=True)
        )
        span = f"from {number(float(values.min()))} to {number(float(values.max()))}"
        tip = escape(f"{name}: mean {number(mean)}, {span}, {len(values):,} points")
        colour = f"var(--{escape(tone)})"
        parts.append(
            f'<g data-tip="{tip}" tabindex="0">'
            f'<rect x="0" y="{floor - step + 4}" width="{width}" height="{step - 4}" fill="transparent"/>'
            f'<path class="area" style="--tone:{colour}" d="M{left} {floor}{stairs}L{at_x(high)} {floor}Z"/>'
            f'<path class="mean" style="stroke:{colour}" d="M{at_x(mean)} {floor}v-{step - 8}"/>'
            f'<text class="strong" x="{left - 10}" y="{floor - 17}" text-anchor="end">{escape(name)}</text>'
            f'<text x="{left - 10}" y="{floor - 2}" text-anchor="end">{number(mean)}</text></g>'
            f'<path class="floor" d="M{left} {floor}H{width - right}"/>'
        )
    return _svg(parts, label, width, height, 'class="chart ridges"')


def interval_bar(
    value: float, chance: float | None, span: Sequence[float] | None, top: float = 1.0
) -> Markup:
    """A thin bar from 0 to `top`: the value as a dot, its interval as a band, chance as a tick."""

    def at(share: float) -> float:
        return round(100 * min(max(share / top, 0.0), 1.0), 2)

    parts = [f'<span class="fill" style="width:{at(value)}%"></span>']
    if span:
        low, high = at(span[0]), at(span[1])
        parts.append(f'<span class="band" style="left:{low}%;width:{round(high - low, 2)}%"></span>')
    if chance is not None:
        parts.append(f'<span class="chance" style="left:{at(chance)}%"></span>')
    parts.append(f'<span class="dot" style="left:{at(value)}%"></span>')
    return Markup(f'<span class="bar" aria-hidden="true">{"".join(parts)}</span>')


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _svg(parts: list[str], label: str, width: int, height: int, attributes: str) -> Markup:
    return Markup(
        f'<svg {attributes} role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}">'
        f"{''.join(parts)}</svg>"
    )
