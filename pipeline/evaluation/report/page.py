"""Words and rows of the report from the metrics, ready for the template."""

import json
from collections.abc import Sequence
from typing import Any

from hyco.pipeline.evaluation.coverage import incomplete
from hyco.pipeline.evaluation.metrics.catalog import find
from hyco.pipeline.evaluation.metrics.document import context, measured
from hyco.pipeline.evaluation.report.charts import PER_CENT, number, plain_share, share
from hyco.pipeline.evaluation.report.compare_runs import beside_table
from hyco.pipeline.evaluation.report.curves import curves
from hyco.pipeline.evaluation.report.panels import (
    Exhibits,
    class_rows,
    depth_rows,
    plane_panel,
    separation_rows,
    space_panel,
    tree_panel,
    walks_panel,
)
from hyco.pipeline.evaluation.report.tables import (
    bar,
    data_sets,
    gain,
    interval_text,
    suite_name,
    tables,
    title,
    value_text,
)

SECTIONS = {
    "zero_shot": "Zero-shot classification",
    "retrieval": "Image and caption retrieval",
    "hierarchy": "Hierarchy metrics",
    "parts": "Part and phrase retrieval",
    "boxes": "Ground-truth boxes",
    "compositional": "Compositional test",
    "traversal": "Traversals to the root",
    "geometry": "Geometry report",
    "attribution": "Norm, angle and bias",
    "held_out": "Held-out images",
    "mining": "Mining summary",
    "train": "Training summary",
}


CARDS = (
    "zero_shot.top1",
    "retrieval.image_to_text.r5",
    "retrieval.text_to_image.r5",
    "parts.crop_to_phrase.r5",
    "hierarchy.tie",
)


def page(metrics: dict[str, Any], exhibits: Exhibits) -> dict[str, Any]:
    """All variables of the template, as plain values and safe Markup."""
    view = _View(metrics, exhibits)
    shown = {
        "run": metrics.get("run") or "run",
        "title": view.title(),
        "intro": view.intro(),
        "cards": view.cards(),
        "neighbours": exhibits.neighbours,
        "neighbours_lead": view.neighbours_lead(),
        "tables": tables(metrics),
        "beside": beside_table(metrics),
        "incomplete": gaps(metrics),
        "skipped": [(_section(k), v) for k, v in (metrics.get("skipped") or {}).items()],
        "tree": tree_panel(exhibits),
        "classes": class_rows(exhibits),
        "walks": walks_panel(exhibits, metrics),
        "plane": plane_panel(exhibits),
        "space": space_panel(exhibits, metrics.get("geometry")),
        "separation": separation_rows(metrics.get("attribution")),
        "depths": depth_rows(metrics.get("attribution")),
        "samples": exhibits.samples,
        "images": " ".join(sorted(set(exhibits.images))),
        "mining": view.mining(),
        "mining_lead": "Noun phrases of the captions and the boxes found for them, as used in "
        "training. Point at a phrase to see its box. Taken in order from the first training shard.",
        "curves": curves(exhibits.log),
        "training": view.training(),
        "training_lead": "The step log of the run. Point at a curve to read it.",
        "lineage": [{"name": name, "value": value} for name, value in exhibits.lineage if value],
        "config": json.dumps(exhibits.config, indent=2, ensure_ascii=False) if exhibits.config else "",
        "metrics": json.dumps(metrics, indent=2, ensure_ascii=False),
        "draws": f"{exhibits.draws:,}",
        "created": (metrics.get("created") or "")[:10],
        "seconds": f"{metrics['seconds']:.0f} s" if metrics.get("seconds") else "",
    }
    names = [("answers", "Answers"), ("numbers", "Numbers")]
    names += [("errors", "Errors")] if shown["tree"] else []
    names += [("walks", "Walks")] if shown["walks"] else []
    names += [("space", "Space")] if shown["space"] or shown["plane"] else []
    names += [("data", "Data")] if shown["samples"] or shown["mining"] else []
    names += [("training", "Training")] if shown["curves"] else []
    return shown | {"sections": [{"id": i, "name": n} for i, n in [*names, ("origin", "Origin")]]}


