"""Laws that hold for every point, tried by hypothesis in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyco.models.hyperbolic import isometry, mean
from hyco.models.hyperbolic import lorentz as L
from hyco.models.hyperbolic import poincare as P

D = 3
radius = st.floats(-18, math.log(5.0)).map(math.exp)
curvatures = st.floats(math.log(1e-3), math.log(10)).map(math.exp)


@st.composite
def point(draw, c=1.0):
    v = torch.tensor(draw(st.lists(st.floats(-1, 1), min_size=D, max_size=D)), dtype=torch.double)
    r = draw(radius)
    return L.exp0(r * v / (v.norm() + 1e-9) / math.sqrt(c), c)


@st.composite
def cloud(draw, n):
    c = draw(curvatures)
    return c, *(draw(point(c)) for _ in range(n))


def near(a, b, size=1.0, tolerance=1e-9):
    return (a - b).abs().max() <= tolerance * (size + a.abs().max())


laws = settings(max_examples=60, deadline=None)


@laws
@given(cloud(3))
def test_translations_are_isometries(case):
    c, x, y, z = case
    d = L.distance(x, y, c)
    moved = L.distance(L.add(z, x, c), L.add(z, y, c), c)
    # Coordinates at radius 10 have cosh(10) times the rounding of their distance.
    blur = (
        1e-15
        * (L.time(z, c) * math.sqrt(c) * (1 + L.time(x, c) + L.time(y, c)) * math.sqrt(c)).item()
        / math.sqrt(c)
    )
    assert abs(d - moved) <= 1e-9 * (d + 1) / math.sqrt(min(c, 1)) + 1e3 * blur
    turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.double))[0]
    assert near(d, L.distance(x @ turn, y @ turn, c), 1e-3)


@laws
@given(cloud(2))
def test_exp_and_log_are_inverse(case):
    c, x, y = case
    assert L.distance(L.exp(x, L.log(x, y, c), c), y, c) * math.sqrt(c) < 1e-8
    v = L.log(x, y, c)
    assert abs(L.tangent_norm(x, v, c) - L.distance(x, y, c)) <= 1e-9 * (1 + 1 / math.sqrt(c))
    assert near(L.log0(L.exp0(x, c, max_radius=99), c), x, 0.0)
    bx, by = (isometry.lorentz_to_poincare(p, c) for p in (x, y))
    assert near(P.exp(bx, P.log(bx, by, c), c), by, 1e-6 / math.sqrt(c), 1e-7)


@laws
@given(cloud(2))
def test_left_cancellation(case):
    """(-x) + (x + y) = y."""
    c, x, y = case
    back = L.add(-x, L.add(x, y, c), c)
    assert L.distance(back, y, c) * math.sqrt(c) < 1e-6
    bx, by = (isometry.lorentz_to_poincare(p, c) for p in (x, y))
    assert near(P.add(-bx, P.add(bx, by, c), c), by, 1 / math.sqrt(c), 1e-7)
    assert near(P.difference(bx, P.add(bx, by, c), c), by, 1 / math.sqrt(c), 1e-7)


@laws
@given(cloud(3))
def test_distance_is_a_metric(case):
    c, x, y, z = case
    for d, points in (
        (L.distance, (x, y, z)),
        (P.distance, [isometry.lorentz_to_poincare(p, c) for p in (x, y, z)]),
    ):
        p, q, r = points
        xy, yz, xz = d(p, q, c), d(q, r, c), d(p, r, c)
        assert d(p, p, c) == 0 and torch.allclose(xy, d(q, p, c), rtol=1e-9, atol=1e-12)
        assert xz <= (xy + yz) * (1 + 1e-9) + 1e-9


@laws
@given(cloud(3))
def test_transport_keeps_lengths_and_comes_back(case):
    c, x, y, v = case
    v = v / (v.abs().max() + 1e-300)  # a vector of 1e-254 has a length that no square can hold
    v = v / (L.tangent_norm(x, v, c) * math.sqrt(c) + 1e-300)
    there = L.transport(x, y, v, c)
    assert abs(L.tangent_norm(y, there, c) - L.tangent_norm(x, v, c)) * math.sqrt(c) < 1e-7
    assert near(L.transport(y, x, there, c), v, 1.0, 1e-7)


@laws
@given(cloud(4))
def test_midpoints_are_equivariant_and_agree_on_all_charts(case):
    c, *points, shift = case
    x = torch.stack(points)
    w = torch.tensor([0.2, 1.0, 3.0], dtype=torch.double)
    middle = mean.midpoint(x, c, w)
    moved = mean.midpoint(L.add(shift.expand_as(x), x, c), c, w)
    assert L.distance(moved, L.add(shift, middle, c), c) * math.sqrt(c) < 1e-6
    ball = mean.midpoint_poincare(isometry.lorentz_to_poincare(x, c), c, w)
    klein = mean.midpoint_klein(isometry.lorentz_to_klein(x, c), c, w)
    assert near(ball, isometry.lorentz_to_poincare(middle, c), 1 / math.sqrt(c), 1e-7)
    assert near(klein, isometry.lorentz_to_klein(middle, c), 1 / math.sqrt(c), 1e-7)
    same = x[:1].expand(4, D)
    assert near(mean.midpoint(same, c), x[0], 1e-12) and near(mean.frechet_mean(same, c), x[0], 1e-9)


@laws
@given(cloud(4))
def test_frechet_mean_is_where_the_logs_cancel(case):
    c, *points, shift = case
    x = torch.stack([*points, shift])
    m = mean.frechet_mean(x, c)
    pull = L.log0(L.add(-m.expand_as(x), x, c), c).mean(0)
    assert pull.norm() * math.sqrt(c) < 1e-7
    assert (
        mean.frechet_variance(x, c) <= mean.frechet_variance(x, c, mean.midpoint(x, c)) * (1 + 1e-9) + 1e-12
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 0.2)])
def test_frechet_mean_converges_for_unequal_weights_far_out(dtype, tolerance):
    """Whole Newton steps overshoot here: one in twelve of these means was off by its radius."""
    torch.manual_seed(1)
    rays = torch.nn.functional.normalize(torch.randn(60, 5, 3, dtype=dtype), dim=-1)
    x = L.exp0(15 * torch.rand(60, 5, 1, dtype=dtype) * rays, 1.0, max_radius=99)
    w = torch.rand(60, 5, dtype=dtype) ** 4
    m = mean.frechet_mean(x, 1.0, w).double()
    logs = L.log0(L.add(-m.unsqueeze(1).expand_as(x), x.double(), 1.0), 1.0)
    pull = (logs * (w / w.sum(1, keepdim=True)).unsqueeze(-1)).sum(1)
    assert pull.norm(dim=-1).max() < tolerance


@laws
@given(cloud(2), st.floats(-1, 2))
def test_geodesics_run_at_constant_speed(case, t):
    c, x, y = case
    z = L.geodesic(x, y, t, c)
    d = L.distance(x, y, c)
    assert abs(L.distance(x, z, c) - abs(t) * d) * math.sqrt(c) < 1e-6
    assert L.distance(L.geodesic(x, y, 1.0, c), y, c) * math.sqrt(c) < 1e-7


@laws
@given(cloud(2))
def test_cones_nest_along_rays(case):
    """A point straight behind x lies in the cone of x: exterior angle 0, at most any half-aperture."""
    c, x, y = case
    if x.norm() > 1e-7:
        assert L.exterior_angle(x, 2.5 * x, c) < 1e-6
        angle = L.exterior_angle(x, y, c)
        assert 0 <= angle <= math.pi and 0 <= L.half_aperture(x, c) <= math.pi / 2 + 1e-12
