"""Layout of a scene: groups of drawings on the page, their visible extents, and the true relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyco.demo.art import Art
from hyco.demo.taxonomy import Leaf

Look = tuple[Leaf, str | None]
Rect = tuple[float, float, float, float]
SMALL, LARGE = 0.27, 0.45  # longest side as a fraction of the page: below is "small", above is "large"
SHORTEST = 0.2  # no longest side is shorter than this (26 px of 128),
FULL, THIN = 0.16, 0.08  # no geometric mean of the sides than FULL (20 px of 128), no side than THIN (10 px)
VISIBLE = 0.6  # minimum uncovered fraction of a drawing


@dataclass(frozen=True)
class Group:
    """One to three drawings of one look."""

    leaf: Leaf
    color: str | None
    count: int
    size: str | None


@dataclass(frozen=True)
class Placed:
    """A drawing (RGBA) with its top left corner in pixels; it may stick out of the page."""

    group: int
    stamp: np.ndarray
    x: int
    y: int

    def window(self, side: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
        """Rows and columns (y0, y1, x0, x1) on the page, and the part of the drawing that falls there."""
        h, w = self.stamp.shape[:2]
        x0, y0, x1, y1 = max(self.x, 0), max(self.y, 0), min(self.x + w, side), min(self.y + h, side)
        return (y0, y1, x0, x1), self.stamp[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]


def _regions(n: int, rng: np.random.Generator) -> list[Rect]:
    """A rectangle (x0, y0, x1, y1) of the unit page for each of n groups, in random order."""
    lo, hi = 0.03, 0.97
    if n == 1:
        return [(lo, lo, hi, hi)]
    cut = rng.uniform(0.4, 0.6)
    if n == 2:
        roll = rng.random()
        if roll < 0.4:
            out = [(lo, lo, cut, hi), (cut, lo, hi, hi)]
        elif roll < 0.75:
            out = [(lo, lo, hi, cut), (lo, cut, hi, hi)]
        elif roll < 0.88:
            out = [(lo, lo, cut + 0.08, cut), (cut - 0.08, cut, hi, hi)]
        else:
            out = [(cut - 0.08, lo, hi, cut), (lo, cut, cut + 0.08, hi)]
    elif n == 3:
        roll = rng.random()
        third = (lo, 0.345, 0.655, hi)
        if roll < 0.25:
            out = [(third[i], lo, third[i + 1], hi) for i in range(3)]
        elif roll < 0.4:
            out = [(lo, third[i], hi, third[i + 1]) for i in range(3)]
        elif roll < 0.6:
            out = [(lo, lo, cut, 0.5), (cut, lo, hi, 0.5), (lo, 0.5, hi, hi)]
        elif roll < 0.8:
            out = [(lo, 0.5, cut, hi), (cut, 0.5, hi, hi), (lo, lo, hi, 0.5)]
        else:
            out = [(lo, lo, 0.5, cut), (lo, cut, 0.5, hi), (0.5, lo, hi, hi)]
    else:
        out = [(lo, lo, cut, 0.5), (cut, lo, hi, 0.5), (lo, 0.5, cut, hi), (cut, 0.5, hi, hi)]
    return [out[i] for i in rng.permutation(n)]


def _cells(region: Rect, n: int, rng: np.random.Generator) -> list[Rect]:
    """Split a region into n cells along its longer side, or two above one when it is nearly square."""
    x0, y0, x1, y1 = region
    wide, high = x1 - x0, y1 - y0
    if n == 3 and 0.7 < wide / high < 1.4:
        xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
        single = (x0 + wide / 4, ym, x1 - wide / 4, y1)
        cells = [(x0, y0, xm, ym), (xm, y0, x1, ym), single]
        if rng.random() < 0.5:
            cells = [(a, y0 + y1 - d, c, y0 + y1 - b) for a, b, c, d in cells]
        return cells
    if wide >= high * rng.uniform(0.8, 1.2):
        return [(x0 + wide * i / n, y0, x0 + wide * (i + 1) / n, y1) for i in range(n)]
    return [(x0, y0 + high * i / n, x1, y0 + high * (i + 1) / n) for i in range(n)]


def _angle(leaf: Leaf, rng: np.random.Generator) -> float:
    if "upright" in leaf.options:
        return 0.0 if rng.random() < 0.6 else float(rng.uniform(-6, 6))
    return float(rng.uniform(-60, 60) if "turn" in leaf.options else rng.uniform(-15, 15))


def size_word(length: float) -> str | None:
    """ "small", "large" or None for a longest side given as a fraction of the page."""
    return "small" if length < SMALL else "large" if length > LARGE else None


def arrange(
    looks: Sequence[Look], art: Art, side: int, rng: np.random.Generator, manner: str = "apart"
) -> tuple[list[Group], list[Placed]]:
    """Place one group for each (leaf, colour) on a page of `side` pixels.

    `manner` is "apart", or for two looks "stacked" (the first stands on the second) or "overlapping".
    """
    if manner == "stacked":
        return _stacked(looks, art, side, rng)
    if manner == "overlapping":
        return _overlapping(looks, art, side, rng)
    budget = 3 if len(looks) == 1 else 6
    groups, placed = [], []
    for number, ((leaf, color), region) in enumerate(zip(looks, _regions(len(looks), rng), strict=True)):
        most = min(
            3, budget - (len(looks) - number - 1), 1 if min(_span(region)) < 0.3 and len(looks) > 3 else 3
        )
        count = min(int(rng.choice((1, 2, 3), p=(0.6, 0.24, 0.16))), most)
        budget -= count
        want = rng.uniform(0.21, 0.64) if len(looks) == 1 else rng.uniform(0.21, 0.6)
        least = max(SHORTEST * 1.03, 1.1 * FULL * art.slimness(leaf, color) ** 0.5)
        flip, lengths = bool(rng.random() < 0.5), []
        for cell in _cells(region, count, rng):
            w, h = _span(cell)
            room = (max(w * side - 2, SHORTEST * side), max(h * side - 2, SHORTEST * side))
            length = max(want * rng.uniform(0.93, 1.07), least) * side
            turned = flip != (rng.random() < 0.15)
            stamp = art.stamp(leaf, color, length, _angle(leaf, rng), turned, room)
            sh, sw = stamp.shape[:2]
            lengths.append(max(sh, sw) / side)
            x = cell[0] * side + rng.uniform(0, 1) * (w * side - sw)
            y = cell[1] * side + rng.uniform(0, 1) * (h * side - sh)
            placed.append(Placed(number, stamp, round(x), round(y)))
        words = {size_word(length) for length in lengths}
        groups.append(Group(leaf, color, count, words.pop() if len(words) == 1 else None))
    return groups, placed


def _span(rect: Rect) -> tuple[float, float]:
    return rect[2] - rect[0], rect[3] - rect[1]


def _single(look: Look, stamp: np.ndarray, side: int) -> Group:
    return Group(*look, 1, size_word(max(stamp.shape[:2]) / side))


def _stacked(
    looks: Sequence[Look], art: Art, side: int, rng: np.random.Generator
) -> tuple[list[Group], list[Placed]]:
    """The first thing stands on the second."""
    (top, top_color), (base, base_color) = looks
    flip_a, flip_b = rng.random(2) < 0.5
    low = art.stamp(
        base, base_color, rng.uniform(0.42, 0.64) * side, 0, bool(flip_b), (0.7 * side, 0.5 * side)
    )
    high = art.stamp(
        top, top_color, rng.uniform(0.24, 0.42) * side, 0, bool(flip_a), (0.5 * side, 0.44 * side)
    )
    bh, bw = low.shape[:2]
    ah, aw = high.shape[:2]
    bx = round(rng.uniform(0.02, 0.98 - bw / side) * side)
    by = max(round(rng.uniform(0.78, 0.98) * side) - bh, ah - 4)
    ax = round(np.clip(bx + bw / 2 - aw / 2 + rng.uniform(-0.12, 0.12) * bw, 1, side - aw - 1))
    left, right = max(ax + aw // 4 - bx, 0), min(ax + 3 * aw // 4 - bx + 1, bw)
    solid = low[:, left:right, 3] > 128
    roof = int(np.argmax(solid.any(1))) if solid.any() else 0
    ay = by + roof + 2 - ah
    groups = [_single(looks[0], high, side), _single(looks[1], low, side)]
    return groups, [Placed(1, low, bx, by), Placed(0, high, ax, ay)]


def _overlapping(
    looks: Sequence[Look], art: Art, side: int, rng: np.random.Generator
) -> tuple[list[Group], list[Placed]]:
    """The first thing stands in front of the second and hides a part of it."""
    stamps = [
        art.stamp(
            leaf, color, rng.uniform(lo, hi) * side, _angle(leaf, rng), rng.random() < 0.5, (side, side)
        )
        for (leaf, color), lo, hi in zip(looks, (0.3, 0.42), (0.46, 0.6), strict=True)
    ]
    (ah, aw), (bh, bw) = stamps[0].shape[:2], stamps[1].shape[:2]
    bx, by = (rng.uniform(0.04, max(0.05, 0.92 - v / side)) * side for v in (bw, bh))
    away = 1 if bx + bw / 2 < side / 2 else -1
    ax = bx + bw / 2 - aw / 2 + away * rng.uniform(0.4, 0.75) * (aw + bw) / 2
    ay = by + bh - ah + rng.uniform(-0.1, 0.15) * side
    ax, ay = np.clip(ax, 1, side - aw - 1), np.clip(ay, 1, side - ah - 1)
    groups = [_single(look, stamp, side) for look, stamp in zip(looks, stamps, strict=True)]
    return groups, [Placed(1, stamps[1], round(bx), round(by)), Placed(0, stamps[0], round(ax), round(ay))]


def visible_boxes(placed: Sequence[Placed], side: int) -> tuple[tuple[int, int, int, int], ...] | None:
    """Visible extent (x0, y0, x1, y1) in pixels of each drawing; None if one is hidden, cut or too small."""
    owner = np.full((side, side), -1, np.int16)
    ink = []
    for number, item in enumerate(placed):
        (y0, y1, x0, x1), stamp = item.window(side)
        solid = stamp[..., 3] >= 64
        ink.append(int((item.stamp[..., 3] >= 64).sum()))
        owner[y0:y1, x0:x1][solid] = number
    boxes = []
    for number in range(len(placed)):
        mine = owner == number
        rows, cols = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
        if mine.sum() < VISIBLE * ink[number]:
            return None
        box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
        wide, high = (box[2] - box[0]) / side, (box[3] - box[1]) / side
        if max(wide, high) < SHORTEST - 0.02 or wide * high < FULL**2 or min(wide, high) < THIN:
            return None
        boxes.append(box)
    return tuple(boxes)


def facts_between(
    groups: Sequence[Group], placed: Sequence[Placed], boxes: Sequence[tuple[int, int, int, int]], side: int
) -> list[tuple[str, int, int]]:
    """True relations (name, a, b) between groups: left, above, on, front, near."""
    hull = []
    for number in range(len(groups)):
        own = np.array([box for item, box in zip(placed, boxes, strict=True) if item.group == number])
        hull.append((*own[:, :2].min(0), *own[:, 2:].max(0)))
    order = {item.group: rank for rank, item in enumerate(placed)}
    slack = 0.03 * side
    facts = []
    for a in range(len(groups)):
        for b in range(len(groups)):
            if a == b:
                continue
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = hull[a], hull[b]
            across = min(ax1, bx1) - max(ax0, bx0)
            down = min(ay1, by1) - max(ay0, by0)
            if ax1 <= bx0 + slack:
                facts.append(("left", a, b))
            stands = (
                len(groups) == 2
                and across > 0.5 * min(ax1 - ax0, bx1 - bx0)
                and -3 <= down <= 0.45 * (by1 - by0)
            )
            touching = (
                stands and ay0 < by0 and ay1 < by1 - 0.3 * (by1 - by0) and "base" in groups[b].leaf.options
            )
            if touching and down >= 1:
                facts.append(("on", a, b))
            elif ay1 <= by0 + slack:
                facts.append(("above", a, b))
            elif across > 4 and down > 4 and order[a] > order[b] and len(groups) == 2:
                facts.append(("front", a, b))
            if a < b and across < slack and down > 0.3 * min(ay1 - ay0, by1 - by0) and -across < 0.25 * side:
                facts.append(("near", a, b))
    return facts
