"""The panels of the report that draw: errors along the tree, the shape of the space."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hyco.pipeline.evaluation.answers import Answers, by_class
from hyco.pipeline.evaluation.metrics.document import measured
from hyco.pipeline.evaluation.report.charts import number, ridges, share
from hyco.pipeline.evaluation.report.curves import MINUS, NODE_NAMES, TONES
from hyco.pipeline.evaluation.report.disk_chart import disk_chart
from hyco.pipeline.evaluation.report.projection import View

FAR = 10
"""Quotient of the radii of pictures and texts from which a walk is said to pass its texts at its end."""


@dataclass(frozen=True)
class Exhibits:
    """The page's content besides metrics.json; every field may be empty."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    radii: dict[str, Float[np.ndarray, " M"]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    depths: dict[str, list[float]] | None = None
    depth_examples: list[str] = field(default_factory=list)
    families: tuple[tuple[str, ...], Int[np.ndarray, "F F"]] | None = None
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    strips: list[dict[str, Any]] = field(default_factory=list)
    plane: View | None = None
    answers: Answers | None = None
    config: dict[str, Any] = field(default_factory=dict)
    lineage: list[tuple[str, str]] = field(default_factory=list)
    draws: int = 1000
    images: list[str] = field(default_factory=list)  # keys of all images of which it may show one


def class_rows(x: Exhibits) -> list[dict[str, Any]]:
    """Rows of the table per class, the worst class first; none without answers."""
    return [
        {
            "name": row.name,
            "images": f"{row.images:,}",
            "right": share(row.right / row.images),
            "wrong": f"{row.wrong} ({row.times:,})" if row.wrong else "",
        }
        for row in (by_class(x.answers) if x.answers else ())
    ]


def tree_panel(x: Exhibits) -> dict[str, Any] | None:
    """Errors by depth on the tree and the confusion of families; None without them."""
    if not x.depths or not x.families:
        return None
    model, chance = x.depths["model"], x.depths["chance"]
    names = ["Right", "Wrong, nothing shared"]
    names += [f"Wrong, {depth} level{'s' * (depth > 1)} shared" for depth in range(1, len(model) - 1)]
    rows = []
    # From the mildest to the worst: right, then the deepest common ancestor first.
    for index in [0, *range(len(model) - 1, 0, -1)]:
        example = "" if index == 0 else f"for example both are a kind of {x.depth_examples[index - 1]}"
        if index == 1:
            example = f"only {x.depth_examples[0]} in common"
        rows.append(
            {
                "name": names[index],
                "example": example,
                "model": share(model[index]),
                "model_width": round(100 * model[index], 2),
                "chance_width": round(100 * chance[index], 2),
                "tip": f"{names[index]}: {share(model[index])}, by chance {share(chance[index])}",
            }
        )
    families, counts = x.families
    matrix = []
    for name, row in zip(families, counts, strict=True):
        total = int(row.sum())
        if not total:
            continue
        cells = [
            {
                "share": round(float(count) / total, 3),
                "text": f"{100 * count / total:.0f}" if count / total >= 0.01 else "",
                "own": other == name,
                "tip": f"{name} answered with {other}: {count:,} of {total:,}",
            }
            for other, count in zip(families, row, strict=True)
        ]
        matrix.append({"name": name, "count": f"{total:,}", "cells": cells})
    wrong = 1.0 - model[0]
    near = sum(model[2:]) / wrong if wrong > 0 else 0.0
    expected = sum(chance[2:]) / max(1.0 - chance[0], 1e-9)
    lead = f"Of its wrong answers, {share(near)} are in the right family ({share(expected)} by chance)."
    return {
        "lead": lead if wrong > 0 else "It made no errors.",
        "depths": rows,
        "families": families,
        "matrix": matrix,
        "mistakes": x.mistakes,
    }


