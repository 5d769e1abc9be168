"""Far out: radius 20 to 40 in float32, to 300 in float64, and the rim of the ball."""

import itertools
import math

import mpmath as mp
import pytest
import torch

from hyco.models.hyperbolic import isometry
from hyco.models.hyperbolic import lorentz as L
from hyco.models.hyperbolic import poincare as P
from hyco.models.hyperbolic.mean import midpoint
from hyco.models.losses.entailment import cone_excess
from tests.oracle import hyperbolic_geometry as O

RADII = {torch.float32: (20.0, 23.0, 30.0, 40.0), torch.float64: (100.0, 170.0, 179.0, 300.0)}


def far_pairs(dtype, kinds=("random", "level", "near", "opposite", "collinear")):
    """(kind, c, v, x, y): x at a far radius, y elsewhere, as rounded; v of length 1."""
    generator = torch.Generator().manual_seed(3)
    for c, r, kind in itertools.product((1e-3, 1.0, 10.0), RADII[dtype], kinds):
        e, d, v = torch.nn.functional.normalize(torch.randn(3, 4, generator=generator, dtype=torch.double))
        e, s = {
            "random": (e, 0.5 * r),
            "level": (e, 0.99 * r),
            "near": (torch.nn.functional.normalize(d + 1e-3 * e, dim=0), 1.001 * r),
            "opposite": (-d, r),
            "collinear": (d, r),
        }[kind]
        x = (d * math.sinh(r) / c**0.5).to(dtype)
        y = 2 * x if kind == "collinear" else (e * math.sinh(s) / c**0.5).to(dtype)
        yield kind, torch.tensor(c, dtype=dtype), v.to(dtype), x, y


