"""Which part of the geometry tells general from specific: the norm, the exterior angle, or a bias per concept.

Concepts are the names of a taxonomy without its root; a labelled image lies under the names of its labels and under
all their ancestors. Three questions, each with its chance level:

- direction: which name of a child and its parent is the general one. The name of smaller norm, or the one at which
  the other lies at the smaller exterior angle: these are one reading, since in a triangle the larger angle is opposite
  the longer side. Or a reading without norms: ridge regression of the depth on the direction, fitted on the other
  families of the tree.
- hierarchical_retrieval: given a name, the images under it, as the mean of the average precisions (AP) of the names.
- membership: all (name, image) pairs in one ranking (AP), so that the names need thresholds: none; the aperture, which
  is one function of the norm; the best non-increasing function of the norm; or a bias learned for every name. The last
  two are fitted on half of the images and read on the other half.

`separation` asks the same of the four kinds of pairs that objectives order: how many true pairs a threshold on a
reading keeps if it lets a tenth of the shuffled pairs pass. A cone cannot hold more than the best threshold.

Legend: N names, I images, D dim, k factors; angles are means over the factors, norms are sqrt(c)|x|.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hyco.models.hyperbolic import lorentz, product
from hyco.pipeline.evaluation.metrics.average_precision import expected_precision
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.geometry import (
    Cone,
    Points,
    cone_report,
    factor_radii,
    radius_summary,
    shuffle,
)
from hyco.pipeline.evaluation.metrics.order import Score
from hyco.pipeline.evaluation.metrics.ranked import Ranked
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy, parents_among, upward

RIDGE = 1.0
PASSING = 0.1  # of the shuffled pairs
PAIRS = 512  # scored at once
CONE = Cone("name", "image", 1.0)


@dataclass(frozen=True, slots=True)
class Concepts:
    """The names of a tree with their points, and the labelled images.

    Attributes:
        points: of the names, in the space of the model.
        parent: row of the parent, -1 below the root.
        images: points of the images.
        under: whether an image shows a thing of that name or of a name below it.
    """

    points: Float[Tensor, "N D"]
    parent: Int[np.ndarray, " N"]
    images: Float[Tensor, "I D"]
    under: Bool[np.ndarray, "N I"]

    @classmethod
    def of(
        cls,
        points: Float[Tensor, "N D"],
        tree: Taxonomy,
        rows: Sequence[int],
        images: Float[Tensor, "I D"],
        leaves: Sequence[Iterable[int]],
    ) -> "Concepts":
        """From the nodes of the names in the tree, `rows`, and the leaves that each image shows."""
        place = {node: n for n, node in enumerate(rows)}
        under = np.zeros((len(rows), len(images)), bool)
        for column, own in enumerate(leaves):
            for leaf in own:
                shown = (leaf, *upward(tree.parents, leaf))
                under[[place[node] for node in shown if node in place], column] = True
        return cls(points, parents_among(tree.parents, rows), images, under)

    def depth(self) -> Int[np.ndarray, " N"]:
        """Steps from the root to each name, 1 for its children."""
        return self._climb()[0]

    def family(self) -> Int[np.ndarray, " N"]:
        """Row of the child of the root above each name, or itself."""
        return self._climb()[1]

    def _climb(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        depth, top = np.ones(len(self.parent), np.int64), np.arange(len(self.parent))
        while (up := self.parent[top]).max(initial=-1) >= 0:
            depth += up >= 0
            top = np.where(up >= 0, up, top)
        return depth, top


def attribute(
    concepts: Concepts, score: Score, curvatures: Float[Tensor, " k"] | None, k: float, boot: Bootstrap
) -> MetricResult:
    """The three questions, for the readings that the space has; intervals over the names."""
    similar = score(concepts.points, concepts.images).double().cpu().numpy()
    readings = {"score": similar}
    numbers: dict = {}
    if curvatures is not None:
        angle = angles(concepts.points, concepts.images, curvatures)
        radius = {
            side: factor_radii(points, curvatures).mean(1)
            for side, points in (("name", concepts.points), ("image", concepts.images))
        }
        readings |= {"angle": -angle, "norm": np.broadcast_to(radius["image"], angle.shape)}
        aperture = lorentz.half_aperture(_split(concepts.points, curvatures), curvatures.double(), k)
        numbers["direction"] = direction(concepts, curvatures)
        numbers["membership"] = membership(
            concepts.under, angle, radius["name"], aperture.mean(-1).cpu().numpy()
        )
    found, spans = _retrieval(concepts, readings, boot)
    return MetricResult(numbers | {"hierarchical_retrieval": found}, spans)


def _retrieval(
    concepts: Concepts, readings: Mapping[str, Float[np.ndarray, "N I"]], boot: Bootstrap
) -> tuple[dict, dict]:
    asked = np.flatnonzero(concepts.under.any(1) & ~concepts.under.all(1))
    each = {
        name: np.array([average_precision(values[row], concepts.under[row]) for row in asked])
        for name, values in readings.items()
    }
    guess = expected_precision(concepts.under[asked].sum(1), concepts.under.shape[1])
    if not len(asked):
        return {"n": 0}, {}
    numbers: dict = {name: float(values.mean()) for name, values in each.items()}
    depth = concepts.depth()[asked]
    by_depth = {
        str(d): {name: float(values[depth == d].mean()) for name, values in each.items()}
        for d in np.unique(depth)
    }
    spans = {
        f"hierarchical_retrieval.{name}": boot.means(values[:, None])[0] for name, values in each.items()
    }
    chance = dict.fromkeys(each, float(np.mean(guess)))
    return numbers | {"chance": chance, "n": len(asked), "by_depth": by_depth}, spans


def membership(
    under: Bool[np.ndarray, "N I"],
    angle: Float[np.ndarray, "N I"],
    radius: Float[np.ndarray, " N"],
    aperture: Float[np.ndarray, " N"],
) -> dict:
    """AP of all pairs in one ranking, by angle minus each kind of threshold; "norm" is the radius without the angle.

    Only the number of pairs when all images lie under all names, or none under any.
    """
    if under.all() or not under.any():
        return {"pairs": int(under.size)}
    fits: dict[str, Callable[[Float[np.ndarray, " N"]], Float[np.ndarray, " N"]]] = {
        "angle": np.zeros_like,
        "aperture": lambda threshold: aperture,
        "angle_and_norm": lambda threshold: decreasing(radius, threshold),
        "angle_and_bias": lambda threshold: threshold,
    }
    halves = np.arange(under.shape[1]) % 2 == 0
    logits = {name: np.empty_like(angle) for name in fits}
    for half in (halves, ~halves):
        threshold = _thresholds(under[:, ~half], angle[:, ~half])
        for name, fit in fits.items():
            logits[name][:, half] = fit(threshold)[:, None] - angle[:, half]
    logits["norm"] = np.broadcast_to(-radius[:, None], angle.shape)
    numbers: dict = {name: average_precision(value.ravel(), under.ravel()) for name, value in logits.items()}
    chance = float(expected_precision(under.sum(keepdims=True).ravel(), under.size)[0])
    return numbers | {"chance": dict.fromkeys(logits, chance), "pairs": int(under.size)}


def _thresholds(under: Bool[np.ndarray, "N I"], angle: Float[np.ndarray, "N I"]) -> Float[np.ndarray, " N"]:
    """Half way between the mean angles of a name's own images and of the others; the mean where it has no images."""
    own, all_of = under.sum(1), under.shape[1]
    known = (own > 0) & (own < all_of)
    inside = (angle * under).sum(1) / np.maximum(own, 1)
    outside = (angle * ~under).sum(1) / np.maximum(all_of - own, 1)
    middle = (inside + outside) / 2
    return np.where(known, middle, middle[known].mean() if known.any() else 0.0)


