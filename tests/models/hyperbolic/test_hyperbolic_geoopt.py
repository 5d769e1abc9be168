"""The facts of docs/coming-from-geoopt.md."""

import inspect
import math

import geoopt
import pytest
import torch
from torch import nn

import hyco.models.hyperbolic.optim
from hyco.models.hyperbolic import isometry, lorentz, mean, poincare, product
from hyco.models.hyperbolic.optim import RiemannianAdam, RiemannianSGD
from hyco.models.hyperbolic.wrapped_normal import WrappedNormal

C = 0.7
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def points(*shape):
    return poincare.exp0(0.5 * torch.randn(*shape, 5, dtype=torch.double), C)


@pytest.fixture
def ball():
    torch.manual_seed(0)
    return geoopt.PoincareBall(c=torch.tensor(C, dtype=torch.double))


def test_the_functions_of_the_ball_have_these_names(ball):
    x, y, u, m = points(9), points(9), torch.randn(9, 5).double(), torch.randn(5, 5).double()
    weights = torch.rand(9).double()
    pairs = {
        "expmap": (ball.expmap(x, 0.1 * u), poincare.exp(x, 0.1 * u, C)),
        "logmap": (ball.logmap(x, y), poincare.log(x, y, C)),
        "expmap0": (ball.expmap0(u), poincare.exp0(u, C)),
        "logmap0": (ball.logmap0(x), poincare.log0(x, C)),
        "dist": (ball.dist(x, y), poincare.distance(x, y, C)),
        "transp": (ball.transp(x, y, u), poincare.transport(x, y, u, C)),
        "gyration": (ball.gyration(x, y, u), poincare.gyration(x, y, u, C)),
        "mobius_add": (ball.mobius_add(x, y), poincare.add(x, y, C)),
        "mobius_scalar_mul": (ball.mobius_scalar_mul(torch.tensor(0.3).double(), x), poincare.scale(0.3, x, C)),
        "mobius_matvec": (ball.mobius_matvec(m, x), poincare.matvec(m, x, C)),
        "geodesic": (ball.geodesic(torch.tensor(0.3).double(), x, y), poincare.geodesic(x, y, 0.3, C)),
        "lambda_x": (ball.lambda_x(x, keepdim=True), poincare.conformal(x, C)),
        "inner": (ball.inner(x, u, y, keepdim=True).squeeze(1), poincare.inner(x, u, y, C)),
        "egrad2rgrad": (ball.egrad2rgrad(x, u), poincare.project_tangent(x, u, C)),
        "weighted_midpoint": (ball.weighted_midpoint(x, weights), mean.midpoint_poincare(x, C, weights)),
    }  # fmt: skip
    wrong = [
        name
        for name, (theirs, ours) in pairs.items()
        if not torch.allclose(theirs, ours, rtol=1e-6, atol=1e-7)
    ]
    assert wrong == [] and ball.inner(x, u, y).shape == (9, 9), "theirs, without keepdim"
    assert torch.allclose(
        poincare.distance(torch.zeros_like(u), poincare.exp0(0.1 * u, C), C), 0.2 * u.norm(dim=1)
    )


@pytest.mark.parametrize(("space", "edge", "distance"), [("theirs", 4e-3, 6.2), ("ours", 1e-6, 14.5)])
def test_where_projections_stop(space, edge, distance):
    far = torch.tensor([[2.0, 0.0]])
    found = geoopt.PoincareBall(c=1.0).projx(far) if space == "theirs" else poincare.project(far, 1.0)
    assert (1 - found.norm()).item() == pytest.approx(edge, rel=0.1)
    assert 2 * math.atanh(1 - edge) == pytest.approx(distance, abs=0.05)


def test_lorentz_points_carry_their_time_first():
    torch.manual_seed(0)
    x, y = (lorentz.exp0(torch.randn(9, 4).double(), 0.5) for _ in range(2))
    full = [torch.cat([lorentz.time(s, 0.5), s], 1) for s in (x, y)]
    theirs = geoopt.Lorentz(k=torch.tensor(2.0, dtype=torch.double)).dist(*full)
    assert torch.allclose(theirs, lorentz.distance(x, y, 0.5), **EXACT)


def test_a_product_of_equal_factors_has_their_distance(ball):
    theirs = geoopt.ProductManifold((ball, 5), (geoopt.PoincareBall(c=ball.c), 5))
    x, y = (torch.cat([points(9), points(9)], 1) for _ in range(2))
    ours = [isometry.poincare_to_lorentz(product.split(v, 2), C).flatten(-2) for v in (x, y)]
    assert torch.allclose(theirs.dist(x, y), product.distance(*ours, C, 2, reduce="l2"), rtol=1e-6)


def test_the_wrapped_normal_has_its_spread_in_units_of_distance(ball):
    middle = points(1)
    theirs = ball.wrapped_normal(20_000, 5, mean=middle, std=0.3)
    loc = isometry.poincare_to_lorentz(middle[0], C)
    ours = WrappedNormal(loc, 0.3, C).sample((20_000,))
    spreads = ball.dist(middle, theirs), lorentz.distance(loc.expand_as(ours), ours, C)
    for spread in spreads:
        assert spread.square().mean().item() == pytest.approx(5 * 0.3**2, rel=0.05)


