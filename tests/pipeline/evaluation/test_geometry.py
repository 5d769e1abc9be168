"""The geometry report against the law of cosines, and on spaces built to give a known answer."""

import math

import numpy as np
import pytest
import torch

from hyco.pipeline.evaluation.metrics.geometry import (
    Cone,
    Points,
    cone_report,
    geometry_report,
    radii,
    shuffle,
)
from tests.oracle import evaluation_metrics as plain


def points(tensor):
    return Points(tensor, np.arange(len(tensor)))


def ray(radius, angle):
    return [radius * math.cos(angle), radius * math.sin(angle)]


@pytest.mark.parametrize("c", [0.1, 1.0, 4.0])
def test_satisfied_share_equals_the_law_of_cosines(c):
    generator = torch.Generator().manual_seed(0)
    general = torch.randn(300, 3, generator=generator) * 0.4 / c**0.5
    specific = general * 2 + torch.randn(300, 3, generator=generator) * 0.1 / c**0.5
    report = cone_report(Cone("text", "image", 0.7), general, specific, c, 0.1)
    rows = list(zip(general.double().numpy(), specific.double().numpy(), strict=True))
    angles = [plain.exterior_angle(x, y, c) for x, y in rows]
    apertures = [plain.half_aperture(x, c, 0.1) for x, _ in rows]
    satisfied = np.mean([a <= 0.7 * w for a, w in zip(angles, apertures, strict=True)])
    assert 0.1 < satisfied < 0.95
    assert report["satisfied"] == pytest.approx(satisfied)
    assert report["angle"] == pytest.approx(math.degrees(np.mean(angles)), rel=1e-4)
    assert report["aperture"] == pytest.approx(math.degrees(np.mean(apertures)), rel=1e-6)