def direction(concepts: Concepts, curvatures: Float[Tensor, " k"]) -> dict:
    """Fraction of (parent, child) names whose parent reads as the general one, by norm, angle and learned bias."""
    child = np.flatnonzero(concepts.parent >= 0)
    if not len(child):
        return {"pairs": 0}
    parent, depth, family = concepts.parent[child], concepts.depth(), concepts.family()
    high, low = (_split(concepts.points[torch.from_numpy(rows)], curvatures) for rows in (parent, child))
    c = curvatures.double()
    down, up = lorentz.exterior_angle(high, low, c).mean(-1), lorentz.exterior_angle(low, high, c).mean(-1)
    radius = factor_radii(concepts.points, curvatures).mean(1)
    points = concepts.points.double().cpu().numpy()
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    bias = np.empty(len(depth))
    for one in np.unique(family):
        fitted = family != one
        bias[~fitted] = _ridge(unit[fitted], depth[fitted].astype(float), unit[~fitted])
    right = {
        "norm": radius[parent] < radius[child],
        "angle": (down < up).cpu().numpy(),
        "bias": bias[parent] < bias[child],
    }
    numbers: dict = {name: float(hits.mean()) for name, hits in right.items()}
    return numbers | {"chance": dict.fromkeys(right, 0.5), "n": len(child)}


def _ridge(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, " N"], at: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, " M"]:
    if not len(x):
        return np.zeros(len(at))
    middle, mean = x.mean(0), y.mean()
    gram = (x - middle).T @ (x - middle) + RIDGE * np.eye(x.shape[1])
    return mean + (at - middle) @ np.linalg.solve(gram, (x - middle).T @ (y - mean))