def walks_panel(x: Exhibits, metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Strips of walks to the root; None without them."""
    found = {key: held for key, _, held in measured(metrics, "traversal")}
    if not x.strips or not found:
        return None
    distinct = found["traversal.texts.distinct"]["value"]
    lead = f"On the way from a picture to the root, {number(distinct, 2)} different texts are nearest on average. "
    near, far = (found.get(f"traversal.texts.phrases_{end}") for end in ("near_image", "near_root"))
    if near and far:
        lead += (
            f"Close to the picture {share(near['value'])} of the nearest texts are phrases, close to the root "
            f"{share(far['value'])}; of all texts, {share(far['chance'])} are."
        )
    radius = (metrics.get("geometry") or {}).get("radius", {})
    reach = max((radius[n]["q95"] for n in ("text", "text_box") if n in radius), default=0.0)
    start = radius["image"]["q50"] if "image" in radius else 0.0
    if 0 < reach < start / FAR:
        lead += (
            f" Nearly all texts lie within {number(reach)} of the origin and the median picture at {number(start)}, so "
            "the last of these equal steps decide between texts."
        )
    return {"lead": lead, "strips": x.strips}


def plane_panel(x: Exhibits) -> dict[str, Any] | None:
    """The disk with its legend and description; None without it."""
    view = x.plane
    if view is None:
        return None
    names = [name for name in ("image", "image_box", "text", "text_box") if name in view.points]
    label = "Two-dimensional view: " + ", ".join(f"{len(view.points[n])} of {NODE_NAMES[n]}" for n in names)
    kept = f"The plane preserves {share(view.kept)} of the mean squared distance between the points."
    if view.flat:
        how = "The unit vectors of a Euclidean model by their two principal directions; the rings are distances."
    else:
        how = (
            "HoroPCA: each point is projected along horospheres to a plane through the origin, drawn as Poincaré disk; "
            "the rings are radii √c |x|."
        )
    if view.factor is not None:
        how += f" Shown is factor {view.factor + 1} of the product, the one with the largest spread of the points."
    return {
        "chart": disk_chart([(TONES[n], view.points[n]) for n in names], label, not view.flat),
        "legend": [{"name": NODE_NAMES[n], "tone": TONES[n], "value": "", "dashed": False} for n in names],
        "note": f"{how} {kept}",
    }


def space_panel(x: Exhibits, shape: dict[str, Any] | None) -> dict[str, Any] | None:
    """Radii, their order and the cones; None without a geometry report."""
    if not shape:
        return None
    generals = {pair.split(">")[0] for pair in shape["satisfied"]}
    edges = {n: shape.get("edge", {}).get(n, 2 * shape["k"]) for n in generals}
    rows = [(NODE_NAMES[n], TONES[n], x.radii[n], edges.get(n)) for n in NODE_NAMES if n in x.radii]
    rows.sort(key=lambda row: float(row[2].mean()))
    means = {name: entry["mean"] for name, entry in shape["radius"].items()}
    order = []
    for pair, entry in shape["order"].items():
        first, second = pair.split("<")
        text = f"{NODE_NAMES[first].capitalize()} nearer the origin than {NODE_NAMES[second]}: "
        text += f"{number(means[first])} against {number(means[second])} on average"
        text += f", and in {share(entry['pairs'])} of the pairs." if "pairs" in entry else "."
        order.append({"holds": entry["holds"], "text": text})
    label = "Radius by node type: " + ", ".join(f"{n} mean {number(float(v.mean()))}" for n, _, v, _ in rows)
    return {
        "lead": f"Curvature {MINUS}{number(shape['curvature'])}. General concepts should lie near the origin, "
        "specific ones further out, and every specific one inside the cone of its general one.",
        "ridges": ridges(rows, label),
        "order": order,
        "cones": [_cone(pair, entry) for pair, entry in shape["satisfied"].items()],
        "nodes": [
            {
                "name": NODE_NAMES[name].capitalize(),
                "tone": TONES[name],
                "quantiles": [number(entry[q]) for q in ("q05", "q25", "q50", "q75", "q95")],
                "saturated": share(shape["saturated"][name]),
            }
            for name, entry in shape["radius"].items()
        ],
    }


def depth_rows(found: dict[str, Any] | None) -> list[list[str]]:
    """Cells of the geometry of the taxonomy's names, a row per depth; none without names or cones."""
    rows = []
    for depth, entry in ((found or {}).get("depth") or {}).items():
        radius = entry["radius"]
        row = [depth, f"{radius['count']:,}", *(number(radius[q]) for q in ("q05", "q50", "q95"))]
        row += [share(entry["saturated"]), share(entry["order"]) if "order" in entry else ""]
        for kind in ("child", "image"):
            inside = entry.get(kind, {})
            row += [share(inside[which]) if which in inside else "" for which in ("true", "shuffled")]
        rows.append(row)
    return rows


def separation_rows(found: dict[str, Any] | None) -> list[list[str]]:
    """Cells of the pairs that a threshold on score, angle and norm keeps, a row per kind of pair."""
    rows = []
    for pair, kept in ((found or {}).get("separation") or {}).items():
        general, specific = (NODE_NAMES[name] for name in pair.split(">"))
        name = f"{general.capitalize()} contains {specific}"
        rows.append([name, *(share(kept[key]) if key in kept else "" for key in ("score", "angle", "norm"))])
    return rows


def _cone(pair: str, entry: dict[str, Any]) -> dict[str, Any]:
    general, specific = (NODE_NAMES[name] for name in pair.split(">"))
    true, shuffled = entry["true"], entry.get("shuffled")
    low, high = sorted((true, true if shuffled is None else shuffled))
    angle = f"{entry['true_angle']:.0f}°"
    angle += f" against {entry['shuffled_angle']:.0f}° shuffled" if shuffled is not None else ""
    return {
        "name": f"{general.capitalize()} contains {specific}",
        "true": share(true),
        "shuffled": "" if shuffled is None else share(shuffled),
        "true_at": round(100 * true, 2),
        "shuffled_at": 0 if shuffled is None else round(100 * shuffled, 2),
        "low": round(100 * low, 2),
        "width": round(100 * (high - low), 2),
        "note": f"angle {angle}; limit {entry['eta']} of {entry['aperture']:.0f}°",
        "tip": f"{entry['pairs']:,} true pairs",
    }