def gaps(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, words) of each set that was used only in part: ("COCO", "43 of 283 images (240 missing)")."""
    return [(_section(key), words) for key, words in incomplete(metrics)]


def _section(key: str) -> str:
    return suite_name(key) if key.startswith("suite.") else SECTIONS.get(key, key)


class _View:
    """The pieces of a page from one metrics dict."""

    def __init__(self, metrics: dict[str, Any], exhibits: Exhibits) -> None:
        self.m, self.x = metrics, exhibits
        self.numbers = {name: held for name, _, held in measured(metrics) if held["chance"] is not None}

    def title(self) -> str:
        if held := self.numbers.get("zero_shot.top1"):
            return (
                f"It names the thing in an unseen scene correctly {plain_share(held['value'])} of the time. "
                f"Chance is {plain_share(held['chance'])}."
            )
        if held := self.numbers.get("retrieval.text_to_image.r10"):
            return (
                f"Given a caption, the right picture is among its first ten of {self.m['retrieval']['images']:,} "
                f"{plain_share(held['value'])} of the time. "
                f"Chance is {plain_share(held['chance'])}."
            )
        if self.m.get("suite"):
            sets = data_sets(self.m["suite"])
            return f"Evaluated on {sets} published data set{'s' * (sets != 1)}."
        return "Nothing could be measured."

    def intro(self) -> str:
        m, parts = self.m, []
        train, found, zero = m.get("train") or {}, m.get("retrieval") or {}, m.get("zero_shot") or {}
        steps, seen = train.get("steps"), train.get("samples_seen")
        text = f"Run {m.get('run')}"
        text += f" was trained on {seen:,} samples{_passes(train)}" if isinstance(seen, int) else ""
        text += f" in {steps:,} steps" if isinstance(steps, int) else ""
        text += f", {duration(took)}" if isinstance(took := train.get("seconds"), int | float) else ""
        text += f" on {machine}" if (machine := train.get("machine") or train.get("device")) else ""
        parts.append(text + ".")
        if found:
            parts.append(
                f"It was evaluated on {found['images']:,} images and {found['captions']:,} captions "
                "held out of training"
                + (
                    f", {zero['images']:,} of them for the names of {zero['classes']} kinds of thing."
                    if zero
                    else "."
                )
            )
        return " ".join(parts)

    def cards(self) -> list[dict[str, Any]]:
        return [self._card(name, self.numbers[name]) for name in CARDS if name in self.numbers]

    def _card(self, name: str, held: dict[str, Any]) -> dict[str, Any]:
        metric, size = find(name), context(self.m, name)["gallery"]
        assert metric is not None
        value = value_text(metric, held["value"])
        lower = metric.higher_is_better is False
        card = {
            "name": title(name, metric),
            "value": value.removesuffix(PER_CENT),
            "unit": "%" if value.endswith(PER_CENT) else "",
            "bar": bar(metric, held),
            "interval": interval_text(metric, held),
            "chance": value_text(metric, held["chance"]),
            "gain": "lower is better" if lower else f"{gain(metric, held)} chance",
        }
        return card | ({"gallery": f"among {size:,} {metric.gallery}"} if size else {})

    def neighbours_lead(self) -> str:
        if not self.x.neighbours:
            return "No captions were retrieved."
        found = self.m.get("retrieval")
        if not found:  # images that all have the same caption
            return "Held-out images drawn at random, and the nearest captions."
        return (
            f"Held-out images drawn at random, and the nearest captions among all {found['distinct']:,}. A caption "
            "written for another image counts as wrong, even where it fits."
        )

    def mining(self) -> list[dict[str, str]]:
        return _facts(
            self.m.get("mining"),
            (
                ("images", "images"),
                ("phrases", "phrases"),
                ("boxes", "boxes accepted"),
                ("recall", "recall"),
                ("precision", "precision"),
                ("failures", "failures"),
                ("images_per_second", "images per second"),
            ),
        )

    def training(self) -> list[dict[str, str]]:
        train = self.m.get("train") or {}
        facts = _facts(
            train,
            (
                ("steps", "steps"),
                ("samples_seen", "samples seen"),
                ("images", "different images"),
                ("loss_first", "loss at the start"),
                ("loss_last", "loss at the end"),
                ("samples_per_second", "samples per second"),
                ("tokens_per_second", "tokens per second"),
                ("mfu", "model FLOPs utilisation"),
                ("data_wait", "time waited for data"),
                ("peak_memory_mb", "peak memory, MB"),
            ),
        )
        told = {
            "passes over the images": f"{train['samples_seen'] / train['images']:.1f}"
            if _passes(train)
            else "",
            "duration": duration(train["seconds"]) if isinstance(train.get("seconds"), int | float) else "",
            "machine": str(train.get("machine") or train.get("device") or ""),
            "processes": str(train.get("processes") or ""),
            "precision": str(train.get("precision") or ""),
        }
        return facts + [{"name": name, "value": value} for name, value in told.items() if value]


def duration(seconds: float) -> str:
    """A duration in its two largest units: 4 min 12 s, 3 h 5 min, 2 d 4 h."""
    rest = max(0, round(seconds))
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // small} {below}"
    return f"{rest} s"


def _passes(train: dict[str, Any]) -> str:
    """The different images behind the samples seen, in words; empty where their number is not recorded."""
    images, seen = train.get("images"), train.get("samples_seen")
    if not isinstance(images, int) or not isinstance(seen, int) or not images:
        return ""
    return f" ({images:,} images, {seen / images:.1f} passes)"


FRACTIONS = ("recall", "precision", "mfu", "data_wait")
"""Facts that are shown in per cent."""


def _facts(values: dict[str, Any] | None, names: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    held = [(key, name, (values or {}).get(key)) for key, name in names]
    return [
        {"name": name, "value": share(value) if key in FRACTIONS else number(value)}
        for key, name, value in held
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
