"""The ball and the charts against mpmath, HypLL and geoopt."""

import itertools
import math

import geoopt
import mpmath as mp
import pytest
import torch
from hypll.manifolds.poincare_ball.math import diffgeom as hypll
from hypll.manifolds.poincare_ball.math import linalg as hypll_linalg

from hyco.models.hyperbolic import isometry, mean, product
from hyco.models.hyperbolic import lorentz as L
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic import poincare as P
from hyco.models.hyperbolic.curvature import Curvature
from tests.oracle import hyperbolic_geometry as O


def ball_points(dtype):
    """(c, x, y, v, z): x, y in the Poincare ball and z in the Klein ball at chosen radii; v has length 1.

    x and y are unrelated, nearly equal or opposite.
    """
    torch.manual_seed(5)
    radii = (1e-8, 1e-3, 0.3, 2.0, 6.0, 15.0 if dtype == torch.float64 else 12.0)
    for c, r, s in itertools.product((1e-3, 1.0, 10.0), radii, radii):
        for kind in ("random", "near", "opposite") if r == s else ("random",):
            d, e, f = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.double))
            near = torch.nn.functional.normalize(d + 1e-3 * e, dim=0)
            e = {"random": e, "near": near, "opposite": -d}[kind]
            c_here, scale = torch.tensor(c, dtype=dtype), c**-0.5
            points = (d * math.tanh(r / 2), e * math.tanh(s / 2), c**0.5 * f, d * math.tanh(min(r, 8)))
            yield c_here, *((scale * p).to(dtype) for p in points)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ball_agrees_with_fifty_digits(dtype):
    """To 1e-12 (float32: 2e-6) of the result, or ten roundings of the input.

    Near the boundary each of these weighs lambda = cosh(r).
    """
    worst: dict[str, float] = {}
    eps, digits = torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 2e-6
    offset = torch.tensor([0.25], dtype=dtype)
    shear = torch.eye(4, dtype=dtype) + torch.eye(4, dtype=dtype).roll(1, 0).tril()
    for c, x, y, v, z in ball_points(dtype):
        sheet = isometry.poincare_to_lorentz(x, c)
        short = v / P.conformal(x, c)
        for name, got, twin, tensors in (
            ("add", P.add(x, y, c), O.mobius_add, (x, y)),
            ("difference", P.difference(x, y, c), O.difference, (x, y)),
            ("distance", P.distance(x, y, c), O.ball_distance, (x, y)),
            ("exp0", P.exp0(v, c), O.ball_exp0, (v,)),
            ("log0", P.log0(x, c), O.ball_log0, (x,)),
            ("exp", P.exp(x, short, c), O.ball_exp, (x, short)),
            ("log", P.log(x, y, c), O.ball_log, (x, y)),
            ("transport", P.transport(x, y, v, c), O.ball_transport, (x, y, v)),
            ("gyration", P.gyration(x, y, v, c), O.mobius_gyration_of_vector, (x, y, v)),
            ("scale", P.scale(0.25, x, c), O.ball_quarter_scale, (x,)),
            ("matvec", P.matvec(shear, x, c), O.ball_sheared, (x,)),
            ("geodesic", P.geodesic(x, y, 0.25, c), O.ball_quarter_geodesic, (x, y)),
            ("inner", P.inner(x, v, y, c), O.ball_inner, (x, v, y)),
            ("project_tangent", P.project_tangent(x, v, c), O.ball_project_tangent, (x, v)),
            ("plane", P.hyperplane_distance(x, v[None], offset, c), O.ball_quarter_plane_distance, (x, v)),
            ("ball to hyperboloid", sheet, O.to_lorentz, (x,)),
            ("hyperboloid to ball", isometry.lorentz_to_poincare(sheet, c), O.ball, (sheet,)),
            ("hyperboloid to Klein", isometry.lorentz_to_klein(sheet, c), O.klein, (sheet,)),
            ("Klein to hyperboloid", isometry.klein_to_lorentz(z, c), O.klein_to_lorentz, (z,)),
            ("ball to Klein", isometry.poincare_to_klein(x, c), O.ball_to_klein, (x,)),
            ("Klein to ball", isometry.klein_to_poincare(z, c), O.klein_to_ball, (z,)),
        ):
            worst[name] = max(
                worst.get(name, 0.0), O.excess(got, twin, tensors, mp.mpf(float(c)), eps, digits)
            )
    assert len(worst) == 21 and max(worst.values()) < 1, worst


