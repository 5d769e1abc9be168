"""Batch norm and pooling in float64 against HypLL where HypLL is right, against the textbook elsewhere."""

import hypll.nn as hypll
import pytest
import torch
from hypll.manifolds.poincare_ball.math import stats as hypll_stats
from torch import nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, mean, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.pooling import midpoint
from tests.models.hyperbolic.test_hyperbolic_layers import (
    CURVATURES,
    EXACT,
    _seed,  # noqa: F401  (a fixture)
    both,
    points,
)
from tests.oracle import hyperbolic_layers as O


@pytest.mark.parametrize("c", CURVATURES)
def test_batch_norm_in_training_equals_hypll_with_midpoint(c):
    ball = O.hypll_ball(c)
    theirs = hypll.HBatchNorm2d(4, manifold=ball, use_midpoint=True)
    theirs.norm.bias.data, theirs.norm.weight.data = (
        points(4, size=0.5),
        torch.tensor(1.7, dtype=torch.double),
    )
    ours = hnn.BatchNorm2d(4, eps=1e-6, c=c).double()
    ours.bias.data = theirs.norm.bias.data.clone()
    ours.weight.data = torch.log(torch.expm1(theirs.norm.weight.data))
    out, peer, slope, peer_slope = both(ours, theirs, points(3, 4, 5, 6) + 0.1, ball, 1)
    assert torch.allclose(out, peer, rtol=1e-7, atol=1e-9) and torch.allclose(
        slope, peer_slope, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("model", ["poincare", "lorentz"])
def test_batch_norm_about_the_frechet_mean_equals_hypll(c, model):
    ball, twice = O.hypll_ball(c), 2 if model == "lorentz" else 1
    theirs = hypll.HBatchNorm2d(4, manifold=ball)
    theirs.norm.bias.data, theirs.norm.weight.data = (
        points(4, size=0.5),
        torch.tensor(1.7, dtype=torch.double),
    )
    ours = hnn.BatchNorm2d(4, eps=1e-6, c=c, model=model, mean="frechet").double()
    ours.bias.data = twice * theirs.norm.bias.data
    ours.weight.data = torch.log(torch.expm1(theirs.norm.weight.data))
    midpoint_norm = hnn.BatchNorm2d(4, eps=1e-6, c=c).double()
    midpoint_norm.load_state_dict({**ours.state_dict(), "bias": theirs.norm.bias.data})
    u = points(3, 4, 5, 6) + 0.1
    out, peer, slope, peer_slope = both(lambda u: ours(twice * u) / twice, theirs, u, ball, 1)
    assert torch.allclose(out, peer, rtol=1e-9, atol=1e-11)
    assert torch.allclose(slope, peer_slope, rtol=1e-8, atol=1e-10)
    assert (midpoint_norm(u) - out).abs().max() > 1e-5, "the two means do not differ here"


def test_batch_norm_about_the_frechet_mean_in_the_rest():
    """Its own running statistics, second derivatives, float32 and a name that is wrong."""
    norm, u = hnn.BatchNorm1d(3, c=1.0, mean="frechet", momentum=None), points(64, 3).float()
    out = norm(u)
    assert (norm.eval()(u) - out).abs().max() < 1e-4 * out.abs().max()
    exact = hnn.BatchNorm1d(3, c=1.0, mean="frechet").double()(u.double())
    assert (out - exact).abs().max() < 1e-5 * exact.abs().max()
    small = points(5, 2).requires_grad_()
    layer = hnn.BatchNorm1d(2, c=0.7, mean="frechet").double()
    assert torch.autograd.gradcheck(layer, (small,))
    with pytest.raises(ValueError, match="'median'"):
        hnn.BatchNorm1d(3, mean="median")


def test_batch_norm_centres_and_scales():
    """Moved to the origin as a rigid body where the variance is already right, and scaled to variance 1 otherwise."""
    u, zero = points(64, 5) + points(5), torch.zeros(5, dtype=torch.double)
    x = lorentz.exp0(2 * u, 0.7)
    center = mean.midpoint(x, 0.7)
    norm = hnn.BatchNorm1d(5, c=0.7, eps=0.0).double()
    out = lorentz.exp0(2 * norm(u), 0.7)
    assert torch.allclose(out.new_tensor(1.0), mean.frechet_variance(out, 0.7, zero), **EXACT)
    norm.weight.data = torch.log(torch.expm1(mean.frechet_variance(x, 0.7, center)))
    moved = lorentz.exp0(2 * norm(u), 0.7)
    assert torch.allclose(mean.midpoint(moved, 0.7), zero, atol=1e-9)
    assert torch.allclose(
        lorentz.pairwise_distance(moved, moved, 0.7), lorentz.pairwise_distance(x, x, 0.7), atol=1e-6
    )


def test_batch_norm_keeps_running_statistics_and_eval_does_not_depend_on_the_batch():
    """The published code normalises by the test batch, and HypLL's momentum never updates (it has none)."""
    norm = hnn.BatchNorm2d(3, c=0.5).double()
    shift = points(3, 1, 1, size=0.6)
    for _ in range(200):
        norm(points(16, 3, 4, 4) + shift)
    norm.eval()
    u = points(8, 3, 4, 4) + shift
    together, alone = norm(u), torch.cat([norm(u[i : i + 1]) for i in range(8)])
    assert torch.allclose(together, alone, **EXACT)
    norm.train()
    big = points(400, 3, 4, 4) + shift
    want = norm(big)
    norm.eval()
    assert (norm(big) - want).abs().max() < 0.05 * want.abs().max()
    assert norm.num_batches_tracked == 201
    cumulative = hnn.BatchNorm1d(3, c=0.5, momentum=None).double()
    for _ in range(3):
        cumulative(points(7, 3))
    assert cumulative.num_batches_tracked == 3


def moving_statistics(drift: float, momentum: float | None = 0.1) -> tuple[float, float]:
    """Distances of the running mean and of the last batch's from the true mean, averaged over 20 batches of 64."""
    torch.manual_seed(0)
    norm = hnn.BatchNorm1d(8, c=1.0, momentum=momentum).double()
    way, errors = F.normalize(torch.randn(8, dtype=torch.double), dim=0), []
    for step in range(40):
        centre = lorentz.exp0(2 * (0.5 + drift * step) * way, 1.0)
        x = lorentz.add(centre.expand(64, 8), lorentz.exp0(2 * points(64, 8, size=0.5), 1.0), 1.0)
        norm(lorentz.log0(x, 1.0) / 2)
        batch, running = mean.midpoint(x, 1.0), lorentz.exp0(2 * norm.running_mean, 1.0)
        errors.append([float(lorentz.distance(m, centre, 1.0)) for m in (running, batch)])
    return tuple(torch.tensor(errors[20:]).mean(0).tolist())


def test_the_running_mean_follows_a_mean_that_moves_and_averages_one_that_stays():
    """At high rates the mean moves by more than a batch's noise; with a fixed share of 0.1 it lagged nine steps."""
    still, noise = moving_statistics(0.0)
    assert still < 0.8 * noise
    moving, noise = moving_statistics(0.05)
    assert moving < noise, (
        "nine steps are 0.9; the weight of one batch alone, unsmoothed, left 1.14 times the noise"
    )
    assert moving_statistics(0.0, 0.0)[0] == pytest.approx(1.0), "momentum 0 keeps the mean at the origin"


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_from_before_running_movement_loads(strict):
    norm, old = hnn.BatchNorm1d(3), hnn.BatchNorm1d(3)
    for _ in range(3):
        old(torch.randn(8, 3) + 2)
    state = {key: value for key, value in old.state_dict().items() if key != "running_movement"}
    net = nn.Sequential(norm)
    net.load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=strict)
    assert torch.equal(norm.running_mean, old.running_mean) and norm.running_movement == 1
    norm(old.weight.detach() * torch.randn(64, 3) + 2)
    assert norm.running_mean.isfinite().all() and norm.running_movement > 0
    assert len(state) == 5 and "running_movement" not in state
    untracked = hnn.BatchNorm1d(3, track_running_stats=False)
    untracked.load_state_dict({key: state[key] for key in ("weight", "bias")})


