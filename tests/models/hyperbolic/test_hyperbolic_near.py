"""Points that lie close together: batch norm in float32 beside HypLL's, both against float64."""

import hypll.nn as hypll
import pytest
import torch
from hypll.tensors import ManifoldTensor, TangentTensor

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn import batchnorm_fused as batch_norm_fused
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE
from tests.oracle.hyperbolic_layers import hypll_ball

NORMS, SPREADS = (1e-3, 0.3, 1.0, 2.0, 8.0), (1e-4, 1e-2, 0.1, 1.0)
ROUNDINGS = 1e-6
"""A relative error that a few roundings of float32 make."""


def cluster(norm, spread, count=32, size=8):
    """Tangent vectors about one of a given norm, and weights for their images."""
    generator = torch.Generator().manual_seed(1)
    way = torch.nn.functional.normalize(torch.randn(size, generator=generator), dim=0)
    u = norm * way + spread * torch.randn(count, size, generator=generator)
    return u, torch.randn(count, size, generator=generator)


def run(function, u, weights, dtype):
    """Output and gradient, in float64."""
    u = u.to(dtype).requires_grad_()
    out = function(u)
    (slope,) = torch.autograd.grad((out * weights.to(dtype)).sum(), u)
    return out.detach().double(), slope.double()


def theirs(u, weights, c, dtype):
    ball = hypll_ball(c).requires_grad_(False).to(dtype)
    norm = hypll.HBatchNorm(u.shape[1], ball, use_midpoint=True).to(dtype)

    def through(u):
        x = ball.expmap(TangentTensor(u, manifold=ball, man_dim=-1))
        assert isinstance(x, ManifoldTensor)
        return ball.logmap(None, norm(x)).tensor

    return run(through, u, weights, dtype)


def ours(u, weights, c, dtype, **options):
    norm = hnn.BatchNorm1d(u.shape[1], eps=1e-6, c=c, max_angle=MAX_ANGLE, **options)
    return run(norm.to(dtype), u, weights, dtype)


def off(got, want):
    return float((got - want).norm() / want.norm())


def sweep(c, norms, spreads):
    """Errors against float64 in output and gradient: fused, plain and HypLL's, [places, 3, 2]."""
    found = []
    for norm in norms:
        for spread in spreads:
            u, weights = cluster(norm, spread)
            exact = ours(u, weights, c, torch.double, fused=False)
            results = [ours(u, weights, c, torch.float, fused=fused) for fused in (True, False)]
            pairs = [(got, exact) for got in results]
            pairs.append((theirs(u, weights, c, torch.float), theirs(u, weights, c, torch.double)))
            found.append([[off(*pair) for pair in zip(*sides, strict=True)] for sides in pairs])
    return torch.tensor(found)


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
def test_batch_norm_is_never_further_from_float64_than_hypll(c):
    """In output and gradient; HypLL draws points beyond a distance of 6.2 back, which is an error of its own."""
    fused, plain, peers = sweep(c, NORMS, SPREADS).unbind(1)
    assert (torch.maximum(fused, plain) <= peers.clamp(min=ROUNDINGS)).all()


@pytest.mark.slow
def test_batch_norm_in_a_finer_sweep():
    """The figures of docs/mathematics.md."""
    norms, spreads = (1e-3, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0), (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
    found = torch.cat([sweep(c, norms, spreads) for c in (0.1, 1.0, 3.0)])
    errors, _, peers = found.unbind(1)
    above = errors > peers
    print(
        f"HypLL is closer in {above.any(1).sum()} of {len(found)} places, ours there at most {errors[above].max():.1e}"
    )
    print(f"largest errors: ours {errors.amax(0).tolist()}, HypLL {peers.amax(0).tolist()}")
    assert (errors <= peers.clamp(min=ROUNDINGS)).all()


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("fused", [True, False])
def test_copies_of_one_point_far_out_leave_batch_norm_finite(c, fused):
    """64 copies at tangent norm 5 gave NaN."""
    for norm in (0.0, 1e-8, 1.0, 5.0, 8.0, 1e3):
        u = cluster(norm, 0.0)[0].requires_grad_()
        layer = hnn.BatchNorm1d(8, c=Curvature(c, learnable=True), fused=fused)
        out = layer(u)
        slopes = torch.autograd.grad(out.square().sum() + out.sum(), [u, *layer.parameters()])
        assert all(t.isfinite().all() for t in (out, *slopes)), norm
        assert layer.running_mean.isfinite().all() and layer.running_var.isfinite()


@pytest.mark.parametrize("affine, given", [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize(
    ("size", "cap"), [(1e-9, MAX_ANGLE), (0.3, MAX_ANGLE), (0.3, 1.2), (30.0, MAX_ANGLE)]
)
def test_both_kernels_equal_autograd(monkeypatch: pytest.MonkeyPatch, affine, given, size, cap):
    """Values and gradients in input, weight, bias and c, whichever kernel the points' statistics would choose."""
    results = []
    for kernel in ("plain", "usual", "near"):
        torch.manual_seed(1)
        monkeypatch.setattr(batch_norm_fused, "_lost", lambda *_, near=kernel == "near": near)
        norm = hnn.BatchNorm1d(
            6, c=Curvature(0.9, learnable=True), affine=affine, fused=kernel != "plain", max_angle=cap
        ).double()
        for p in norm.parameters():
            if p.dim():
                torch.nn.init.normal_(p, std=0.5 if size < 1 else 5.0)
        if given:
            norm.running_mean.copy_(torch.linspace(-0.4, 0.3, 6))
            norm.eval()
        u = (size * torch.randn(3, 6, 7, dtype=torch.double)).requires_grad_()
        out = norm(u)
        results.append(
            (out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), [u, *norm.parameters()]))
        )
    # At 1e-9 the gradient in c is of third order, 2e-22, and all but the usual kernel round it to 3e-18; at 30
    # cosh(12)^2 leaves float64 six digits.
    tolerance, least = {1e-9: (1e-3, 1e-17), 0.3: (1e-10, 0.0), 30.0: (1e-5, 0.0)}[size]
    plain, *others = results
    for kernel in others:
        for got, want in zip(kernel, plain, strict=True):
            assert (got - want).norm() <= tolerance * want.norm() + least


def test_training_at_a_high_rate_stays_finite():
    """A net whose batch norms see ever tighter clusters: NaN after 25 steps once."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        hnn.Linear(4, 16), hnn.BatchNorm1d(16), hnn.Linear(16, 16), hnn.BatchNorm1d(16), hnn.MLR(16, 3)
    )
    x, y = torch.randn(64, 4), torch.randint(3, (64,))
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        assert loss.isfinite() and all(slope.isfinite().all() for slope in slopes)
        with torch.no_grad():  # steps of the size that Adam takes
            for p, slope in zip(net.parameters(), slopes, strict=True):
                p -= 0.1 * slope.sign()
