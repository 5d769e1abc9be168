"""Runs of several models side by side in markdown: measures with intervals, geometry, and the conclusions.

Every sentence follows from the numbers by a rule stated here. A difference between two models is taken seed by
seed; it is significant when its interval over the seeds excludes 0, or with one seed when the two bootstrap intervals
do not overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np

from hyco.pipeline.evaluation.metrics.catalog import Metric, find
from hyco.pipeline.runtime.markdown import table

Runs = dict[str, list[dict[str, Any]]]  # model -> metrics of its seeds, seed by seed

NAMES = {
    "clip": "CLIP",
    "clip_boxes": "CLIP + part queries",
    "clip_box_pairs": "CLIP + boxes",
    "meru": "MERU",
    "lorentz_boxes": "hyperboloid + boxes",
    "hycoclip": "HyCoCLIP",
    "phyclip": "PHyCLIP",
}
NODES = {"text_box": "phrase", "image_box": "part", "text": "caption", "image": "image"}
# Student's t at 97.5 %, by degrees of freedom from 1; beyond 30 the last one holds, wider by 4 % at most.
# fmt: off
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


MEASURES = (
    "zero_shot.top1",
    "retrieval.image_to_text.r5",
    "retrieval.text_to_image.r5",
    "parts.crop_to_phrase.r5",
    "hierarchy.tie",
)
STEPS = (
    ("boxes", "clip", "clip_boxes"),
    ("geometry, given boxes", "clip_boxes", "lorentz_boxes"),
    ("entailment, given boxes and geometry", "lorentz_boxes", "hycoclip"),
    ("geometry and entailment, given boxes", "clip_boxes", "hycoclip"),
    ("geometry and entailment, without boxes", "clip", "meru"),
    ("a product of factors instead of one space", "hycoclip", "phyclip"),
    ("all of HyCoCLIP", "clip", "hycoclip"),
)


@dataclass(frozen=True)
class Difference:
    """Difference of two models in one measure: mean over the seeds, its interval, and whether that excludes 0."""

    value: float
    low: float
    high: float
    counts: bool

    def text(self, name: str) -> str:
        """The mean and the interval in the unit of the metric."""
        factor, digits = (100, 1) if _row(name).unit == "fraction" else (1, 2)
        low, mean, high = (f"{factor * v:+.{digits}f}" for v in (self.low, self.value, self.high))
        return f"{mean} [{low}, {high}]"


def _row(name: str) -> Metric:
    metric = find(name)
    assert metric is not None, f"no row of the catalog: {name}"
    return metric


def _head(name: str) -> str:
    """Title and unit, as a column header."""
    return _row(name).title + (", %" if _row(name).unit == "fraction" else "")


def _text(name: str, value: float) -> str:
    """A value as text of a cell."""
    return f"{100 * value:.1f}" if _row(name).unit == "fraction" else f"{value:.2f}"


def _unit(name: str) -> str:
    """The unit of a difference."""
    return "points" if _row(name).unit == "fraction" else _row(name).unit


def _held(metrics: dict[str, Any], name: str, key: str = "value") -> Any:
    """A part of a metric, None when it was not measured."""
    return (metrics["metrics"].get(name) or {}).get(key)


def value_at(metrics: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, None where a section is null."""
    value: Any = metrics
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def difference(runs: Runs, name: str, before: str, after: str) -> Difference:
    """After minus before: a t interval over paired seeds, or with one seed the ends of the two bootstrap intervals."""
    pairs = list(zip(runs[before], runs[after], strict=False))
    values = np.array([_held(b, name) - _held(a, name) for a, b in pairs])
    mean = float(values.mean())
    if len(values) > 1:
        quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
        reach = quantile * float(values.std(ddof=1)) / len(values) ** 0.5
        low, high = mean - reach, mean + reach
    else:
        (a_low, a_high), (b_low, b_high) = (
            [_held(m, name, end) for end in ("low", "high")] for m in pairs[0]
        )
        low, high = b_low - a_high, b_high - a_low
    return Difference(mean, low, high, low > 0 or high < 0)


def section(title: str, note: str, runs: Runs) -> str:
    """The markdown of one world: conditions, table of measures, differences, geometry, statement."""
    runs = {model: seeds for model, seeds in runs.items() if seeds}
    measures = [m for m in MEASURES if all(_held(s, m) is not None for r in runs.values() for s in r)]
    steps = [step for step in STEPS if step[1] in runs and step[2] in runs]
    seeds = min(map(len, runs.values()))
    parts = [f"## {title}", wrapped(note), _measures(runs, measures)]
    if steps:
        how = f"95 % t interval over {seeds} paired seeds"
        if seeds == 1:
            how = "one seed: interval from the outer ends of the two bootstrap intervals"
        parts += [f"Effect of each step ({how}):", _differences(runs, measures, steps)]
    if geometry := _geometry(runs):
        parts += ["Geometry, mean over the seeds (phrase / part / caption / image):", geometry]
    parts += ["Results:", "\n".join(wrapped(line, "- ") for line in statements(runs, measures))]
    return "\n\n".join(parts)