def test_midpoints_of_the_balls_agree_with_fifty_digits_in_float64():
    weights = torch.tensor([1.0, 2.0], dtype=torch.double)
    for c, x, y, *_ in ball_points(torch.float64):
        k, m = (isometry.poincare_to_klein(p, c) for p in (x, y))
        ball = mean.midpoint_poincare(torch.stack([x, y]), c, weights)
        klein = mean.midpoint_klein(torch.stack([k, m]), c, weights)
        curvature = mp.mpf(float(c))
        assert O.excess(ball, O.ball_midpoint, (x, y), curvature, 2.2e-16, 1e-12) < 1
        assert O.excess(klein, O.klein_midpoint, (k, m), curvature, 2.2e-16, 1e-12) < 1


def test_hypll_and_geoopt_agree_on_the_ball():
    torch.manual_seed(1)
    for c in (0.1, 1.0, 3.0):
        x, y, w = (P.exp0(0.2 * torch.randn(3, 50, 6, dtype=torch.double), c)).unbind()
        v, C = 0.3 * torch.randn(50, 6, dtype=torch.double), torch.tensor(c, dtype=torch.double)
        ball = geoopt.PoincareBall(c=C.clone())  # it overwrites the tensor it is given
        for name, got, *peers in (
            ("add", P.add(x, y, c), hypll.mobius_add(x, y, C), ball.mobius_add(x, y)),
            ("distance", P.distance(x, y, c), hypll.dist(x, y, C), ball.dist(x, y)),
            ("pairwise_distance", P.pairwise_distance(x, y, c), hypll.cdist(x[None], y[None], C)[0]),
            ("exp", P.exp(x, 0.3 * v, c), hypll.expmap(x, 0.3 * v, C), ball.expmap(x, 0.3 * v)),
            ("log", P.log(x, y, c), hypll.logmap(x, y, C), ball.logmap(x, y)),
            ("exp0", P.exp0(0.3 * v, c), hypll.expmap0(0.3 * v, C), ball.expmap0(0.3 * v)),
            ("log0", P.log0(x, c), hypll.logmap0(x, C), ball.logmap0(x)),
            ("transport", P.transport(x, y, v, c), hypll.transp(x, y, v, C), ball.transp(x, y, v)),
            ("gyration", P.gyration(x, y, w, c), hypll.gyration(x, y, w, C), ball.gyration(x, y, w)),
            ("scale", P.scale(0.4, x, c), ball.mobius_scalar_mul(torch.tensor(0.4, dtype=torch.double), x)),
            (
                "inner",
                P.inner(x, v, w, c),
                hypll.inner(x, v, w, C, keepdim=True)[:, 0],
            ),  # [50, 50] without it
            (
                "project_tangent",
                P.project_tangent(x, v, c),
                hypll.euc_to_tangent(x, v, C),
                ball.egrad2rgrad(x, v),
            ),
            (
                "geodesic",
                P.geodesic(x, y, 0.3, c),
                ball.geodesic(torch.tensor(0.3, dtype=torch.double), x, y),
            ),
        ):
            for peer in peers:
                assert torch.allclose(got, peer, rtol=1e-9, atol=1e-10), (c, name)
        z, r = torch.randn(6, 5, dtype=torch.double), torch.randn(5, dtype=torch.double)
        theirs = hypll_linalg.poincare_hyperplane_dists(x, z, r, C) / (2 * z.norm(dim=0))
        assert torch.allclose(P.hyperplane_distance(x, z.T, 2 * r, c), theirs, rtol=1e-10)
        m = torch.randn(5, 6, dtype=torch.double)
        assert torch.allclose(P.matvec(m, x, c), ball.mobius_matvec(m, x), rtol=1e-9)


