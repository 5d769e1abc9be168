"""The two-dimensional view: HoroPCA against its definition, and what is drawn of it."""

import numpy as np
import pytest
import torch

from hyco.models.hyperbolic import lorentz
from hyco.pipeline.evaluation.metrics.geometry import Points
from hyco.pipeline.evaluation.report import horopca
from hyco.pipeline.evaluation.report.disk_chart import disk_chart
from hyco.pipeline.evaluation.report.projection import plane_view


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(dim, seed=0):
    return horopca.orthonormal(points(2, dim, seed=seed))


def plain_projection(x, w1, w2):
    """The projection by its definition, in Minkowski space.

    Solve for the part in the span of the two null vectors, then go along the normal of that span within the plane, to
    the side on which x lies.
    """
    metric = np.diag([-1.0, *np.ones(len(x))])
    full = np.array([np.sqrt(1 + x @ x), *x])
    null = np.stack([np.array([1.0, *w1]), np.array([1.0, *w2])])
    gram = null @ metric @ null.T
    inside = np.linalg.solve(gram, null @ metric @ full) @ null
    base = np.array([1.0, *np.zeros(len(x))])
    normal = base - np.linalg.solve(gram, null @ metric @ base) @ null
    normal /= np.sqrt(normal @ metric @ normal)
    rest = full - inside
    laid = inside + np.sign(rest @ metric @ normal) * np.sqrt(rest @ metric @ rest) * normal
    assert laid @ metric @ laid == pytest.approx(-1, abs=1e-9)
    return laid[1:]


def test_projection_equals_its_definition_and_keeps_the_horospheres():
    x, w = 1.5 * points(60, 7), orthonormal(7)
    laid = horopca.project(x, w)
    plain = [plain_projection(row.numpy(), w[0].numpy(), w[1].numpy()) for row in x]
    assert np.allclose((laid @ w).numpy(), plain, atol=1e-9)
    for n in (0, 1):
        assert torch.allclose(horopca.busemann(laid @ w, w[n]), horopca.busemann(x, w[n]), atol=1e-9)
    assert horopca.project(torch.zeros(1, 7).double(), w).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_points_of_a_plane_stay_where_they_are_and_the_plane_is_found(scale):
    """On both sides of the geodesic between the two directions."""
    w = orthonormal(12, seed=3)
    flat = scale * points(250, 2) * torch.tensor([1.3, 0.8])
    x = flat @ w
    assert torch.allclose(horopca.project(x, w), flat, atol=1e-6 * scale)
    found = horopca.fit(x)
    assert torch.allclose(found @ w.T @ w, found, atol=1e-3)
    laid = horopca.project(x, found)
    before, after = (lorentz.pairwise_distance(p, p, 1.0) for p in (x, laid))
    assert torch.allclose(before, after, atol=2e-3 * scale)
    assert horopca.disk(laid).norm(dim=1).max() < 1


def test_the_fitted_plane_keeps_more_than_the_main_tangent_directions():
    x = lorentz.exp0(points(200, 10) * torch.linspace(1.4, 0.2, 10), 1.0)
    start = torch.linalg.svd(lorentz.log0(x, 1.0), full_matrices=False).Vh[:2]

    def spread(directions):
        laid = horopca.project(x, directions)
        return lorentz.pairwise_distance(laid, laid, 1.0).square().mean()

    with torch.inference_mode():  # as the report is drawn
        found = horopca.fit(x)
    assert torch.allclose(found @ found.T, torch.eye(2).double(), atol=1e-9)
    assert spread(found) > spread(start) * 1.03
    assert torch.equal(horopca.fit(x), found)


def nodes(values):
    return {name: Points(some, np.arange(len(some))) for name, some in values.items()}


def test_a_product_is_shown_in_the_factor_it_spreads_in():
    x = torch.cat([0.1 * points(40, 3), points(40, 3, seed=1), 0.1 * points(40, 3, seed=2)], dim=1).float()
    view = plane_view(nodes({"image": x, "text": x[:0]}), torch.tensor([1.0, 0.5, 2.0]), 0)
    assert view.factor == 1 and set(view.points) == {"image"} and 0 < view.kept <= 1.001
    alone = plane_view(nodes({"image": x[:, 3:6]}), torch.tensor([0.5]), 0)
    assert alone.factor is None and np.allclose(alone.points["image"], view.points["image"])


@pytest.mark.parametrize("x", [torch.zeros(9, 4), torch.ones(9, 4), torch.arange(9.0)[:, None] / 4])
def test_collapsed_points_and_lines_are_drawn(x):
    view = plane_view(nodes({"image": x}), torch.ones(1), 0)
    assert np.isfinite(view.points["image"]).all() and np.isfinite(view.kept)


def test_a_flat_model_is_shown_by_its_main_directions():
    x = torch.nn.functional.normalize(points(500, 6) * torch.tensor([3, 2, 0.1, 0.1, 0.1, 0.1]), dim=1)
    view = plane_view(nodes({"image": x, "text": x[:20]}), None, 0)
    assert view.flat and view.kept > 0.9
    assert [len(view.points[name]) for name in ("image", "text")] == [300, 20]
    assert max(np.hypot(*p.T).max() for p in view.points.values()) < 1.1


def test_the_disk_holds_every_point_and_names_its_rings():
    inner = np.array([[0.1, 0.2], [-0.3, 0.1]])
    chart = disk_chart([("image", inner), ("text", inner[:0])], "two <points>", True)
    assert chart.count("h0") == 2 and "two &lt;points&gt;" in chart
    assert ">0.2<" in chart and 'class="ring"' in chart
    path = chart.split('d="M')[1].split('"')[0]
    places = [tuple(map(float, piece.split("h")[0].split())) for piece in path.split("M")]
    assert all(0 <= value <= 440 for place in places for value in place)
    assert "nan" not in disk_chart([("image", np.zeros((3, 2)))], "collapsed", True)
    whole = disk_chart([("image", np.array([[0.99, 0.0]]))], "far", True)
    assert 'r="216.0"' in whole