def test_a_space_built_in_order_reports_that_order():
    angles = [0.0, 1.5, 3.0, 4.5]
    nodes = {
        name: points(torch.tensor([ray(radius, angle) for angle in angles]))
        for name, radius in (("text_box", 0.3), ("image_box", 0.5), ("text", 0.6), ("image", 0.9))
    }
    same = np.stack([np.arange(4)] * 2, 1)
    pairs = dict.fromkeys((("text", "image"), ("text_box", "image_box"), ("image_box", "image")), same)
    report = geometry_report(nodes, pairs, c=4.0)
    assert report["radius"]["image"]["q50"] == pytest.approx(1.8)
    assert all(entry["holds"] for entry in report["order"].values())
    assert report["order"]["text<image"] == {"holds": True, "pairs": 1.0}
    assert "pairs" not in report["order"]["text_box<text"]
    assert set(report["satisfied"]) == {"text>image", "text_box>image_box", "image_box>image"}
    for entry in report["satisfied"].values():
        assert entry["true"] == 1.0
        assert entry["shuffled"] == 0.0
        assert entry["true_angle"] < 1e-3 < entry["shuffled_angle"]
    assert set(report["saturated"].values()) == {0.0}
    near = {name: points(p.points * 0.19) for name, p in nodes.items()}
    assert geometry_report(near, pairs, c=4.0)["saturated"] == {
        "text_box": 1.0, "image_box": 1.0, "text": 0.0, "image": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_a_constant_threshold_passes_as_many_shuffled_pairs_as_the_cones(spread):
    """Equal apertures are a constant threshold; unequal ones that mean nothing are worse than the best one."""
    draw = torch.Generator().manual_seed(1)
    direction = torch.nn.functional.normalize(torch.randn(400, 3, generator=draw, dtype=torch.float64), dim=1)
    radius = 0.25 + spread * torch.rand(400, 1, generator=draw, dtype=torch.float64)
    noise = torch.randn(400, 3, generator=draw, dtype=torch.float64)
    nodes = {"text": points(radius * direction), "image": points(2 * direction + 0.6 * noise)}
    true = np.stack([np.arange(400)] * 2, 1)
    cone = [Cone("text", "image", 1.0)]
    entry = geometry_report(nodes, {("text", "image"): true}, 1.0, 0.1, cone)["satisfied"]["text>image"]

    def angles(index):
        x, y = (nodes[n].points[index[:, side]].numpy() for side, n in enumerate(("text", "image")))
        return np.array([plain.exterior_angle(a, b, 1.0) for a, b in zip(x, y, strict=True)])

    own, others = angles(true), np.sort(angles(shuffle(true, 0)))
    passing = round(entry["shuffled"] * len(others))
    low, high = ((own <= others[place]).mean() for place in (passing - 1, passing))
    assert entry["shuffled"] > 0.02 and low - 1e-9 <= entry["constant"] <= high + 1e-9
    assert (entry["constant"] > entry["true"] + 0.01) == bool(spread)


def test_a_product_is_reported_factor_by_factor():
    """Two factors: the first as in a plain space, in the second everything lies at a tenth of its radius."""
    generator = torch.Generator().manual_seed(1)
    general = torch.randn(50, 3, generator=generator)
    specific = 1.5 * general + 0.2 * torch.randn(50, 3, generator=generator)
    c = torch.tensor([4.0, 0.25])
    pair = {("text", "image"): np.stack([np.arange(50)] * 2, 1)}
    cone = [Cone("text", "image", 0.7)]

    def report(x, y, c):
        return geometry_report({"text": points(x), "image": points(y)}, pair, c, cones=cone)

    parts = [report(s * general, s * specific, float(own)) for s, own in ((1.0, c[0]), (0.1, c[1]))]
    whole = report(torch.cat([general, 0.1 * general], 1), torch.cat([specific, 0.1 * specific], 1), c)
    assert whole["curvatures"] == [4.0, 0.25] and whole["curvature"] == 2.125
    assert "curvatures" not in parts[0]

    def mean(*names):
        values = parts
        for name in names:
            values = [value[name] for value in values]
        return pytest.approx(sum(values) / 2)

    assert whole["radius"]["text"]["mean"] == mean("radius", "text", "mean")
    assert whole["saturated"]["text"] == mean("saturated", "text") and 0 < whole["saturated"]["text"] < 1
    for name in ("true", "shuffled", "true_angle", "aperture"):
        assert whole["satisfied"]["text>image"][name] == mean("satisfied", "text>image", name)


def test_each_node_type_has_the_edge_of_its_own_cones():
    """As in polar_cones: phrases are saturated up to 2 * .005, captions up to 2 * .05, others by the report's K."""
    nodes = {
        n: points(torch.tensor([[r, 0.0]])) for n, r in (("text_box", 0.012), ("text", 0.09), ("image", 2.0))
    }
    cones = [
        Cone("text_box", "text", 1.0, 0.005),
        Cone("text_box", "image", 1.0, 0.004),
        Cone("text", "image", 1.0, 0.05),
    ]
    report = geometry_report(nodes, {}, 1.0, 0.1, cones)
    assert report["edge"] == {"text_box": 0.01, "text": 0.1, "image": 0.2}
    assert report["saturated"] == {"text_box": 0.0, "text": 1.0, "image": 0.0}


def test_occurrences_weigh_the_radii():
    nodes = {"text": Points(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), np.array([0, 0, 0, 1]))}
    assert geometry_report(nodes, {}, c=1.0)["radius"]["text"]["mean"] == pytest.approx(1.5)
    assert radii(torch.tensor([[3.0, 4.0]]), 4.0)[0] == pytest.approx(10.0)


def test_shuffled_pairs_are_never_true_pairs():
    random = np.random.default_rng(0)
    pairs = np.unique(random.integers(12, size=(60, 2)), axis=0)
    shuffled = shuffle(pairs, 0)
    true = set(map(tuple, pairs.tolist()))
    assert len(shuffled) > len(pairs) / 2
    assert not true & set(map(tuple, shuffled.tolist()))
    assert len(shuffle(np.array([[0, 0], [1, 0]]), 0)) == 0


def test_without_parts_only_the_wholes_are_reported():
    wholes = {"text": points(torch.eye(3)), "image": points(torch.eye(3) * 2)}
    empty = {"text_box": Points(torch.zeros(0, 3), np.zeros(0, np.int64))}
    report = geometry_report(wholes | empty, {("text", "image"): np.stack([np.arange(3)] * 2, 1)}, c=1.0)
    assert set(report["radius"]) == {"text", "image"}
    assert set(report["satisfied"]) == {"text>image"}