@pytest.mark.parametrize("fused", [True, False])
def test_without_running_statistics_eval_uses_the_batch_s_as_in_torch(fused):
    torch.manual_seed(0)
    norm = hnn.BatchNorm1d(3, c=0.7, track_running_stats=False, fused=fused).double()
    tracked = hnn.BatchNorm1d(3, c=0.7, fused=fused).double()
    assert set(norm.state_dict()) == set(nn.BatchNorm1d(3, track_running_stats=False).state_dict())
    assert [b for _, b in norm.named_buffers()] == []
    assert norm.running_mean is norm.running_var is norm.running_movement is norm.num_batches_tracked is None
    norm.bias.data = points(3, size=0.4)
    tracked.load_state_dict(norm.state_dict(), strict=False)
    u = points(9, 3) + 0.5
    want = tracked(u)
    for mode in (True, False):
        assert torch.equal(norm.train(mode)(u), want)
    assert not torch.allclose(tracked.eval()(u), want, atol=1e-2), "one batch is not yet its running mean"
    assert not torch.allclose(norm(u[:4]), want[:4], atol=1e-2), "a point's place depends on its batch"
    with pytest.raises(RuntimeError, match="running_mean"):
        norm.load_state_dict(tracked.state_dict())


def test_batch_norm_of_one_point_and_of_equal_points_is_finite():
    for u in (torch.zeros(4, 3), torch.ones(4, 3), torch.randn(1, 3)):
        u = u.clone().requires_grad_()
        norm = hnn.BatchNorm1d(3, c=1.0)
        out = norm(u)
        out.square().sum().backward()
        assert out.isfinite().all() and u.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in norm.parameters())


