"""WrappedNormal: total mass and moments by numerical integration about the origin, fifty digits, gradients."""

import math

import mpmath as mp
import pytest
import torch

from hyco.models.hyperbolic import lorentz
from hyco.models.hyperbolic.ops import log_sinhc
from hyco.models.hyperbolic.wrapped_normal import WrappedNormal
from tests.oracle import hyperbolic_geometry as O


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.double)


def grid(dim, c, radius, steps):
    """Points in polar coordinates about the origin and their volumes (dim 2 or 3), by the midpoint rule."""
    rho = (torch.arange(steps, dtype=torch.double) + 0.5) * (radius / steps)
    turn = (torch.arange(steps, dtype=torch.double) + 0.5) * (2 * math.pi / steps)
    sinh = torch.sinh(c**0.5 * rho) / c**0.5
    volume = sinh ** (dim - 1) * (radius / steps) * (2 * math.pi / steps)
    circle = torch.stack([turn.cos(), turn.sin()], -1)
    if dim == 2:
        return sinh.view(-1, 1, 1) * circle, volume.view(-1, 1).expand(-1, steps)
    tilt = (torch.arange(steps // 2, dtype=torch.double) + 0.5) * (2 * math.pi / steps)
    ring = tilt.sin().view(-1, 1, 1) * circle
    sphere = torch.cat([ring, tilt.cos().view(-1, 1, 1).expand_as(ring[..., :1])], -1)
    weights = tilt.sin().view(-1, 1) * (2 * math.pi / steps)
    return sinh.view(-1, 1, 1, 1) * sphere, (volume.view(-1, 1, 1) * weights).expand(-1, -1, steps)


CASES = [(2, 0.5, [0.8, -0.3], [0.5, 0.9], 400), (2, 2.0, [0.2, 0.9], [0.4, 0.4], 400),
         (3, 1.0, [0.5, 0.1, -0.4], [0.5, 0.3, 0.6], 90)]  # fmt: skip


@pytest.mark.parametrize(("dim", "c", "loc", "scale", "steps"), CASES)
def test_mass_is_one_and_samples_have_the_moments_of_the_density(dim, c, loc, scale, steps):
    """The grid knows the origin only, the density is about loc: a wrong volume factor or transport shows."""
    law = WrappedNormal(double(*loc), double(*scale), c)
    points, volume = grid(dim, c, 7.0, steps)
    mass = law.log_prob(points).exp() * volume
    assert abs(mass.sum() - 1) < 1e-3
    x = law.sample((40_000,))
    for f in (lambda p: lorentz.distance(torch.zeros_like(p), p, c), lambda p: p[..., 0].clamp(-3, 3)):
        seen, want = f(x), (mass * f(points)).sum()
        assert abs(seen.mean() - want) < 4 * seen.std() / 200 + 1e-3


def test_density_has_fifty_digits_worth_of_formula():
    """log and transport of mpmath, then algorithm 2 of the paper."""
    for dtype, tolerance in ((torch.double, 1e-11), (torch.float, 2e-4)):
        for size in (1e-3, 0.5, 2.0):
            loc, x = size * torch.randn(2, 3, dtype=dtype)
            c, scale = 0.7, torch.tensor([0.5, 1.0, 1.5], dtype=dtype)
            m, p = O.vec(loc), O.vec(x)
            v = O.transport(m, [mp.mpf(0)] * 3, O.log(m, p, mp.mpf(c)), mp.mpf(c))
            r = mp.sqrt(mp.mpf(c)) * O.norm(v)
            want = sum(-((a / s) ** 2) / 2 - mp.log(s) for a, s in zip(v, O.vec(scale), strict=True))
            want -= mp.mpf(1.5) * mp.log(2 * mp.pi) + 2 * mp.log(mp.sinh(r) / r)
            got = WrappedNormal(loc, scale, c).log_prob(x).item()
            assert abs(got - float(want)) <= tolerance * max(1, abs(float(want)))


def test_samples_are_differentiable_in_all_parameters():
    parameters = [x.requires_grad_() for x in (double(0.3, -0.6), double(0.7, 0.7), double(0.5)[0])]

    def drawn(loc, scale, c):
        torch.manual_seed(3)
        law = WrappedNormal(loc, scale, c)
        x = law.rsample((4,))
        return x, law.log_prob(x)

    assert torch.autograd.gradcheck(drawn, parameters)


@pytest.mark.parametrize("far", [0.0, 1e-20, 1.0, 1e3])
def test_float32_stays_finite(far):
    loc = torch.full((3,), far, requires_grad=True)
    law = WrappedNormal(loc, 0.1, 1.0)
    for x in (law.sample((5,)), loc.detach(), -loc.detach(), torch.zeros(3)):
        x = x.requires_grad_()
        density = law.log_prob(x)
        assert density.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(density.sum(), (loc, x)))
    s = torch.tensor([0.0, 1e-8, 399.0, 401.0, 1e4, 1e8], requires_grad=True)
    want = [float(mp.log(mp.sinh(mp.sqrt(v)) / mp.sqrt(v))) if v else 0.0 for v in s.tolist()]
    assert torch.allclose(log_sinhc(s), torch.tensor(want), rtol=1e-5, atol=1e-7)
    assert torch.autograd.grad(log_sinhc(s).sum(), s)[0].isfinite().all()


def test_shapes_and_errors():
    law = WrappedNormal(torch.zeros(4, 1, 3), torch.ones(5, 1), torch.tensor(0.5))
    assert law.batch_shape == (4, 5) and law.event_shape == (3,)
    x = law.sample((2,))
    assert x.shape == (2, 4, 5, 3) and law.log_prob(x).shape == (2, 4, 5)
    assert law.expand((7, 4, 5)).sample().shape == (7, 4, 5, 3)
    with pytest.raises(ValueError, match="scale"):
        WrappedNormal(torch.zeros(3), -1.0)
    with pytest.raises(ValueError, match="c must be positive"):
        WrappedNormal(torch.zeros(3), 1.0, 0.0)
    with pytest.raises(ValueError, match="got a number"):
        WrappedNormal(torch.tensor(0.0), 1.0)