def test_geoopt_agrees_on_the_hyperboloid():
    """geoopt's k is 1/c and its points carry their time part first."""
    torch.manual_seed(2)
    for c in (0.2, 1.0, 5.0):
        peer = geoopt.Lorentz(k=torch.tensor(1 / c, dtype=torch.double))
        x, y = L.exp0(torch.randn(2, 40, 5, dtype=torch.double), c).unbind()
        v = torch.randn(40, 5, dtype=torch.double)
        X, Y = (torch.cat([L.time(p, c), p], -1) for p in (x, y))
        V = torch.cat([(x * v).sum(-1, keepdim=True) / L.time(x, c), v], -1)
        assert torch.allclose(L.inner(x, y, c), peer.inner(None, X, Y), rtol=1e-12)
        assert torch.allclose(L.distance(x, y, c), peer.dist(X, Y), rtol=1e-9)
        assert torch.allclose(L.exp(x, v, c), peer.expmap(X, V)[..., 1:], rtol=1e-7)
        assert torch.allclose(L.log(x, y, c), peer.logmap(X, Y)[..., 1:], rtol=1e-6, atol=1e-8)
        assert torch.allclose(L.transport(x, y, v, c), peer.transp(X, Y, V)[..., 1:], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("c", [0.05, 1.0, 7.0])
def test_charts_are_isometric_and_carry_the_operations(c):
    torch.manual_seed(3)
    v, w, u = torch.randn(3, 30, 4, dtype=torch.double).unbind()
    v, w, u = v / c**0.5, w / c**0.5, u / c**0.5
    x, y, z = (L.exp0(t, c) for t in (v, w, u))
    bx, by, bz = (isometry.lorentz_to_poincare(t, c) for t in (x, y, z))
    close = {"rtol": 1e-10, "atol": 1e-12}
    assert torch.allclose(P.distance(bx, by, c), L.distance(x, y, c), **close)
    assert torch.allclose(P.exp0(v / 2, c), bx, **close), "a ball tangent is half a hyperboloid tangent"
    to_ball = isometry.lorentz_to_poincare
    assert torch.allclose(to_ball(L.add(x, y, c), c), P.add(bx, by, c), **close)
    assert torch.allclose(to_ball(L.gyration(x, y, z, c), c), P.gyration(bx, by, bz, c), **close)
    assert torch.allclose(to_ball(L.scale(-1.7, x, c), c), P.scale(-1.7, bx, c), **close)
    assert torch.allclose(to_ball(L.geodesic(x, y, 0.2, c), c), P.geodesic(bx, by, 0.2, c), **close)
    m = torch.randn(3, 4, dtype=torch.double)
    assert torch.allclose(to_ball(L.matvec(m, x, c), c), P.matvec(m, bx, c), **close)
    offset = torch.randn(3, dtype=torch.double)
    assert torch.allclose(
        L.hyperplane_distance(x, m, offset, c), P.hyperplane_distance(bx, m, offset, c), **close
    )
    klein = isometry.lorentz_to_klein(x, c)
    assert torch.allclose(isometry.poincare_to_klein(bx, c), klein, **close)
    for back in (
        isometry.poincare_to_lorentz(bx, c),
        isometry.klein_to_lorentz(klein, c),
        isometry.poincare_to_lorentz(isometry.klein_to_poincare(klein, c), c),
    ):
        assert torch.allclose(back, x, **close)
    other = isometry.rescale(x, c, 2.0)
    assert torch.allclose(L.distance(other, isometry.rescale(y, c, 2.0), 2.0) * 2**0.5,
                          L.distance(x, y, c) * c**0.5, **close)  # fmt: skip


def test_hyperplane_distance_is_the_distance_to_the_plane():
    """The foot of the plane lies at `offset` along z; a point on the normal line is exactly that much further."""
    z = torch.tensor([[3.0, 4.0]], dtype=torch.double)
    for t in (-1.0, 0.2, 2.5):
        x = L.exp0(t * z[0] / 5, 0.5)
        got = L.hyperplane_distance(x, z, torch.tensor([0.7], dtype=torch.double), 0.5)
        assert torch.allclose(got, torch.tensor([t - 0.7], dtype=torch.double), atol=1e-12)


def test_transport_to_itself_changes_nothing_at_the_rim():
    """The textbook denominator is 0 here in float32."""
    x = P.project(P.exp0(torch.tensor([[7.0, 5.0, 3.0]]), 1.0), 1.0)
    v = torch.tensor([[0.1, 0.2, 0.3]])
    assert torch.equal(P.transport(x, x, v, 1.0), v)


@pytest.mark.parametrize("space", ["poincare", "klein", "lorentz"])
def test_changes_of_manifold_stay_inside_in_float32(space):
    """Far tangent vectors come back along their ray, no longer than they were and at least the stated rim long."""
    rim = {"poincare": 14.0, "klein": 7.0, "lorentz": L.MAX_RADIUS - 1e-3}[space] / 2
    there, back = hnn.ChangeManifold("tangent", space), hnn.ChangeManifold(space, "tangent")
    for s in (3.0, 5.0, 5.5, 9.0, 10.0, 100.0):
        v = torch.tensor([[s, 0.0, 0.0], [0.0, 0.6 * s, 0.8 * s]], requires_grad=True)
        again = back(there(v))
        assert torch.allclose(torch.nn.functional.normalize(again), v / s, atol=1e-6)
        assert (again.norm(dim=-1) >= min(s, rim) * 0.99).all() and (again.norm(dim=-1) <= s * 1.01).all(), s
        assert torch.autograd.grad(again.norm(dim=-1).sum(), v)[0].isfinite().all(), s


def test_projection_pulls_back_to_the_margin():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    got = P.project(x, 4.0, margin=0.1)
    assert torch.allclose(got.norm(dim=-1), torch.tensor([0.45, 0.45])) and P.project(x[1], 1.0).equal(x[1])


def test_curvature_has_the_value_one_states():
    for value in (0.1, 1.0, 3.7):
        assert abs(Curvature(value)().item() / value - 1) < 3e-7
    c = Curvature(1.0, learnable=True, low=0.1, high=10)
    c.log_c.data.fill_(9.0)
    c.constrain_()
    assert abs(c().item() - 10) < 1e-5
    assert list(Curvature(0.1).parameters()) == [] and "log_c" in Curvature(0.1).state_dict()
    assert Curvature(0.5, size=3)().shape == (3,)
    for bad in (-1.0, 0.0, 1e9, float("nan")):
        with pytest.raises(ValueError, match="curvature"):
            Curvature(bad)


def test_product_of_factors_is_the_loop_over_them():
    x, y = torch.randn(2, 7, 12, dtype=torch.double).unbind()
    c = torch.tensor([0.1, 1.0, 3.0], dtype=torch.double)
    parts = [(x[:, i : i + 4], y[:, i : i + 4], float(c[i // 4])) for i in (0, 4, 8)]
    each = torch.stack([L.distance(*p) for p in parts], -1)
    assert torch.allclose(product.distance(x, y, c, 3), each.mean(-1))
    assert torch.allclose(product.distance(x, y, c, 3, "l2"), each.norm(dim=-1))
    assert torch.allclose(product.distance(x, y, c, 3, "sum"), each.sum(-1))
    assert torch.allclose(product.pairwise_distance(x, y, c, 3).diagonal(), each.mean(-1), rtol=1e-9)
    assert torch.allclose(product.log0(product.exp0(x, c, 3), c, 3), x)
    assert product.half_aperture(x, c, 3).shape == product.exterior_angle(x, y, c, 3).shape == (7, 3)
    assert torch.allclose(product.pairwise_distance(x, y, 1.0, 1), L.pairwise_distance(x, y, 1.0))
    with pytest.raises(ValueError, match="5 equal factors"):
        product.split(x, 5)
    with pytest.raises(ValueError, match="median"):
        product.distance(x, y, c, 3, "median")
