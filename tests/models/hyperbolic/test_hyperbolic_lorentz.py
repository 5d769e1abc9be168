"""The hyperboloid against mpmath, radii 1e-8 to 15, c 1e-3 to 10: 1e-12 in float64 and stated budgets in float32."""

import itertools
import math

import mpmath as mp
import pytest
import torch

from hyco.models.hyperbolic import lorentz as L
from hyco.models.hyperbolic import mean
from tests.oracle import hyperbolic_geometry as O

RADII = (1e-8, 1e-4, 1e-2, 0.3, 1.0, 4.0, 8.0, 15.0)


def points(dtype):
    """(c, v, x, y) with x, y at chosen radii: unrelated, nearly equal, and opposite pairs; c and points as rounded."""
    generator = torch.Generator().manual_seed(3)
    for c, r in itertools.product((1e-3, 1.0, 10.0), RADII):
        for s, kind in ((1e-3, "random"), (9.0, "random"), (1.001 * r, "near"), (r, "opposite")):
            e, d, v = torch.nn.functional.normalize(
                torch.randn(3, 4, generator=generator, dtype=torch.double)
            )
            e = {"random": e, "near": d + 1e-3 * e, "opposite": -d}[kind]
            c_here = torch.tensor(c, dtype=dtype)
            scale = [math.sinh(q) / q / math.sqrt(c) for q in (r, s)]
            x, y = (d * r * scale[0]).to(dtype), (e / e.norm() * s * scale[1]).to(dtype)
            yield c_here, (v * r / math.sqrt(c)).to(dtype), x, y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_function_agrees_with_fifty_digits(dtype):
    """To 1e-12 (float32: 2e-6) of the result, or to what ten roundings of the input coordinates would do to it."""
    worst: dict[str, float] = {}
    eps, digits = torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 2e-6
    offset, weights = torch.tensor([0.25], dtype=dtype), torch.tensor([1.0, 2.0], dtype=dtype)
    shear = torch.eye(4, dtype=dtype) + torch.eye(4, dtype=dtype).roll(1, 0).tril()
    for c, v, x, y in points(dtype):
        move = v / L.tangent_norm(x, v, c) / c.sqrt()
        plane = L.hyperplane_distance(x, v[None], offset, c)
        middle = mean.midpoint(torch.stack([x, y]), c, weights)
        for name, got, twin, tensors in (
            ("time", L.time(x, c), O.time, (x,)),
            ("distance", L.distance(x, y, c), O.distance, (x, y)),
            ("exp0", L.exp0(v, c, max_radius=99), O.exp0, (v,)),
            ("log0", L.log0(x, c), O.log0, (x,)),
            ("exp", L.exp(x, move, c), O.exp, (x, move)),
            ("log", L.log(x, y, c), O.log, (x, y)),
            ("transport", L.transport(x, y, move, c), O.transport, (x, y, move)),
            ("add", L.add(x, y, c), O.add, (x, y)),
            ("half_aperture", L.half_aperture(x, c), O.half_aperture, (x,)),
            ("exterior_angle", L.exterior_angle(x, y, c), O.exterior_angle, (x, y)),
            ("plane", plane, O.quarter_plane_distance, (x, v)),
            ("inner", L.inner(x, y, c), O.inner, (x, y)),
            ("gyration", L.gyration(x, y, v, c), O.gyration, (x, y, v)),
            ("scale", L.scale(0.25, x, c), O.quarter_scale, (x,)),
            ("matvec", L.matvec(shear, x, c), O.sheared, (x,)),
            ("geodesic", L.geodesic(x, y, 0.25, c), O.quarter_geodesic, (x, y)),
            ("tangent_norm", L.tangent_norm(x, move, c), O.tangent_norm, (x, move)),
            ("project_tangent", L.project_tangent(x, v, c), O.project_tangent, (x, v)),
            ("midpoint", middle, O.midpoint, (x, y)),
        ):
            worst[name] = max(
                worst.get(name, 0.0), O.excess(got, twin, tensors, mp.mpf(float(c)), eps, digits)
            )
    assert len(worst) == 19 and max(worst.values()) < 1, worst


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairwise_forms_agree_with_fifty_digits_within_their_stated_error(dtype):
    for c, _, x, y in points(dtype):
        C, X, Y = mp.mpf(float(c)), O.vec(x), O.vec(y)
        eps = torch.finfo(dtype).eps
        inner = float(L.pairwise_inner(x[None], y[None], c)[0, 0] - O.tensor(O.inner(X, Y, C)))
        assert abs(inner) <= 4 * eps * float(O.time(X, C) * O.time(Y, C))
        root = mp.sqrt(C)
        got = mp.mpf(float(L.pairwise_distance(x[None], y[None], c)[0, 0]))
        q = 4 * mp.sinh(root * got / 2) ** 2
        want = 4 * mp.sinh(root * O.distance(X, Y, C) / 2) ** 2
        budget = 8 * 2.2e-16 * C * (O.norm(X) + O.norm(Y)) ** 2
        assert abs(q - want) <= budget + 20 * eps * want * (1 + root * got)