def by_depth(concepts: Concepts, curvatures: Float[Tensor, " k"], k: float, seed: int = 0) -> dict:
    """The geometry report of the names at each depth: radii, saturated cones, pairs inside the cones, order.

    "child": the names of that depth in the cones of their parents; "image": the images under a name in its cone; each
    "true" and "shuffled". "order": fraction of the names whose parent has a smaller radius.
    """
    depth, found = concepts.depth(), {}
    radii = factor_radii(concepts.points, curvatures)
    radius, edge = radii.mean(1), (radii <= 2 * k).mean(1)
    for d in np.unique(depth):
        rows = np.flatnonzero(depth == d)
        entry: dict = {"radius": radius_summary(radius[rows]), "saturated": float(edge[rows].mean())}
        child = rows[concepts.parent[rows] >= 0]
        if len(child):
            entry["order"] = float((radius[concepts.parent[child]] < radius[child]).mean())
        name, image = np.nonzero(concepts.under[rows])
        kinds = {
            "child": (np.stack([concepts.parent[child], child], 1), concepts.points),
            "image": (np.stack([rows[name], image], 1), concepts.images),
        }
        for kind, (true, specific) in kinds.items():
            if len(true):
                entry[kind] = _inside(concepts.points, specific, true, curvatures, k, seed)
        found[str(d)] = entry
    return found


def _inside(
    general: Tensor, specific: Tensor, true: Int[np.ndarray, "M 2"], c: Tensor, k: float, seed: int
) -> dict[str, float]:
    found = {}
    for kind, index in (("true", true), ("shuffled", shuffle(true, seed))):
        if len(index):
            high, low = general[torch.from_numpy(index[:, 0])], specific[torch.from_numpy(index[:, 1])]
            found[kind] = cone_report(CONE, high, low, c, k)["satisfied"]
    return found


def separation(
    nodes: Mapping[str, Points],
    pairs: Mapping[tuple[str, str], Int[np.ndarray, "M 2"]],
    score: Score,
    curvatures: Float[Tensor, " k"] | None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """By "general>specific" and reading, the fraction of true pairs above the value that PASSING of the shuffled reach.

    Readings: "score"; with curvatures the exterior "angle", and the quotient of the radii of specific and general
    ("norm"). Pairs of one kind without shuffled ones are left out.
    """
    found = {}
    for (general, specific), true in pairs.items():
        false = shuffle(true, seed) if len(true) else true
        if not len(false):
            continue
        both = [
            _readings(nodes[general], nodes[specific], index, score, curvatures) for index in (true, false)
        ]
        found[f"{general}>{specific}"] = {
            name: float((own >= np.quantile(both[1][name], 1 - PASSING)).mean())
            for name, own in both[0].items()
        }
    return found


def _readings(
    general: Points, specific: Points, index: Int[np.ndarray, "M 2"], score: Score, c: Tensor | None
) -> dict[str, Float[np.ndarray, " M"]]:
    high = general.points[torch.from_numpy(index[:, 0])]
    low = specific.points[torch.from_numpy(index[:, 1])]
    blocks = zip(high.split(PAIRS), low.split(PAIRS), strict=True)
    readings = {"score": torch.cat([score(a, b).diagonal() for a, b in blocks]).double()}
    if c is not None:
        readings["angle"] = -lorentz.exterior_angle(_split(high, c), _split(low, c), c.double()).mean(-1)
        far, near = (torch.from_numpy(factor_radii(x, c).mean(1)) for x in (low, high))
        readings["norm"] = far / near.clamp(min=1e-12)
    return {name: values.cpu().numpy() for name, values in readings.items()}


def angles(
    general: Float[Tensor, "N D"], specific: Float[Tensor, "I D"], curvatures: Float[Tensor, " k"]
) -> Float[np.ndarray, "N I"]:
    """Exterior angle of every specific at every general, in radians, mean over the factors."""
    there = _split(specific, curvatures)
    c = curvatures.double()
    rows = [lorentz.exterior_angle(one, there, c).mean(-1) for one in _split(general, curvatures)[:, None]]
    return torch.stack(rows).cpu().numpy()


def _split(points: Tensor, curvatures: Tensor) -> Tensor:
    return product.split(points.double(), curvatures.numel())


def average_precision(values: Float[np.ndarray, " M"], right: Bool[np.ndarray, " M"]) -> float:
    """Mean over the right ones of the precision at their rank; equal values have their lowest rank.

    Raises ValueError without right or without other ones, and for a value that is not finite.
    """
    return Ranked.of(values[right], values[~right], ("right", "other")).numbers()["aupr"]


def decreasing(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The non-increasing function of x nearest to y in squares, at x (pool adjacent violators); equal x are pooled."""
    values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    blocks: list[tuple[float, int, int]] = []  # mean, weight, number of distinct x
    for mean, weight in zip(np.bincount(inverse, y) / counts, counts, strict=True):
        blocks.append((float(mean), int(weight), 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, m, i), (b, n, j) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n, i + j)]
    fitted = np.concatenate([np.full(number, mean) for mean, _, number in blocks])
    assert len(fitted) == len(values)
    return fitted[inverse]