def test_pooling_of_identical_points_is_the_point_and_hypll_returns_a_fraction_of_it():
    ball, v = O.hypll_ball(0.7), points(3)
    u = v.view(1, 3, 1, 1).expand(2, 3, 6, 6).contiguous()
    for layer in (
        hnn.AvgPool2d(3, c=0.7),
        hnn.AvgPool2d(2, c=0.7),
        hnn.AdaptiveAvgPool2d(1, c=0.7),
        hnn.MaxPool2d(2),
    ):
        assert torch.allclose(layer(u), u[:, :, :1, :1].expand_as(layer(u)), **EXACT)
    theirs = O.hypll_run(hypll.HAvgPool2d(3, ball, use_midpoint=True), u, ball)
    share = theirs.norm(dim=1) / v.norm()
    assert share.max() < 0.5, "HypLL's pooling is repaired: update the migration guide"


def test_average_pooling_is_the_midpoint_of_the_window():
    u = points(2, 3, 5, 5)
    for include in (True, False):
        got = hnn.AvgPool2d(3, stride=2, padding=1, count_include_pad=include, c=0.7).double()(u)
        corner = u[:, :, :2, :2].flatten(2).transpose(1, 2)
        if include:
            corner = torch.cat([corner, corner.new_zeros(2, 5, 3)], 1)
        want = lorentz.log0(mean.midpoint(lorentz.exp0(2 * corner, 0.7), 0.7), 0.7) / 2
        assert torch.allclose(got[:, :, 0, 0], want, **EXACT)
    whole = hnn.AdaptiveAvgPool2d(1, c=0.7)(u).flatten(1)
    assert torch.allclose(whole, midpoint(u.flatten(2).transpose(1, 2), 2 * 0.7**0.5), **EXACT)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(3, 2, 2, 1), (7, 3, 2, 1), (6, 3, 4, 1), (8, 4, 3, 2), (5, (3, 2), (2, 1), (0, 1))],
)
def test_average_pooling_near_the_origin_is_torchs(size, kernel, stride, padding, ceil, include):
    u = points(2, 3, size, size)
    window = (kernel, stride, padding, ceil, include)
    got = hnn.AvgPool2d(*window, c=0.7)(1e-5 * u) / 1e-5
    assert torch.allclose(got, nn.AvgPool2d(*window)(u), rtol=1e-8, atol=1e-8)


def test_midpoint_equals_hypll_and_its_variance_averages_the_wrong_axis():
    c, w = 0.7, torch.rand(9, dtype=torch.double)
    x = poincare.exp0(points(9, 4), c)
    tensor_c = torch.tensor(c, dtype=torch.double)
    theirs = hypll_stats.midpoint(x, tensor_c, w=w.unsqueeze(-1))
    assert torch.allclose(mean.midpoint_poincare(x, c, w), theirs, **EXACT)
    assert torch.allclose(mean.midpoint_poincare(x, c), hypll_stats.midpoint(x, tensor_c), **EXACT)
    lifted = 2 * x / (1 - c * x.square().sum(-1, keepdim=True))
    center = hypll_stats.frechet_mean(x, tensor_c)
    found = mean.frechet_mean(lifted, c)
    assert torch.allclose(found / (1 + (1 + c * found.square().sum()).sqrt()), center, rtol=1e-8)
    want = mean.frechet_variance(lifted, c)
    assert torch.allclose(hypll_stats.frechet_variance(x, tensor_c, vec_dim=1), want, rtol=1e-8)
    # Coordinates in dimension 1: HypLL drops that dimension first and then averages the one after the one it
    # was asked for.
    images, zero = (
        poincare.exp0(points(2, 9, 5, 4), c).movedim(-1, 1),
        torch.zeros(2, 4, 1, 5, dtype=torch.double),
    )
    theirs = hypll_stats.frechet_variance(images, tensor_c, mu=zero, vec_dim=1, batch_dim=2)
    d2 = poincare.distance(images.movedim(1, -1), zero.movedim(1, -1), c).square()
    assert torch.allclose(theirs, d2.mean(2)) and theirs.shape != d2.mean(1).shape


@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_without_points_changes_nothing(fused):
    norm = hnn.BatchNorm2d(4, fused=fused)
    norm(0.1 * torch.randn(3, 4, 2, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for _ in range(2):
        u = torch.zeros(0, 4, 2, 2, requires_grad=True)
        out = norm(u)
        assert out.shape == u.shape
        out.sum().backward()
        assert all(value.grad is None for value in norm.parameters()) and u.grad is not None
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
        norm.eval()
