"""Traversals from images to the root of the space, and the nearest items on the way (MERU, Desai et al. 2023).

In hyperbolic geometry the root is the origin and the walk a straight line in the tangent space there, lifted:
exp_0(t log_0 x), t from 1 to 0; in a product, so in every factor. Unit vectors have no origin: their root is the
normalised mean of the texts and images, and the walk a straight line to it, normalised again. The root itself is a
candidate for the nearest. In a model with general concepts near the root, the nearest texts become more general on the
way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from hyco.models.hyperbolic import product
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.order import Score
from hyco.pipeline.evaluation.metrics.retrieval import CHUNK

STEPS = 50


def root_of(curvatures: Float[Tensor, " k"] | None, *points: Float[Tensor, "_ D"]) -> Float[Tensor, " D"]:
    """The end of the walks: the origin, or the normalised mean of the points of a Euclidean model."""
    if curvatures is not None:
        return points[0].new_zeros(points[0].shape[1])
    return F.normalize(torch.stack([some.mean(0) for some in points if len(some)]).mean(0), dim=0)


def walk(
    points: Float[Tensor, "N D"],
    curvatures: Float[Tensor, " k"] | None,
    root: Float[Tensor, " D"],
    steps: int = STEPS,
    *,
    least: float = 0.0,
) -> Float[Tensor, "N S D"]:
    """Points on the way to the root, both ends included.

    With `least`, the steps shrink by a factor instead of being equal, down to this fraction of the way; then the
    root follows. So the walk spends as many steps between .01 and .1 of the distance as between .1 and 1.
    """
    if least:
        way = torch.logspace(0, math.log10(least), steps - 1, dtype=points.dtype, device=points.device)
        t = torch.cat([way, way.new_zeros(1)])[:, None]
    else:
        t = torch.linspace(1, 0, steps, dtype=points.dtype, device=points.device)[:, None]
    if curvatures is None:
        return F.normalize(t * points[:, None] + (1 - t) * root, dim=-1)
    factors = curvatures.numel()
    velocity = product.log0(points, curvatures, factors)[:, None]
    return product.exp0(t * velocity, curvatures, factors)


def nearest(
    score: Score, way: Float[Tensor, "N S D"], pool: Float[Tensor, "K D"], root: Float[Tensor, " D"]
) -> Int[np.ndarray, "N S"]:
    """Index of the nearest of the pool at each step; K where the root is nearest."""
    pool = torch.cat([pool, root[None].to(pool.dtype)])
    queries = way.flatten(0, 1)
    rows = max(1, CHUNK // len(pool))
    found = [score(block, pool).argmax(dim=1) for block in torch.split(queries, rows)]
    return torch.cat(found).view(way.shape[:2]).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of a walk. `general` marks the general ones (phrases, parts), `own` those of each image."""

    size: int
    general: Bool[np.ndarray, " K"]
    own: Bool[np.ndarray, "N K"]


def met(index: Int[np.ndarray, "N S"], pool: Pool, general: str, bootstrap: Bootstrap) -> MetricResult:
    """The nearest items in the half close to the image and in the half close to the root, the root left out.

    distinct: number on one walk; GENERAL_near_image, GENERAL_near_root: fraction of steps at which a general one is
        nearest; own_near_image, own_near_root: one of the image's own; root: fraction of steps at which the root is.
        Chance is a uniform draw from the pool.
    """
    there = index < pool.size
    inside = np.minimum(index, pool.size - 1)
    rows = np.arange(len(index))[:, None]
    half = np.arange(index.shape[1]) < index.shape[1] // 2
    marks = {general: pool.general[inside], "own": pool.own[rows, inside]}
    numbers: dict = {"distinct": 0.0}
    spans: dict = {}
    for name, mark in marks.items():
        for end, part in (("near_image", half), ("near_root", ~half)):
            asked = (there & part).sum(axis=1, dtype=np.float64)[:, None]
            hits = (there & part & mark).sum(axis=1, dtype=np.float64)[:, None]
            if asked.any():
                numbers[f"{name}_{end}"] = float(hits.sum() / asked.sum())
                spans[f"{name}_{end}"] = bootstrap.fractions(hits, asked)[0]
    counts = np.array([len(np.unique(row[row < pool.size])) for row in index], np.float64)
    each = np.stack([counts, (~there).mean(axis=1)], axis=1)
    numbers["distinct"], numbers["root"] = map(float, each.mean(axis=0))
    spans["distinct"], spans["root"] = bootstrap.means(each)
    chance = {general: float(pool.general.mean()), "own": float(pool.own.mean())}
    numbers["chance"] = {
        key: chance[key.rpartition("_near")[0]] for key in numbers if key.rpartition("_near")[0] in chance
    }
    return MetricResult(numbers | {"n": len(index), "pool": pool.size}, spans)


def climbs(
    index: Int[np.ndarray, "N S"],
    truth: Int[np.ndarray, " N"],
    above: Bool[np.ndarray, "K K"],
    bootstrap: Bootstrap,
) -> MetricResult:
    """The walk over the names of a tree: `above[i, j]` says that j is an ancestor of i; truth is a leaf.

    on_path: fraction of steps (not the root's) at which the true leaf or one of its ancestors is nearest; ancestor: at
    which an ancestor is; rising: fraction of changes of the nearest name that go to an ancestor of the previous name;
    three_levels: fraction of walks whose nearest names lie at three or more depths of the tree; distinct as in `met`.
    Chance: a uniform draw from the names, and of a change, from the other names.
    """
    size = len(above)
    path = above | np.eye(size, dtype=bool)
    there = index < size
    inside = np.minimum(index, size - 1)
    on = there & path[truth[:, None], inside]
    moved = (inside[:, 1:] != inside[:, :-1]) & there[:, 1:] & there[:, :-1]
    up = moved & above[inside[:, :-1], inside[:, 1:]]
    depth, named = above.sum(axis=1), [np.unique(row[row < size]) for row in index]
    each = np.array([(len(row), len(np.unique(depth[row])) >= 3) for row in named], np.float64)
    numbers: dict = {"distinct": float(each[:, 0].mean()), "three_levels": float(each[:, 1].mean())}
    spans: dict = dict(zip(numbers, bootstrap.means(each), strict=True))
    chance = {}
    expected = (moved * above.sum(axis=1)[inside[:, :-1]] / max(size - 1, 1)).sum()
    for key, hits, asked, guess in (
        ("on_path", on, there, float(path[truth].mean())),
        ("ancestor", there & above[truth[:, None], inside], there, float(above[truth].mean())),
        ("rising", up, moved, float(expected / max(moved.sum(), 1))),
    ):
        right, all_of = (
            hits.sum(axis=1, dtype=np.float64)[:, None],
            asked.sum(axis=1, dtype=np.float64)[:, None],
        )
        if all_of.any():
            numbers[key], chance[key] = float(right.sum() / all_of.sum()), guess
            spans[key] = bootstrap.fractions(right, all_of)[0]
    return MetricResult(numbers | {"chance": chance, "n": len(index), "pool": size}, spans)


def stretches(row: Sequence[int] | Int[np.ndarray, " S"]) -> list[tuple[int, int, int]]:
    """One walk as stretches of the same nearest: (index, first step, steps)."""
    found: list[tuple[int, int, int]] = []
    for step, index in enumerate(row):
        if found and found[-1][0] == index:
            found[-1] = (int(index), found[-1][1], found[-1][2] + 1)
        else:
            found.append((int(index), step, 1))
    return found
