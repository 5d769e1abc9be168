"""Riemannian optimisers: torch's own digits on Euclidean parameters, geodesic steps on points."""

import copy

import geoopt
import pytest
import torch
from torch import nn

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.optim import RiemannianAdam, RiemannianSGD, parameter_groups

CASES = [
    (RiemannianSGD, torch.optim.SGD, {"lr": 0.1}),
    (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (RiemannianSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    (RiemannianAdam, torch.optim.Adam, {"lr": 0.01}),
    (RiemannianAdam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    (RiemannianAdam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_euclidean_parameters_take_torchs_own_steps(ours, theirs, options):
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    twin = copy.deepcopy(net)
    pairs = ((net, ours(parameter_groups(net), **options)), (twin, theirs(twin.parameters(), **options)))
    for step in range(12):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        for model, optimiser in pairs:
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("make", [
    lambda g: RiemannianSGD(g, lr=0.05),
    lambda g: RiemannianSGD(g, lr=0.02, momentum=0.9),
    lambda g: RiemannianSGD(g, lr=0.02, momentum=0.9, nesterov=True),
    lambda g: RiemannianAdam(g, lr=0.05),
])  # fmt: skip
@pytest.mark.parametrize("model", ["poincare", "lorentz"])
def test_points_reach_the_frechet_mean_of_their_targets(make, model):
    torch.manual_seed(0)
    c, space = 0.7, {"poincare": poincare, "lorentz": lorentz}[model]
    table = hnn.Embedding(3, 4, points=True, std=1.0, c=c, model=model).double()
    targets = space.exp0(torch.randn(5, 4, dtype=torch.double), c)
    groups = parameter_groups(table)
    assert [g.get("manifold") for g in groups] == [model]
    optimiser = make(groups)
    for _ in range(300):
        optimiser.zero_grad()
        loss = space.distance(table.weight[:, None], targets[None], c).square().mean(1).sum()
        loss.backward()
        optimiser.step()
    logs = space.log(table.weight.detach()[:, None], targets[None], c).mean(1)
    assert logs.norm(dim=-1).max() < 0.02
    assert (table.weight[0] - table.weight[1]).norm() < 0.05


def test_one_sgd_step_equals_geoopt():
    torch.manual_seed(0)
    start, target = (poincare.exp0(0.5 * torch.randn(4, 3, dtype=torch.double), 1.0) for _ in range(2))
    theirs = geoopt.ManifoldParameter(
        start.clone(), manifold=geoopt.PoincareBall(c=torch.tensor(1.0).double())
    )
    ours = nn.Parameter(start.clone())
    # geoopt retracts where we follow the geodesic: equal to second order in the step.
    one = geoopt.optim.RiemannianSGD([theirs], lr=1e-4)
    two = RiemannianSGD([{"params": [ours], "manifold": "poincare", "c": 1.0}], lr=1e-4)
    for p, optimiser in ((theirs, one), (ours, two)):
        poincare.distance(p, target, 1.0).square().sum().backward()
        optimiser.step()
    assert torch.allclose(ours - start, theirs.data - start, rtol=1e-2, atol=1e-7)
    exact = poincare.exp(start, 1e-4 * 2 * poincare.log(start, target, 1.0), 1.0)
    assert torch.allclose(ours, exact, rtol=0, atol=1e-12)


def test_mixed_groups_and_a_saved_state():
    torch.manual_seed(0)
    net = nn.Sequential(
        hnn.Embedding(6, 4, points=True, std=0.3), hnn.ChangeManifold("poincare", "tangent"), hnn.MLR(4, 3)
    )
    label, index = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)
    optimiser = RiemannianAdam(parameter_groups(net, weight_decay=1e-4), lr=0.05)
    losses = []
    for step in range(60):
        if step == 30:
            state = copy.deepcopy(optimiser.state_dict())
            optimiser = RiemannianAdam(parameter_groups(net, weight_decay=1e-4), lr=0.05)
            optimiser.load_state_dict(state)

        def closure(optimiser=optimiser):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(index), label)
            loss.backward()
            return loss

        losses.append(optimiser.step(closure).item())
    assert losses[-1] < 0.3 * losses[0] and net[0].weight.norm(dim=1).max() < 1


@pytest.mark.parametrize("make", [
    lambda g: RiemannianSGD(g, lr=0.02, momentum=0.9),
    lambda g: RiemannianAdam(g, lr=0.1),
])  # fmt: skip
@pytest.mark.parametrize("model", ["poincare", "lorentz"])
def test_points_that_repel_each_other_stop_at_the_rim(make, model):
    torch.manual_seed(0)
    space = {"poincare": poincare, "lorentz": lorentz}[model]
    table = hnn.Embedding(4, 3, points=True, std=0.5, model=model)
    optimiser = make(parameter_groups(table))
    for _ in range(150):
        optimiser.zero_grad()
        (-space.pairwise_distance(table.weight, table.weight, 1.0).sum()).backward()
        optimiser.step()
    radii = space.distance(table.weight, torch.zeros(4, 3), 1.0)
    assert table.weight.isfinite().all() and (radii > 7).all()
    assert radii.max() < {"poincare": 15, "lorentz": lorentz.MAX_RADIUS + 1e-3}[model]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(RiemannianSGD, torch.optim.SGD), (RiemannianAdam, torch.optim.Adam)]
)
def test_step_hooks_run_once_a_step(ours, theirs):
    """Also where torch has hooked its own class, which it does when one is made."""
    theirs([nn.Parameter(torch.zeros(1))])
    points, plain = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    optimiser = ours([{"params": [plain]}, {"params": [points], "manifold": "poincare", "c": 1.0}], lr=0.1)
    calls = []
    optimiser.register_step_pre_hook(lambda *_: calls.append("before"))
    optimiser.register_step_post_hook(lambda *_: calls.append("after"))
    points.grad, plain.grad = torch.ones(2, 2), torch.ones(2)
    optimiser.step()
    assert calls == ["before", "after"] and (points != 0).all() and (plain != 0).all()


def test_bad_groups_are_named():
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="'sphere'"):
        RiemannianSGD([{"params": [p], "manifold": "sphere", "c": 1.0}], lr=0.1).step()
    with pytest.raises(ValueError, match="amsgrad"):
        RiemannianAdam([{"params": [p], "manifold": "poincare", "c": 1.0}], lr=0.1, amsgrad=True).step()
    p.grad = p.grad.to_sparse()
    with pytest.raises(ValueError, match="use hnn"):
        RiemannianSGD([{"params": [p], "manifold": "poincare", "c": 1.0}], lr=0.1).step()
