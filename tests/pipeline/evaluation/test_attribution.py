"""Norm, angle and bias as readings of what is general: against loops in float64 and constructed spaces."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from hyco.models.hyperbolic import lorentz
from hyco.models.losses.rows import (
    POLAR_APERTURES,
    ObjectiveConfig,
    clip_objective,
    hycoclip_objective,
    meru_objective,
    polar_cones_objective,
)
from hyco.pipeline.evaluation.metrics.attribution import (
    Concepts,
    attribute,
    average_precision,
    by_depth,
    decreasing,
    direction,
    membership,
    separation,
)
from hyco.pipeline.evaluation.metrics.average_precision import expected_precision
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.document import new
from hyco.pipeline.evaluation.metrics.geometry import Points, shuffle
from hyco.pipeline.evaluation.report.tables import tables
from hyco.pipeline.evaluation.sections import keep, name_aperture
from tests.oracle import hycoclip_loss as oracle

FEW = Bootstrap(100)
C = torch.tensor([0.7])
# 0 and 1 are families, 2 and 3 below 0, 4 below 1, 5 below 2.
PARENT = np.array([-1, -1, 0, 0, 1, 2])


def random_concepts(seed: int, spread: float = 1.0) -> Concepts:
    """Concepts of PARENT at random points, with 12 images, each under a leaf."""
    draw = torch.Generator().manual_seed(seed)
    points, images = (spread * torch.randn(n, 5, generator=draw) for n in (6, 12))
    leaf = np.array([5, 3, 4] * 4)
    under = np.zeros((6, 12), bool)
    for image, name in enumerate(leaf):
        while name >= 0:
            under[name, image] = True
            name = PARENT[name]
    return Concepts(points, PARENT, images, under)


def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Minus the distance at curvature C."""
    return -lorentz.pairwise_distance(a, b, C[0])


def precision_by_loop(values: np.ndarray, right: np.ndarray) -> float:
    """For every right item: among the items that are ranked no lower, the fraction that is right."""
    found = [right[values >= one].mean() for one, hit in zip(values, right, strict=True) if hit]
    return float(np.mean(found))


def test_average_precision_equals_the_loop_with_ties_and_its_expectation_the_mean_over_orders():
    random = np.random.default_rng(0)
    for _ in range(20):
        values, right = random.integers(0, 6, 15).astype(float), random.random(15) < 0.4
        right[0] = True
        assert average_precision(values, right) == pytest.approx(precision_by_loop(values, right))
    right = np.array([True] * 3 + [False] * 9)
    drawn = [average_precision(random.permutation(12).astype(float), right) for _ in range(4000)]
    assert expected_precision(np.array([3]), 12)[0] == pytest.approx(np.mean(drawn), abs=0.015)


