"""gradcheck of every geometry function in every input and in c, and finite gradients where they are most at risk."""

import itertools

import pytest
import torch

from hyco.models.hyperbolic import isometry, mean, ops, product
from hyco.models.hyperbolic import lorentz as L
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic import poincare as P
from hyco.models.hyperbolic.nn.hyperplane_ops import planes

N, D = 3, 3


def sheet():
    return 0.8 * torch.randn(N, D, dtype=torch.double)


def disk():
    return P.exp0(0.5 * torch.randn(N, D, dtype=torch.double), 1.5)


def wide():
    return 0.8 * torch.randn(N, 2 * D, dtype=torch.double)


def two_factors(function):
    """A function of `product` on two factors of dimension D, with curvatures c and 2c."""
    return lambda *args: function(*args[:-1], torch.stack([args[-1], 2 * args[-1]]), 2)


PLANE = torch.randn(2, D, dtype=torch.double)
OFFSET = torch.tensor([0.2, -0.4], dtype=torch.double)
FUNCTIONS = {
    **{f"lorentz.{n}": (getattr(L, n), sheet, k) for n, k in (
        ("time", 1), ("inner", 2), ("distance", 2), ("chord", 2), ("pairwise_inner", 2), ("pairwise_distance", 2),
        ("exp0", 1), ("log0", 1), ("half_aperture", 1), ("exterior_angle", 2), ("exp", 2), ("log", 2),
        ("transport", 3), ("add", 2), ("gyration", 3), ("tangent_norm", 2), ("project_tangent", 2),
    )},
    **{f"poincare.{n}": (getattr(P, n), disk, k) for n, k in (
        ("conformal", 1), ("inner", 3), ("distance", 2), ("pairwise_distance", 2), ("add", 2), ("difference", 2),
        ("exp0", 1), ("log0", 1), ("exp", 2), ("log", 2), ("gyration", 3), ("transport", 3), ("project", 1),
        ("project_tangent", 2),
    )},
    **{f"isometry.{n}": (getattr(isometry, n), disk, 1) for n in (
        "lorentz_to_poincare", "poincare_to_lorentz", "lorentz_to_klein", "klein_to_lorentz", "poincare_to_klein",
        "klein_to_poincare",
    )},
    "lorentz.scale": (lambda x, c: L.scale(0.3, x, c), sheet, 1),
    "lorentz.matvec": (lambda m, x, c: L.matvec(m, x, c), sheet, 2),
    "lorentz.geodesic": (lambda x, y, c: L.geodesic(x, y, 0.3, c), sheet, 2),
    "lorentz.plane": (lambda x, z, c: L.hyperplane_distance(x, z, OFFSET.repeat(2)[:N], c), sheet, 2),
    "poincare.scale": (lambda x, c: P.scale(0.3, x, c), disk, 1),
    "poincare.matvec": (lambda m, x, c: P.matvec(m, x, c), disk, 2),
    "poincare.geodesic": (lambda x, y, c: P.geodesic(x, y, 0.3, c), disk, 2),
    "poincare.plane": (lambda x, z, c: P.hyperplane_distance(x, z, OFFSET.repeat(2)[:N], c), disk, 2),
    "mean.midpoint": (lambda x, c: mean.midpoint(x, c), sheet, 1),
    "mean.midpoint_poincare": (lambda x, c: mean.midpoint_poincare(x, c), disk, 1),
    "mean.midpoint_klein": (lambda x, c: mean.midpoint_klein(x, c), disk, 1),
    "mean.frechet_mean": (lambda x, c: mean.frechet_mean(x, c, torch.tensor([1.0, 2.0, 0.5]).double()), sheet, 1),
    "mean.frechet_variance": (lambda x, c: mean.frechet_variance(x, c), sheet, 1),
    **{f"product.{f.__name__}": (two_factors(f), wide, k) for f, k in (
        (product.distance, 2), (product.pairwise_distance, 2), (product.exp0, 1), (product.log0, 1),
        (product.half_aperture, 1), (product.exterior_angle, 2),
    )},
    "product.distance, l2": (lambda x, y, c: product.distance(x, y, c, 2, "l2"), wide, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck_in_every_input_and_in_c(name):
    torch.manual_seed(sum(map(ord, name)))
    function, make, count = FUNCTIONS[name]
    inputs = [make().requires_grad_() for _ in range(count)]
    c = torch.tensor(0.7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(function, (*inputs, c), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sinhc", "asinhc", "tanhc", "atanhc"])
def test_series_meet_their_functions(name):
    """On both sides of each threshold and down to zero, in value and slope."""
    import mpmath as mp

    twins = {
        "sinhc": lambda s: mp.sinh(mp.sqrt(s)) / mp.sqrt(s),
        "asinhc": lambda s: mp.asinh(mp.sqrt(s)) / mp.sqrt(s),
        "tanhc": lambda s: mp.tanh(mp.sqrt(s)) / mp.sqrt(s),
        "atanhc": lambda s: mp.atanh(mp.sqrt(s)) / mp.sqrt(s),
    }
    mp.mp.dps = 60
    grid = torch.cat(
        [torch.logspace(-24, -0.01, 60), torch.tensor([0.0199, 0.0201, 0.0299, 0.0301, 0.0499, 0.0501])]
    )
    grid = torch.cat(
        [grid, torch.tensor([0.999])] if name == "atanhc" else [grid, torch.tensor([0.999, 1.001, 50.0])]
    )
    grid = grid.double().requires_grad_()
    got = getattr(ops, name)(grid)
    (slope,) = torch.autograd.grad(got.sum(), grid)
    for s, value, rise in zip(grid.tolist(), got.tolist(), slope.tolist(), strict=True):
        want = twins[name](mp.mpf(s))
        assert abs(value - want) <= (2e-15 if s < 0.9 else 2e-14) * abs(want), (s, value)
        assert abs(rise - mp.diff(twins[name], mp.mpf(s), h=mp.mpf(s) / 10**12)) <= 1e-8 * abs(want), (
            s,
            rise,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_everywhere(dtype):
    """Log-uniform radii from 1e-30 to the boundary, with zero, coincident, collinear and opposite pairs."""
    torch.manual_seed(0)
    e = torch.nn.functional.normalize(torch.randn(4, D), dim=-1)
    radii = [0.0, 1e-30, 1e-20, 1e-12, 1e-8, 1e-4, 1e-2, 1.0, 30.0, 3e4, 1e6]
    pairs = [
        (r * a, s * b)
        for r, s in itertools.product(radii, radii)
        for a, b in ((e[0], e[1]), (e[2], e[2]), (e[3], -e[3]))
    ]
    x, y = (torch.stack(p).to(dtype) for p in zip(*pairs, strict=True))
    v = torch.randn_like(x)
    for c in (1e-3, 1.0, 10.0):
        ball_x, ball_y = (P.project(isometry.lorentz_to_poincare(p, c), c).to(dtype) for p in (x, y))
        ball_x, ball_y = (p * (0.99 if dtype == torch.bfloat16 else 1) for p in (ball_x, ball_y))
        tangent = x.clamp(-1e3, 1e3)
        cases = {
            **{
                n: (getattr(L, n), (x, y))
                for n in ("inner", "distance", "pairwise_distance", "exterior_angle", "log")
            },
            "add": (L.add, (x.clamp(-1e5, 1e5), y.clamp(-1e5, 1e5))),
            "exp": (L.exp, (x.clamp(-1e2, 1e2), v)),
            "transport": (L.transport, (x, y, v)),
            "gyration": (L.gyration, (x, y, v)),
            "geodesic": (lambda p, q, c: L.geodesic(p, q, 0.3, c), (x, y)),
            **{n: (getattr(L, n), (x,)) for n in ("time", "log0", "half_aperture")},
            "exp0": (L.exp0, (tangent,)),
            "ball exp0": (P.exp0, (tangent,)),
            "ball log0": (P.log0, (ball_x,)),
            **{
                f"ball {n}": (getattr(P, n), (ball_x, ball_y))
                for n in ("distance", "add", "log", "difference")
            },
            "ball transport": (P.transport, (ball_x, ball_y, v)),
            "ball gyration": (P.gyration, (ball_x, ball_y, v)),
            "variance": (lambda p, q, c: mean.frechet_variance(torch.stack([p, q], -2), c, p), (x, y)),
            "midpoint": (lambda p, q, c: mean.midpoint(torch.stack([p, q], -2), c), (x, y)),
            "ball midpoint": (
                lambda p, q, c: mean.midpoint_poincare(torch.stack([p, q], -2), c),
                (ball_x, ball_y),
            ),
            "Klein midpoint": (
                lambda p, q, c: mean.midpoint_klein(torch.stack([p, q], -2), c),
                (ball_x, ball_y),
            ),
        }
        for name, (function, inputs) in cases.items():
            inputs = [p.clone().requires_grad_() for p in inputs]
            curvature = torch.tensor(c, requires_grad=True)
            out = function(*inputs, curvature)
            slopes = torch.autograd.grad(out.sum(), [*inputs, curvature])
            for at, t in enumerate((out, *slopes)):
                assert t.isfinite().all(), (
                    name,
                    c,
                    at,
                    pairs[int((~t.isfinite()).nonzero()[0][0])] if t.dim() else t,
                )


@pytest.mark.parametrize(
    "make",
    [
        lambda: hnn.Linear(4, 4),
        lambda: hnn.Linear(4, 4, fused=False),
        lambda: hnn.Conv1d(4, 4, 1),
        lambda: hnn.Conv1d(4, 4, 1, fused=False),
        lambda: hnn.MLR(4, 4),
    ],
)
def test_far_hyperplanes_leave_outputs_and_gradients_finite(make):
    """cosh(2 * 50) is no float32; the cap is straight-through, so an offset can come back from it."""
    layer = make()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([50.0, -50.0, 1e6, 0.1]))
    for size in (0.0, 0.1, 1e3):
        out = layer(size * torch.randn(2, 4, *[1] * (layer.weight.dim() - 2)))
        slopes = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
        assert all(t.isfinite().all() for t in (out, *slopes)), size
    scales, _, _ = planes(torch.ones(1, 4), layer.bias[:1], 2.0)
    assert torch.autograd.grad(scales.sum(), layer.bias)[0][0] > 0


def test_gradients_at_the_origin_are_those_of_the_limit():
    """A zero vector is a point like any other; a guard that stops its gradient would stop a zero-initialised net."""
    zero, y = torch.zeros(1, D, dtype=torch.double), sheet()[:1]
    near = torch.full((1, D), 1e-7, dtype=torch.double)
    for function in (L.add, L.inner, L.distance, lambda p, q, c: L.transport(p, q, PLANE[:1], c)):
        slopes = []
        for x in (zero, near):
            x = x.clone().requires_grad_()
            slopes.append(torch.autograd.functional.jacobian(lambda p, f=function: f(p, y, 0.7), x))
        assert torch.allclose(*slopes, atol=1e-5), function


@pytest.mark.parametrize(
    "layer", [hnn.Linear(3, 2, c=0.7), hnn.Conv1d(3, 2, 1, c=0.7), hnn.ResidualAdd(c=0.7)], ids=repr
)
def test_an_output_without_a_gradient_is_no_error(layer):
    """Gradcheck gives the hand-written backward passes an undefined gradient too."""
    layer = layer.double()
    u = (
        0.3 * torch.randn(2, 3, 2, dtype=torch.double)
        if isinstance(layer, hnn.Conv1d)
        else sheet()[:2, :3] * 0.1
    )
    inputs = [u.clone().requires_grad_() for _ in range(2 if isinstance(layer, hnn.ResidualAdd) else 1)]
    assert torch.autograd.gradcheck(layer, inputs, check_undefined_grad=True)