def test_pairwise_equals_paired_for_close_points_in_float32():
    """A true distance of 1e-3 came out 15-230 % wrong in published code."""
    x = torch.randn(64, 32)
    y = x + 1e-3 * torch.nn.functional.normalize(torch.randn(64, 32), dim=-1)
    got = L.pairwise_distance(x, y, 1.0).diagonal()
    want = L.distance(x.double(), y.double(), 1.0)
    assert (got / want - 1).abs().max() < 1e-5
    inner = (x * y).sum(-1) - (L.time(x, 1.0) * L.time(y, 1.0)).squeeze(-1)
    naive = torch.acosh((-inner).clamp(min=1 + 1e-8))
    assert (naive / want - 1).abs().max() > 0.05


def test_a_number_that_is_not_finite_fails_the_comparison_with_fifty_digits():
    x = torch.ones(3)
    for bad in (math.nan, math.inf):
        assert O.excess(bad * x, O.log0, (x,), mp.mpf(1), 1e-7, 1e-6) == math.inf


def test_inner_product_keeps_its_bound():
    for r in (0.0, 1e-3, 4.0, 10.0):
        x = math.sinh(r) * torch.tensor([0.6, 0.8, 0.0])
        assert L.inner(x, x, 1.0) == -1 and L.inner(x, 1.1 * x, 2.0) <= -0.5


def test_geodesic_takes_a_share_for_each_point():
    x, y = torch.randn(2, 5, 3, dtype=torch.double).unbind()
    t = torch.linspace(-0.5, 1.5, 5, dtype=torch.double)
    curve = L.geodesic(x, y, t[:, None, None], 0.7)
    assert curve.shape == (5, 5, 3)
    for share, at in zip(t.tolist(), curve, strict=True):
        assert torch.allclose(at, L.exp(x, share * L.log(x, y, 0.7), 0.7))


def test_lift_keeps_direction_beyond_its_cap():
    v = torch.tensor([[30.0, -40.0], [1e6, 0.0], [3.0, 4.0]])
    x = L.exp0(v, 1.0)
    assert torch.allclose(x.norm(dim=-1), torch.tensor([2.0**15, 2.0**15, math.sinh(5.0)]), rtol=1e-5)
    assert torch.allclose(torch.nn.functional.normalize(x), torch.nn.functional.normalize(v))


def test_cone_edges():
    """Inside 2K/sqrt(c) the cone is everything; a point straight behind lies in every cone, the origin in none."""
    x = torch.tensor([[0.1, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert torch.allclose(L.half_aperture(x, 1.0), torch.tensor([math.pi / 2, math.pi / 2, math.asin(0.1)]))
    assert L.exterior_angle(x[2], 3 * x[2], 1.0) == 0
    assert torch.allclose(L.exterior_angle(x[2], 0 * x[2], 1.0), torch.tensor(math.pi))
    assert L.exterior_angle(x[2], x[2], 1.0) == 0


def test_half_precision_is_promoted_and_factors_broadcast():
    x, y = torch.randn(2, 5, 3, 8).unbind()
    assert L.distance(x.bfloat16(), y.bfloat16(), 1.0).dtype == torch.float32
    c = torch.tensor([0.1, 1.0, 4.0])
    for f in (L.distance, L.exterior_angle, L.inner, L.add, L.log, L.exp):
        both = f(x, y, c)
        for k in range(3):
            assert torch.allclose(both[:, k], f(x[:, k], y[:, k], float(c[k])), rtol=1e-4, atol=1e-5), f
    for f in (L.pairwise_distance, L.pairwise_inner):
        both = f(x.transpose(0, 1), y.transpose(0, 1), c)
        for k in range(3):
            assert torch.allclose(both[k], f(x[:, k], y[:, k], float(c[k])), rtol=1e-4), f


@pytest.mark.parametrize("c", [0.3, torch.tensor(2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1, 1), (7, 5), (13, 40), (0, 3), (3, 0)])
def test_distances_without_a_graph_are_those_with_one(sizes, dtype, c, monkeypatch):
    """Squared chords to the stated error, in blocks: points near the origin, far from it and near each other."""
    monkeypatch.setattr(L, "PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(L, "CHARTED_AT_ONCE", 4)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 6, generator=g, dtype=dtype) * 10 ** torch.randn(n, 1, generator=g) for n in sizes)
    if min(sizes):
        y[0] = x[-1] * 1.001
    x, y = x.to(dtype), y.to(dtype)
    plain = L.pairwise_distance(x.clone().requires_grad_(), y, c).detach()
    fast = L.pairwise_distance(x, y, c)
    assert fast.dtype == dtype and fast.shape == sizes
    q, want = (4 * torch.sinh(c**0.5 * d.double() / 2) ** 2 for d in (fast, plain))
    budget = 8 * 2.2e-16 * c * (x.norm(dim=1)[:, None] + y.norm(dim=1)).double() ** 2
    assert ((q - want).abs() <= budget + 8 * torch.finfo(dtype).eps * want * (1 + c**0.5 * plain)).all()
    with torch.no_grad():
        assert L.pairwise_distance(x.clone().requires_grad_(), y, c).equal(fast)
