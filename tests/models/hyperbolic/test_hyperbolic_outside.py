"""Points that are not in the ball: NaN from every function but `project`; and points just inside keep their digits."""

import inspect

import mpmath as mp
import pytest
import torch

from hyco.models.hyperbolic import isometry, mean
from hyco.models.hyperbolic import poincare as P
from tests.oracle import hyperbolic_geometry as O

PLANES, OFFSET, MATRIX = torch.tensor([[1.0, 0.5], [0.2, -1.0]]), torch.tensor([0.1, 0.2]), torch.eye(2)
V = torch.tensor([0.1, 0.3])
POINTS = {  # of one or two points of the ball
    "conformal": P.conformal,
    "inner": lambda x, c: P.inner(x, V, V, c),
    "distance": P.distance,
    "pairwise_distance": lambda x, y, c: P.pairwise_distance(x[None], y[None], c),
    "add": P.add,
    "difference": P.difference,
    "log0": P.log0,
    "exp": lambda x, c: P.exp(x, V, c),
    "log": P.log,
    "gyration": lambda x, y, c: P.gyration(x, y, V, c),
    "transport": lambda x, y, c: P.transport(x, y, V, c),
    "scale": lambda x, c: P.scale(0.5, x, c),
    "matvec": lambda x, c: P.matvec(MATRIX.to(x.dtype), x, c),
    "geodesic": lambda x, y, c: P.geodesic(x, y, 0.3, c),
    "hyperplane_distance": lambda x, c: P.hyperplane_distance(x, PLANES.to(x.dtype), OFFSET.to(x.dtype), c),
    "project_tangent": lambda x, c: P.project_tangent(x, V, c),
}
CHARTS = {
    **{n: getattr(isometry, n) for n in dir(isometry) if n.startswith(("poincare_to", "klein_to"))},
    "midpoint_poincare": lambda x, y, c: mean.midpoint_poincare(torch.stack([x, y]), c),
    "midpoint_klein": lambda x, y, c: mean.midpoint_klein(torch.stack([x, y]), c),
}
NO_POINT_COMES_IN = {"project", "exp0"}
NOT_OF_THE_BALL = {"rotate"}  # the hyperboloid's, of what is inside already


def test_every_public_function_is_in_the_table():
    public = {
        n for n, f in inspect.getmembers(P, inspect.isfunction) if f.__module__ == P.__name__ and n[0] != "_"
    }
    assert public == set(POINTS) | NO_POINT_COMES_IN | NOT_OF_THE_BALL
    assert len(CHARTS) == 6


@pytest.mark.parametrize("name", [*POINTS, *CHARTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_outside_and_on_the_boundary_is_nan(name, dtype, c):
    """The distance of an outside and an inside point was 0, without a gradient; two outside ones had a distance."""
    function = (POINTS | CHARTS)[name]
    inside = torch.tensor([0.3, -0.2], dtype=dtype) / c**0.5
    ray = torch.tensor([0.6, 0.8], dtype=dtype) / c**0.5
    count = len(inspect.signature(function).parameters) - 1
    for size in (1 + 1e-6, 2.0, 1e30):
        out = size * ray
        for points in (
            [(out,)] if count == 1 else [(out, inside), (inside, out), (out, -0.5 * out), (out, out)]
        ):
            points = [p.clone().requires_grad_() for p in points]
            got = function(*points, c)
            assert got.isnan().all(), (size, points, got)
            moved = [
                P.project(p, c) if not name.startswith(("klein", "midpoint_klein")) else p / 3e30
                for p in points
            ]
            assert function(*moved, c).isfinite().all(), "the remedy"
    edge = torch.tensor([1.0, 0.0], dtype=dtype) / c**0.5
    assert function(*[edge, inside][:count], c).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_just_inside_keep_their_distances(dtype):
    """Closer to the boundary than the margin of `project`: distances are those of the coordinates as given."""
    eps = torch.finfo(dtype).eps
    y = torch.tensor([0.3, -0.2, 0.1], dtype=dtype)
    with mp.workdps(60):
        for gap in (2 * eps, 8 * eps, 1e-6, 1e-3):
            x = torch.tensor([1 - gap, 0.0, 0.0], dtype=dtype)
            for a, b in ((x, y), (y, x), (x, -x), (x, 0 * x)):
                got = P.distance(a, b, 1.0).item()
                want = O.ball_distance(*([mp.mpf(v) for v in t.tolist()] for t in (a, b)), mp.mpf(1))
                # 1 - |x|^2 is rounded to eps, of which it holds gap / eps.
                assert abs(got - want) <= 2 * eps / gap + 1e-5 * want, (gap, got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_points_at_the_boundary_stay_inside(dtype):
    """They were rounded onto it, where nothing has a distance."""
    torch.manual_seed(0)
    ends = torch.nn.functional.normalize(torch.randn(500, 5, dtype=dtype), dim=-1)
    for c in (0.25, 1.0, 4.0):
        x = P.project(10 * ends, c)
        near = P.project(10 * (ends + 1e-3 * torch.randn_like(ends)), c)
        for out in (
            P.add(x, near, c),
            P.add(x, x, c),
            P.exp(x, 10 * ends, c),
            P.difference(-x, near, c),
            P.geodesic(x, near, 1.0, c),
            P.scale(3.0, x, c),
        ):
            assert P.distance(out, torch.zeros_like(out), c).isfinite().all()
            assert (c * out.square().sum(-1) < 1).all()
    zero = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(P.add(zero, zero, 1.0).sum(), zero)
    torch.testing.assert_close(slope, torch.full_like(slope, 2.0))