FUNCTIONS = {
    "distance": (L.distance, O.distance),
    "pairwise distance": (lambda x, y, c: L.pairwise_distance(x[None], y[None], c)[0, 0], O.distance),
    "inner": (L.inner, O.inner),
    "log": (L.log, O.log),
    "exterior angle": (L.exterior_angle, O.exterior_angle),
    "geodesic": (lambda x, y, c: L.geodesic(x, y, 0.25, c), O.quarter_geodesic),
    "half-aperture": (lambda x, y, c: L.half_aperture(x, c), lambda x, y, c: O.half_aperture(x, c)),
    "log0": (lambda x, y, c: L.log0(x, c), lambda x, y, c: O.log0(x, c)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_right_far_out_and_gradients_are_finite(name, dtype):
    """Squared norms multiplied before the root gave 0 from radius 23 on in float32, from 178 in float64."""
    function, twin = FUNCTIONS[name]
    eps, digits = torch.finfo(dtype).eps, 1e-12 if dtype == torch.float64 else 2e-6
    with mp.workdps(120 if dtype == torch.float32 else 600):
        for kind, c, _, x, y in far_pairs(dtype):
            if name == "pairwise distance" and dtype == torch.float64 and kind in ("near", "collinear"):
                continue  # its documented limit: a matrix product in float64 for all pairs
            x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
            got = function(x, y, c)
            slopes = torch.autograd.grad(got.sum(), (x, y), allow_unused=True)
            assert all(s is None or s.isfinite().all() for s in slopes), (kind, c, x)
            off = O.excess(got.detach(), twin, (x.detach(), y.detach()), mp.mpf(float(c)), eps, digits)
            assert off < 1, (kind, c, x, off)


@pytest.mark.parametrize("name", ["distance", "pairwise distance", "inner", "log", "half-aperture", "log0"])
def test_float32_gradients_are_right_to_radius_40(name):
    function, _ = FUNCTIONS[name]
    for kind, c, _, x, y in far_pairs(torch.float32, ("random", "level", "near", "opposite")):
        ours, wide = (
            [t.to(d, copy=True).requires_grad_() for t in (x, y, c)] for d in (x.dtype, torch.double)
        )
        got = torch.autograd.grad(function(*ours).sum(), ours, allow_unused=True)
        want = torch.autograd.grad(function(*wide).sum(), wide, allow_unused=True)
        for mine, other in zip(got[:2], want[:2], strict=True):
            assert mine is other is None or (mine - other).norm() <= 1e-3 * other.norm(), (kind, c, x)


def test_distance_of_points_that_are_orthogonal_or_on_one_ray():
    at = torch.tensor([[math.sinh(23.0), 0.0], [0.0, math.sinh(23.0)]])
    assert L.distance(at[0], at[1], 1.0) == pytest.approx(2 * 23 - math.log(2), rel=1e-6)
    for low, high in ((20.0, 21.0), (30.0, 40.0), (10.0, 40.0)):
        x, y = (math.sinh(r) * torch.tensor([0.5**0.5, 0.0, 0.5**0.5]) for r in (low, high))
        assert L.distance(x, y, 1.0) == pytest.approx(high - low, rel=1e-5)
        assert L.exterior_angle(x, y, 1.0) < 1e-6
        assert cone_excess(x, y, torch.tensor(1.0), eta=0.0, k=0.1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_cones_are_right_far_out(dtype):
    """Values against fifty digits and more; gradients against the plain reference, where a float can hold them."""
    kinds = ("random", "level", "opposite", *(("collinear",) if dtype == torch.float32 else ()))
    with mp.workdps(120 if dtype == torch.float32 else 600):
        for kind, c, v, x, y in far_pairs(dtype, kinds):
            general = (0.3 * v / c.sqrt()).to(dtype)  # near the origin, where the cone is open
            for inner in (general, x if kind == "collinear" else 0.5 * x):  # y - x is exact
                fused = [t.clone().requires_grad_() for t in (inner, y, c)]
                got = cone_excess(fused[0], fused[1], fused[2], eta=0.7, k=0.1)
                C, X, Y = mp.mpf(float(c)), O.vec(inner), O.vec(y)
                exact = max(0.0, float(O.exterior_angle(X, Y, C) - 0.7 * O.half_aperture(X, C)))
                # On one ray the rounding of a coordinate alone would turn the angle by more than pi.
                budget = 1e-2 if kind == "collinear" else 1e-6
                assert float(got.detach()) == pytest.approx(exact, abs=budget), (kind, c, x)
                slopes = torch.autograd.grad(got, fused[:2])
                assert all(s.isfinite().all() for s in slopes)
                if inner is general:
                    plain = [t.to(torch.double, copy=True).requires_grad_() for t in (inner, y, c)]
                    aperture = L.half_aperture(plain[0], plain[2], 0.1)
                    want = L.exterior_angle(plain[0], plain[1], plain[2]) - 0.7 * aperture
                    for mine, other in zip(slopes, torch.autograd.grad(want, plain[:2]), strict=True):
                        assert (mine - other).norm() <= 1e-5 * other.norm(), (kind, c, x)
                elif kind != "collinear":  # the angle is pi to the last digit, and hardly changes
                    assert slopes[0].norm() * x.norm() + slopes[1].norm() * y.norm() < 1e-3, (kind, c, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("c", [1e-3, 1.0, 10.0])
def test_ball_lift_stays_inside_with_finite_distances_and_gradients(dtype, c):
    """tanh(9.01) is 1 in float32: a point on the boundary, whose distance was inf and whose gradient NaN."""
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.48, 0.6, 0.64], [-1.0, 1e-3, 0.0]])
    sizes = torch.tensor([0.0, 1e-6, 1.0, 6.0, 7.2, 7.3, 9.01, 16.4, 17.0, 20.0, 1e3, 1e15])
    v = ((sizes[:, None, None] * directions) / c**0.5).to(dtype).requires_grad_()
    x = P.exp0(v, c)
    apart = P.distance(torch.zeros_like(x), x, c)
    pairs = P.pairwise_distance(x.flatten(0, 1), x.flatten(0, 1), c)
    inside = P.log0(x, c)
    for out in (x, apart, pairs, inside, P.scale(0.5, x, c), P.conformal(x, c)):
        (slope,) = torch.autograd.grad(out.sum(), v, retain_graph=True)
        assert out.isfinite().all() and slope.isfinite().all()
    assert (c**0.5 * x.detach().norm(dim=-1) < 1).all()
    limit = 16.4 if dtype == torch.float64 else 7.2
    want = 2 * sizes.clamp(max=limit)[:, None] * directions.norm(dim=-1) / c**0.5
    assert (apart >= 0.98 * want).all(), (
        "up to the rim, distances from the origin are twice the tangent vector"
    )
    far = torch.nn.functional.normalize(x.detach()[-1].double(), dim=-1)
    tangent = torch.nn.functional.normalize(v.detach()[-1].double(), dim=-1)
    assert torch.allclose(far, tangent, atol=1e-6)


BEYOND = ("distance", "pairwise distance", "inner", "log", "exterior angle", "geodesic", "log0")


@pytest.mark.parametrize("name", [*BEYOND, "add", "gyration", "transport", "midpoint"])
def test_beyond_float32_the_answer_is_nan_and_not_a_number(name):
    """The distance of such points was 0, their midpoint the origin: a root took NaN for a number below 0."""
    more = {
        "add": L.add,
        "gyration": lambda x, y, c: L.gyration(x, y, y, c),
        "transport": lambda x, y, c: L.transport(x, y, y, c),
        "midpoint": lambda x, y, c: midpoint(torch.stack([x, y]), c),
    }
    function = more[name] if name in more else FUNCTIONS[name][0]
    near = torch.tensor([0.3, -0.2])
    for far in (torch.tensor([1e25, 2e25]), torch.tensor([math.nan, 1.0])):
        if far.isfinite().all() and name == "pairwise distance":
            continue  # in float64
        for x, y in ((far, near), (near, far))[: 1 if name == "log0" else 2]:
            assert not function(x, y, torch.tensor(1.0)).isfinite().any(), (x, y)


@pytest.mark.parametrize("size", [1e16, 1e20, 1e37])
def test_every_finite_vector_comes_back_along_its_ray(size):
    """exp0 and project of 1e25 were the origin."""
    ray = torch.tensor([[0.6, -0.8, 0.0]])
    ends = {
        "exp0": (L.exp0, math.sinh(L.MAX_RADIUS)),
        "project": (L.project, 2.0**15),
        "ball exp0": (P.exp0, 1 - 1e-6),
        "ball project": (P.project, 1 - 1e-6),
        "to the ball": (isometry.lorentz_to_poincare, 1.0),
        "to the Klein ball": (isometry.lorentz_to_klein, 1.0),
    }
    for name, (function, end) in ends.items():
        x, c = (size * ray).requires_grad_(), torch.tensor(1.0, requires_grad=True)
        out = function(x, c)
        torch.testing.assert_close(out, end * ray, msg=name)
        slopes = torch.autograd.grad(out[0, 0], (x, c))
        assert all(slope.isfinite().all() for slope in slopes), name