def wrapped(text: str, bullet: str = "") -> str:
    """A paragraph or list item of Markdown in lines of at most 120 characters."""
    indent = " " * len(bullet)
    return fill(bullet + text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def statements(runs: Runs, measures: Sequence[str]) -> list[str]:
    """The results in words, one sentence per item."""
    said = []
    for what, before, after in STEPS:
        if before in runs and after in runs:
            verdicts = [_verdict(difference(runs, m, before, after), m) for m in measures]
            said.append(f"{_capital(what)} ({NAMES[before]} to {NAMES[after]}): {'; '.join(verdicts)}.")
    if {"clip", "clip_boxes", "hycoclip"} <= runs.keys():
        said += [line for measure in measures if (line := _share_of_boxes(runs, measure))]
    for model, seeds in runs.items():
        if seeds[0].get("geometry"):
            said += [f"{NAMES[model]}: {line}" for line in _shape(seeds)]
    return said


def _verdict(found: Difference, name: str) -> str:
    metric = _row(name)
    if not found.counts:
        return f"{metric.title} no significant difference"
    better = (found.value > 0) == metric.higher_is_better
    size = _text(name, abs(found.value))
    return f"{metric.title} {'better' if better else 'worse'} by {size} {_unit(name)}"


def _share_of_boxes(runs: Runs, name: str) -> str | None:
    whole, boxes = (difference(runs, name, "clip", after) for after in ("hycoclip", "clip_boxes"))
    metric = _row(name)
    if not whole.counts or (whole.value > 0) != metric.higher_is_better:
        return (
            f"In {metric.title} HyCoCLIP has no significant gain over CLIP, "
            "so the fraction due to boxes is not given."
        )
    share, size = boxes.value / whole.value, _text(name, abs(whole.value))
    return f"Of HyCoCLIP's gain over CLIP in {metric.title} ({size}), boxes alone give {share:.0%}."


def _shape(seeds: list[dict[str, Any]]) -> list[str]:
    """Near-Euclidean or not, and whether the cones are saturated, hold, or do not."""
    radius = {n: _mean(seeds, f"geometry.radius.{n}.q50") for n in NODES}
    far = max(v for v in radius.values() if v is not None)
    felt = "above 1: the curvature has an effect" if far > 1 else "at most 1: the space is nearly Euclidean"
    lines = [f"the largest median sqrt(c)|x| of a node type is {far:.2f}, {felt}."]
    for name in seeds[0]["geometry"]["satisfied"]:
        general, specific = (NODES[n] for n in name.split(">"))
        true, shuffled = (
            _mean(seeds, f"geometry.satisfied.{name}.{kind}") or 0.0 for kind in ("true", "shuffled")
        )
        saturated = _mean(seeds, f"geometry.saturated.{name.split('>')[0]}") or 0.0
        state = "separates true from shuffled pairs"
        if saturated > 0.5:
            state = f"is not informative: {saturated:.0%} of its cones are saturated"
        elif true < 0.1:
            state = "is not satisfied: training has not moved the pairs into their cones"
        elif true < 2 * shuffled:
            state = "hardly separates true from shuffled pairs"
        lines.append(
            f"{general} entails {specific}: {true:.0%} of true pairs, {shuffled:.0%} of shuffled pairs; it {state}."
        )
    return lines


def _measures(runs: Runs, measures: Sequence[str]) -> str:
    rows = []
    for model, seeds in runs.items():
        cells = [NAMES[model]]
        for measure in measures:
            values, low, high = (
                [_held(metrics, measure, key) for metrics in seeds] for key in ("value", "low", "high")
            )
            mean, *ends = (_text(measure, float(np.mean(part))) for part in (values, low, high))
            cell = f"{mean} [{ends[0]}, {ends[1]}]"
            if len(values) > 1:
                cell += f" ({_text(measure, min(values))}-{_text(measure, max(values))})"
            cells.append(cell)
        rows.append(cells)
    first = next(iter(runs.values()))[0]
    rows.append(["chance", *(_text(m, _held(first, m, "chance")) for m in measures)])
    return "\n".join(table(["model", *map(_head, measures)], rows))


def _differences(runs: Runs, measures: Sequence[str], steps: Sequence[tuple[str, str, str]]) -> str:
    rows = (
        [
            f"{what}: {NAMES[before]} to {NAMES[after]}",
            *(difference(runs, m, before, after).text(m) for m in measures),
        ]
        for what, before, after in steps
    )
    return "\n".join(table(["step", *map(_head, measures)], rows))


def _geometry(runs: Runs) -> str:
    shaped = {model: seeds for model, seeds in runs.items() if seeds[0].get("geometry")}
    if not shaped:
        return ""
    head = ("model", "c", "median sqrt(c)\\|x\\|", "saturated cones, %", "true / shuffled pairs in their cones, %",
            "radius in order, % of pairs")  # fmt: skip
    rows = []
    for model, seeds in shaped.items():
        shape = seeds[0]["geometry"]
        cones = []
        for name in shape["satisfied"]:
            true, shuffled = (_percent(seeds, f"geometry.satisfied.{name}.{k}") for k in ("true", "shuffled"))
            general, specific = (NODES[n] for n in name.split(">"))
            cones.append(f"{general} > {specific} {true} / {shuffled}")
        order = [
            f"{' < '.join(NODES[n] for n in name.split('<'))} {_percent(seeds, f'geometry.order.{name}.pairs')}"
            for name, entry in shape["order"].items()
            if "pairs" in entry
        ]
        radius = [_mean(seeds, f"geometry.radius.{n}.q50") for n in NODES]
        cells = (
            NAMES[model],
            f"{_mean(seeds, 'geometry.curvature') or 0:.2f}",
            " / ".join("-" if r is None else f"{r:.2f}" for r in radius),
            " / ".join(_percent(seeds, f"geometry.saturated.{n}") for n in NODES),
            ", ".join(cones),
            ", ".join(order),
        )
        rows.append(cells)
    return "\n".join(table(head, rows))


def _mean(seeds: list[dict[str, Any]], path: str) -> float | None:
    values = [value for metrics in seeds if (value := value_at(metrics, path)) is not None]
    return float(np.mean(values)) if values else None


def _percent(seeds: list[dict[str, Any]], path: str) -> str:
    value = _mean(seeds, path)
    return "-" if value is None else f"{100 * value:.0f}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