def test_retrieval_by_angle_and_score_equals_the_oracle():
    concepts = random_concepts(1)
    found = attribute(concepts, score, C, 0.1, FEW).numbers["hierarchical_retrieval"]
    c = C.double()[0]
    wanted = {"angle": [], "score": [], "norm": []}
    for name, own in zip(concepts.points.double(), concepts.under, strict=True):
        points = concepts.images.double()
        wanted["angle"].append(
            precision_by_loop(np.array([-float(oracle.exterior_angle(name, y, c)) for y in points]), own)
        )
        wanted["score"].append(
            precision_by_loop(np.array([-float(oracle.distance(name, y, c)) for y in points]), own)
        )
        wanted["norm"].append(precision_by_loop(points.norm(dim=1).numpy(), own))
    for reading, each in wanted.items():
        assert found[reading] == pytest.approx(np.mean(each), abs=1e-6), reading
    assert found["n"] == 6 and found["by_depth"].keys() == {"1", "2", "3"}
    assert found["by_depth"]["3"]["angle"] == pytest.approx(wanted["angle"][5], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_angle_tells_direction_exactly_as_the_norm_does(seed):
    """At which of two points the other has the smaller exterior angle is at which the norm is smaller."""
    found = direction(random_concepts(seed, spread=10.0 ** (seed - 2)), C)
    assert found["angle"] == found["norm"] and found["n"] == 4


def test_direction_reads_order_and_bias_from_constructed_names():
    """Norms that fall with depth are read as wrong; a component that grows with depth is learned."""
    depth = np.array([1, 1, 2, 2, 2, 3])
    points = torch.zeros(6, 8)
    points[:, 0] = torch.from_numpy(depth).float()
    points[:, 1] = 4
    points /= points.norm(dim=1, keepdim=True) * torch.from_numpy(depth).float()[:, None]
    concepts = Concepts(points, PARENT, torch.zeros(0, 8), np.zeros((6, 0), bool))
    found = direction(concepts, C)
    assert found["norm"] == 0.0 and found["bias"] == 1.0
    assert concepts.depth().tolist() == depth.tolist() and concepts.family().tolist() == [0, 1, 0, 0, 1, 0]


def test_thresholds_help_where_names_need_them():
    """Names whose angles are shifted: the shift as a function of the norm is learned from other images."""
    random = np.random.default_rng(3)
    under = random.random((20, 60)) < 0.3
    shift = np.linspace(0, 1.2, 20)
    angle = np.where(under, 0.5, 0.9) + shift[:, None] + 0.05 * random.standard_normal((20, 60))
    falling = membership(under, angle, 2 - shift, aperture=np.zeros(20))
    for reading in ("angle_and_norm", "angle_and_bias"):
        assert falling[reading] > 0.99 > 0.7 > falling["angle"] == falling["aperture"]
    rising = membership(under, angle, 2 + shift, aperture=0.7 + shift)
    assert rising["aperture"] > 0.99 and rising["angle_and_norm"] < 0.9
    assert falling["norm"] < 0.4 and falling["chance"]["norm"] == pytest.approx(under.mean(), abs=0.01)


def test_nothing_to_rank_is_counted_and_a_value_that_is_not_finite_is_refused():
    angle = np.ones((2, 3))
    for under in (np.ones((2, 3), bool), np.zeros((2, 3), bool)):
        assert membership(under, angle, np.ones(2), np.zeros(2)) == {"pairs": 6}
    under = np.array([[True, False, True]] * 2)
    for wrong in (math.inf, math.nan):
        with pytest.raises(ValueError, match="not finite"):
            membership(under, angle, np.ones(2), aperture=np.array([0.0, wrong]))


def test_images_of_one_label_have_a_report():
    """Every image lies under the same names: no name has a ranking of its own."""
    concepts = random_concepts(4)
    concepts = dataclasses.replace(concepts, under=np.array([[True] * 12] * 3 + [[False] * 12] * 3))
    metrics = new("run", "attribution")
    keep(metrics, "attribution", attribute(concepts, score, C, 0.1, FEW))
    (table,) = tables(metrics)
    assert table["note"] == "0 names of the tree and the images under them" and len(table["rows"]) > 3


def test_the_nearest_non_increasing_function():
    x, y = np.array([3.0, 1.0, 2.0, 4.0, 2.0]), np.array([2.0, 1.0, 3.0, 0.0, 5.0])
    # By x: 1 -> 1; 2 -> 3, 5; 3 -> 2; 4 -> 0. The first three values pool to 3.
    assert decreasing(x, y).tolist() == [2.0, 3.0, 3.0, 0.0, 3.0]


def test_the_report_by_depth_equals_the_oracle():
    concepts, k = random_concepts(2, spread=0.15), 0.1
    found, c = by_depth(concepts, C, k), C.double()[0]
    points, images = concepts.points.double(), concepts.images.double()
    radius = (c.sqrt() * points.norm(dim=1)).numpy()

    def inside(name: int, point: torch.Tensor) -> bool:
        angle = oracle.exterior_angle(points[name], point, c)
        return bool(angle <= oracle.half_aperture(points[name], c, k))

    for depth, rows in (("1", [0, 1]), ("2", [2, 3, 4]), ("3", [5])):
        entry = found[depth]
        assert entry["saturated"] == pytest.approx(np.mean(radius[rows] <= 2 * k))
        assert entry["radius"]["q50"] == pytest.approx(np.median(radius[rows]), rel=1e-5)
        below = [(n, images[i]) for n in rows for i in range(12) if concepts.under[n, i]]
        assert entry["image"]["true"] == pytest.approx(np.mean([inside(*pair) for pair in below]))
        children = [(PARENT[n], points[n]) for n in rows if PARENT[n] >= 0]
        if children:
            assert entry["child"]["true"] == pytest.approx(np.mean([inside(*pair) for pair in children]))
            assert entry["order"] == np.mean([radius[PARENT[n]] < radius[n] for n in rows])
    assert "child" not in found["1"] and math.isfinite(found["1"]["image"]["shuffled"])


def test_separation_is_what_the_best_threshold_keeps():
    """Against the oracle's angles and distances, with the threshold found by counting shuffled pairs."""
    draw, c = torch.Generator().manual_seed(5), C.double()[0]
    text = torch.randn(40, 5, generator=draw, dtype=torch.float64)
    image = 2 * text + torch.randn(40, 5, generator=draw, dtype=torch.float64)
    nodes = {"text": Points(text, np.arange(40)), "image": Points(image, np.arange(40))}
    true = np.stack([np.arange(40)] * 2, 1)
    pairs = {("text", "image"): true, ("text_box", "text"): np.zeros((0, 2), np.int64)}
    found = separation(nodes, pairs, score, C)
    assert found.keys() == {"text>image"}
    readings = {
        "angle": lambda x, y: -float(oracle.exterior_angle(x, y, c)),
        "score": lambda x, y: -float(oracle.distance(x, y, c)),
        "norm": lambda x, y: float(y.norm() / x.norm()),
    }
    false = shuffle(true, 0)
    for name, read in readings.items():
        own, other = ([read(text[i], image[j]) for i, j in index] for index in (true, false))
        least = min(v for v in own + other if np.mean(np.array(other) >= v) <= 0.1)
        assert found["text>image"][name] == pytest.approx(np.mean(np.array(own) >= least), abs=1 / 40), name
    assert found["text>image"]["angle"] > 0.5 > found["text>image"]["norm"]
    flat = separation(nodes, pairs, lambda a, b: a @ b.T, None)
    assert flat["text>image"].keys() == {"score"}


def test_a_euclidean_model_has_the_score_alone():
    concepts = random_concepts(4)
    numbers = attribute(concepts, lambda a, b: a @ b.T, None, 0.1, FEW).numbers
    assert numbers.keys() == {"hierarchical_retrieval"} and "angle" not in numbers["hierarchical_retrieval"]


@pytest.mark.parametrize(
    ("objective", "k"),
    [
        (polar_cones_objective(), POLAR_APERTURES["text_box"]),
        (hycoclip_objective(), 0.1),
        (dataclasses.replace(meru_objective(), aperture=0.2), 0.2),
        (clip_objective(), 0.1),
    ],
)
def test_the_cone_of_a_name_is_that_of_a_phrase(objective, k):
    """Where the kinds of general have apertures of their own; in every order of the rows."""
    told = json.loads(TypeAdapter(ObjectiveConfig).dump_json(objective))
    assert name_aperture(told) == k
    assert name_aperture(told | {"entailment": told["entailment"][::-1]}) == k
    assert name_aperture({}) == 0.1
