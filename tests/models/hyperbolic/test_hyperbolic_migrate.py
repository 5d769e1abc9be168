"""A HypLL network, trained weights and all, in our layers."""

import math

import hypll.nn as hypll
import pytest
import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from torch import nn

from hyco.models.hyperbolic import curvature, isometry
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.migrate import HYPLL_ANGLE, load_hypll, recalibrate
from hyco.models.hyperbolic.nn.pooling import midpoint
from tests.oracle.hyperbolic_layers import hypll_run


def theirs(ball):
    net = nn.Module()
    net.conv1 = hypll.HConvolution2d(3, 4, 3, manifold=ball, padding=1)
    net.bn1 = hypll.HBatchNorm2d(4, manifold=ball, use_midpoint=True)
    net.fc = hypll.HLinear(4, 5, manifold=ball)
    return net


def ours(c, model="poincare"):
    net = nn.Module()
    net.conv1 = hnn.Conv2d(3, 4, 3, padding=1, c=c, model=model)
    net.bn1 = hnn.BatchNorm2d(4, eps=1e-6, c=c, model=model)
    net.fc = hnn.Linear(4, 5, c=c, model=model)
    return net


def plain(net):
    return {k: getattr(v, "tensor", v).detach().clone() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("model", ["poincare", "lorentz"])
def test_a_hypll_state_dict_loads_and_computes_the_same(model, shared):
    """In both models, whose tangent vectors have different lengths, and with a curvature shared by the layers."""
    torch.manual_seed(0)
    ball = PoincareBall(Curvature(0.1))
    source = theirs(ball)
    for name, p in source.named_parameters():
        if not name.endswith("c.value"):
            getattr(p, "tensor", p).data.normal_(0.3, 0.2)
    source.bn1.norm.weight.data.fill_(1.3)
    c = math.log1p(math.exp(0.1))
    assert abs(c - 0.744) < 1e-3
    state = plain(source)
    assert "conv1.weights" in state and "fc.z" in state
    target, twice = ours(curvature.Curvature(c) if shared else c, model), 2 if model == "lorentz" else 1
    load_hypll(target, state)
    u = 0.2 * torch.randn(2, 3, 6, 6)
    hidden = hypll_run(source.bn1, hypll_run(source.conv1, u, ball), ball)
    got = target.bn1(target.conv1(twice * u)) / twice
    assert torch.allclose(got, hidden, atol=1e-4)
    rows = 0.3 * torch.randn(7, 4)
    assert torch.allclose(target.fc(twice * rows) / twice, hypll_run(source.fc, rows, ball, -1), atol=1e-4)


def test_without_running_statistics_a_net_in_eval_mode_is_hypll_s():
    """HypLL's batch norm has no running statistics and uses the batch's in eval mode too."""
    torch.manual_seed(0)
    ball = PoincareBall(Curvature(0.1))
    source, c = theirs(ball), math.log1p(math.exp(0.1))
    source.bn1.norm.bias.data.normal_(0.0, 0.3)
    target, tracked = ours(c), ours(c)
    target.bn1 = hnn.BatchNorm2d(4, eps=1e-6, c=c, track_running_stats=False)
    for net in (target, tracked):
        load_hypll(net, plain(source))
    u = 0.2 * torch.randn(2, 3, 6, 6)
    want = hypll_run(source.eval().bn1, hypll_run(source.conv1, u, ball), ball)
    assert torch.allclose(target.eval().bn1(target.conv1(u)), want, atol=1e-4)
    assert not torch.allclose(tracked.eval().bn1(tracked.conv1(u)), want, atol=1e-2)
    recalibrate(target.bn1, [target.conv1(u)])
    assert target.bn1.running_mean is None, "nothing to recalibrate"


def test_points_far_out_stay_where_hypll_has_them():
    """Trained weights may rely on points beyond the default `max_angle`; HypLL's own limit is 6.2."""
    torch.manual_seed(0)
    ball = PoincareBall(Curvature(0.1))
    source, c = theirs(ball), math.log1p(math.exp(0.1))
    target = ours(c)
    target.conv1 = hnn.Conv2d(3, 4, 3, padding=1, c=c, max_angle=8.0)
    u = torch.nn.functional.normalize(torch.randn(7, 4), dim=-1) * 5 / (2 * c**0.5)
    assert not torch.allclose(
        hnn.Linear(4, 5, c=c)(u), hnn.Linear(4, 5, c=c, max_angle=HYPLL_ANGLE)(u), atol=0.1
    )
    load_hypll(target, plain(source))
    assert torch.allclose(target.fc(u), hypll_run(source.fc, u, ball, -1), rtol=1e-3)
    assert target.fc.max_angle == HYPLL_ANGLE and target.conv1.max_angle == 8


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("model", ["poincare", "lorentz"])
def test_an_embedding_keeps_its_points(model, points):
    torch.manual_seed(0)
    c = math.log1p(math.exp(0.1))
    source = hypll.HEmbedding(5, 3, manifold=PoincareBall(Curvature(0.1)))
    table = hnn.Embedding(5, 3, points=points, c=c, model=model)
    load_hypll(table, plain(source))
    there = hnn.ChangeManifold(model if points else "tangent", "lorentz", c=c, model=model)
    want = isometry.poincare_to_lorentz(source.weight.tensor.detach(), c)
    assert torch.allclose(there(table(torch.arange(5))), want, rtol=1e-4)


@pytest.mark.parametrize("model", ["poincare", "lorentz"])
@pytest.mark.parametrize(
    "constraint", [nn.functional.softplus, lambda value: value], ids=["softplus", "identity"]
)
def test_learned_curvatures_load_under_their_constraint(constraint, model):
    """As HypLL trains them: one number for all layers of a manifold, with the layers' outputs as the witness."""
    torch.manual_seed(0)
    ball = PoincareBall(Curvature(0.3, constraining_strategy=constraint, requires_grad=True))
    source = theirs(ball)
    shared = curvature.Curvature(1.0, learnable=True)
    target, twice = ours(shared, model), 2 if model == "lorentz" else 1
    load_hypll(target, plain(source), constraining_strategy=constraint)
    assert shared().item() == pytest.approx(ball.c().item(), rel=1e-6)
    rows = 0.3 * torch.randn(7, 4)
    assert torch.allclose(target.fc(twice * rows) / twice, hypll_run(source.fc, rows, ball, -1), atol=1e-5)
    own = nn.ModuleList(
        [hnn.Linear(4, 5, c=curvature.Curvature(1.0, learnable=True, high=h)) for h in (2.0, 1.0)]
    )
    pair = nn.ModuleList([hypll.HLinear(4, 5, manifold=PoincareBall(Curvature(v))) for v in (0.3, 0.7)])
    with pytest.raises(ValueError, match=r"outside the bounds 0\.001 to 1"):
        load_hypll(own, plain(pair))
    one = curvature.Curvature(1.0, learnable=True)
    with pytest.raises(ValueError, match="share one Curvature"):
        load_hypll(nn.ModuleList([hnn.Linear(4, 5, c=one), hnn.Linear(4, 5, c=one)]), plain(pair))


def test_the_identity_constraint_is_the_remedy_that_the_message_names():
    source = theirs(PoincareBall(Curvature(0.1, constraining_strategy=lambda value: value)))
    with pytest.raises(ValueError, match="constraining_strategy="):
        load_hypll(ours(0.1), plain(source))
    load_hypll(ours(0.1), plain(source), constraining_strategy=lambda value: value)
    with pytest.raises(ValueError, match=r"is -1, of which.*must be positive"):
        load_hypll(
            ours(0.1),
            {**plain(source), "fc.manifold.c.value": torch.tensor(-1.0)},
            constraining_strategy=lambda value: value,
        )


def test_what_does_not_fit_is_named():
    state = plain(theirs(PoincareBall(Curvature(0.1))))
    with pytest.raises(ValueError, match="softplus"):
        load_hypll(ours(0.1), {**state, "conv1.manifold.c.value": torch.tensor(0.1)})
    c = math.log1p(math.exp(0.1))
    with pytest.raises(ValueError, match=r"'fc\.z'"):
        load_hypll(ours(c), {k: v for k, v in state.items() if k != "fc.z"})
    with pytest.raises(ValueError, match="extra"):
        load_hypll(ours(c), {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"\[4, 7\]"):
        load_hypll(ours(c), {**state, "fc.z": torch.zeros(7, 4)})
    with pytest.raises(ValueError, match="positive"):
        load_hypll(ours(c), {**state, "bn1.norm.weight": torch.tensor(-1.0)})


def test_recalibration_gives_the_average_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(hnn.BatchNorm1d(3, c=0.5))
    batches = [0.3 * torch.randn(64, 3) + torch.tensor([0.5, 0.0, -0.2]) for _ in range(8)]
    recalibrate(net, batches)
    assert net[0].momentum == 0.1 and net[0].num_batches_tracked == 8
    want = midpoint(torch.cat(batches), 2 * 0.5**0.5)
    assert (net[0].running_mean - want).norm() < 0.01 < want.norm()