def test_what_has_no_counterpart():
    """Their names exist and ours do not; points stay on the manifold without `stabilize`."""
    for name in ("SparseRiemannianSGD", "SparseRiemannianAdam", "RiemannianLineSearch"):
        assert hasattr(geoopt.optim, name) and not hasattr(hyco.models.hyperbolic.optim, name)
    assert "stabilize" in inspect.signature(geoopt.optim.RiemannianAdam).parameters
    assert "stabilize" not in inspect.signature(RiemannianAdam).parameters
    table = nn.Parameter(poincare.exp0(torch.randn(50, 3), 1.0))
    optimiser = RiemannianAdam([{"params": [table], "manifold": "poincare", "c": 1.0}], lr=0.3)
    for _ in range(50):
        optimiser.zero_grad()
        (-poincare.distance(table, torch.zeros(50, 3), 1.0)).sum().backward()  # outwards
        optimiser.step()
        assert (table.norm(dim=1) < 1).all() and table.isfinite().all()


def one_step(make, start, target, manifold=None):
    """Where one step towards the targets ends."""
    point = (
        geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        if manifold
        else nn.Parameter(start.clone())
    )
    optimiser = make([point] if manifold else [{"params": [point], "manifold": "poincare", "c": 1.0}])
    poincare.distance(point, target, 1.0).square().sum().backward()
    before = point.grad.clone()
    optimiser.step()
    return point.detach(), torch.equal(before, point.grad)


@pytest.mark.parametrize(("lr", "apart"), [(0.05, 1.2e-3), (0.01, 4.8e-5)])
def test_a_retraction_is_off_by_the_square_of_the_step(lr, apart):
    torch.manual_seed(0)
    start, target = (poincare.exp0(0.5 * torch.randn(200, 5, dtype=torch.double), 1.0) for _ in range(2))
    one = torch.tensor(1.0, dtype=torch.double)
    ours, _ = one_step(lambda p: RiemannianAdam(p, lr=lr), start, target)
    theirs, _ = one_step(
        lambda p: geoopt.optim.RiemannianAdam(p, lr=lr), start, target, geoopt.PoincareBall(one)
    )
    assert torch.allclose(poincare.distance(start, ours, 1.0), start.new_tensor(lr))
    assert poincare.distance(ours, theirs, 1.0).max().item() == pytest.approx(apart, rel=0.05)


def test_weight_decay_is_written_into_their_gradient():
    torch.manual_seed(0)
    start, target = (poincare.exp0(0.5 * torch.randn(3, 5, dtype=torch.double), 1.0) for _ in range(2))
    _, untouched = one_step(lambda p: RiemannianAdam(p, weight_decay=0.1), start, target)
    _, kept = one_step(
        lambda p: geoopt.optim.RiemannianAdam(p, weight_decay=0.1),
        start,
        target,
        geoopt.PoincareBall(torch.tensor(1.0, dtype=torch.double)),
    )
    assert untouched and not kept


def test_the_exact_ball_takes_our_steps_of_sgd():
    torch.manual_seed(0)
    start, target = (poincare.exp0(0.5 * torch.randn(20, 5, dtype=torch.double), 1.0) for _ in range(2))
    ball = geoopt.PoincareBallExact(torch.tensor(1.0, dtype=torch.double))
    ours, _ = one_step(lambda p: RiemannianSGD(p, lr=0.1), start, target)
    theirs, _ = one_step(lambda p: geoopt.optim.RiemannianSGD(p, lr=0.1), start, target, ball)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


def test_the_first_step_with_momentum():
    """0.9 g_E + g_R there, g_R here; in Euclidean space 1.9 g there and g in torch."""
    start = poincare.exp0(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.double), 1.0)
    target, one = (
        poincare.exp0(torch.tensor([[0.3, 0.8, 0.0]], dtype=torch.double), 1.0),
        torch.tensor(1.0).double(),
    )
    lr = 1e-7
    (ours, _), (plain, _) = (
        one_step(lambda p, m=m: RiemannianSGD(p, lr=lr, momentum=m), start, target) for m in (0.9, 0.0)
    )
    assert torch.allclose(ours, plain, rtol=0, atol=1e-15)
    theirs, _ = one_step(
        lambda p: geoopt.optim.RiemannianSGD(p, lr=lr, momentum=0.9), start, target, geoopt.PoincareBall(one)
    )
    factor = poincare.conformal(start, 1.0).item()
    assert factor == pytest.approx(4.8, abs=0.05)
    ratio = ((theirs - start).norm() / (plain - start).norm()).item()
    assert ratio == pytest.approx(1 + 0.9 * factor**2, rel=1e-4) == pytest.approx(21.4, abs=0.1)
    flat = nn.Parameter(torch.ones(2))
    flat.grad = torch.ones(2)
    geoopt.optim.RiemannianSGD([flat], lr=0.1, momentum=0.9).step()
    assert torch.allclose(flat.detach(), torch.tensor(1 - 0.19))


def test_the_second_moment_of_a_point():
    start, target = points(3), points(3)
    theirs = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.PoincareBall(torch.tensor(1.0).double()))
    ours = nn.Parameter(start.clone())
    found = []
    for p, optimiser in (
        (theirs, geoopt.optim.RiemannianAdam([theirs])),
        (ours, RiemannianAdam([{"params": [ours], "manifold": "poincare", "c": 1.0}])),
    ):
        poincare.distance(p, target, 1.0).square().sum().backward()
        optimiser.step()
        found.append(optimiser.state[p]["exp_avg_sq"])
    assert found[0].shape == (3, 5) and found[1].shape == (3, 1)
    assert torch.allclose(found[0], found[1].expand(3, 5))


def test_a_closure_has_gradients_in_ours_and_amsgrad_is_refused_for_points():
    point = nn.Parameter(torch.full((1, 2), 0.1))
    optimiser = RiemannianAdam([{"params": [point], "manifold": "poincare", "c": 1.0}], amsgrad=True)

    def closure():
        assert torch.is_grad_enabled()
        loss = point.square().sum()
        loss.backward()
        return loss

    with torch.no_grad(), pytest.raises(ValueError, match="amsgrad"):
        optimiser.step(closure)
