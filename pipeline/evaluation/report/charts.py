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
FAR = 20
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


def decades(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis that span [low, high]: 1, 2 and 5 times powers of ten, or powers alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    marks = [float(f"{m}e{power}") for power in range(first, last + 1) for m in steps]
    start = max(n for n, mark in enumerate(marks) if mark <= low or n == 0)
    stop = min(n for n, mark in enumerate(marks) if mark >= high)
    return marks[start : stop + 1]


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
    rows: Sequence[tuple[str, str, Float[np.ndarray, " _"], float | None]],
    label: str,
    bins: int = 56,
) -> Markup:
    """Histograms of several groups of positive numbers, one above the other on one axis.

    `rows` holds (name, tone, values, edge); each is scaled to its own peak, so shapes are comparable and heights are
    not. An edge is a radius 2K up to which cones are saturated, a dashed line: through all rows if they have one in
    common. The axis is logarithmic if a mean is more than FAR times another.
    """
    rows = [row for row in rows if len(row[2])]
    if not rows:
        return Markup("")
    means = [float(values.mean()) for _, _, values, _ in rows]
    edges = sorted({edge for *_, edge in rows if edge is not None})
    ends = [float(np.quantile(values, q)) for _, _, values, _ in rows for q in (0.002, 0.998)]
    logarithmic = max(means) > FAR * min(means) and min(ends) > 0
    marks = decades(min([*ends, *edges]), max([*ends, *edges])) if logarithmic else []
    marks = marks or ticks(0.0, max([*ends, *(1.1 * edge for edge in edges)]), 5)
    place = np.log if logarithmic else np.asarray
    low, high = (float(place(mark)) for mark in (marks[0], marks[-1]))
    width, left, right, step = 440, 74, 14, 62
    height = step * len(rows) + 50
    base = height - 30

    def at(placed: float) -> float:
        return round(left + (placed - low) / (high - low) * (width - left - right), 1)

    def at_x(value: float) -> float:
        return at(float(place(min(max(value, marks[0]), marks[-1]))))

    parts = []
    for mark in marks:
        parts.append(f'<path class="grid" d="M{at_x(mark)} 20V{base}"/>')
        parts.append(f'<text x="{at_x(mark)}" y="{height - 9}" text-anchor="middle">{tick_text(mark)}</text>')
    if len(edges) == 1:
        parts += _edge(at_x(edges[0]), 14, base, 12, edges[0])
    for index, (name, tone, values, edge) in enumerate(rows):
        floor, mean = 20 + step * (index + 1), means[index]
        steps = np.linspace(low, high, bins + 1)
        count, _ = np.histogram(place(np.clip(values, marks[0], marks[-1])), steps)
        tops = [round(floor - share * (step - 10), 1) for share in count / (count.max() or 1)]
        stairs = "".join(
            f"L{at(a)} {y}L{at(b)} {y}" for a, b, y in zip(steps[:-1], steps[1:], tops, strict=True)
        )
        span = f"from {number(float(values.min()))} to {number(float(values.max()))}"
        tip = escape(f"{name}: mean {number(mean)}, {span}, {len(values):,} points")
        colour = f"var(--{escape(tone)})"
        parts.append(
            f'<g data-tip="{tip}" tabindex="0">'
            f'<rect x="0" y="{floor - step + 4}" width="{width}" height="{step - 4}" fill="transparent"/>'
            f'<path class="area" style="--tone:{colour}" d="M{left} {floor}{stairs}L{at(high)} {floor}Z"/>'
            f'<path class="mean" style="stroke:{colour}" d="M{at_x(mean)} {floor}v-{step - 8}"/>'
            f'<text class="strong" x="{left - 10}" y="{floor - 17}" text-anchor="end">{escape(name)}</text>'
            f'<text x="{left - 10}" y="{floor - 2}" text-anchor="end">{number(mean)}</text></g>'
            f'<path class="floor" d="M{left} {floor}H{width - right}"/>'
        )
        if edge is not None and len(edges) > 1:
            parts += _edge(at_x(edge), floor - step + 8, floor, floor - step + 18, edge)
    return _svg(parts, label, width, height, 'class="chart ridges"')


def _edge(x: float, top: float, base: float, words_at: float, edge: float) -> list[str]:
    return [
        f'<path class="edge" d="M{x} {top}V{base}"/>',
        f'<text class="edge-name" x="{x + 5}" y="{words_at}">2K = {edge:g}</text>',
    ]


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
