"""Busemann layers (Chen et al. 2026) against the Poincare ball's formulas and the definition of the function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.busemann import busemann
from tests.oracle import lorentz_layers

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SPACES = [(0.3, "lorentz"), (1.0, "poincare"), (2.0, "poincare")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def points(*shape, size=0.5):
    return (size * torch.randn(*shape, dtype=torch.double)).requires_grad_()


def equal(out, want, inputs):
    by = torch.randn_like(out)
    slopes = [torch.autograd.grad((x * by).sum(), inputs) for x in (out, want)]
    assert torch.allclose(out, want, **EXACT)
    assert all(torch.allclose(a, b, **EXACT) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize(("c", "model"), SPACES)
def test_layers_equal_the_formulas_of_the_ball(c, model):
    rate, u = c**0.5 * (2 if model == "poincare" else 1), points(4, 3, 5)
    head = hnn.BusemannMLR(5, 7, c=c, model=model).double()
    nn.init.normal_(head.bias)
    want = head.bias - head.weight.norm(dim=1) * lorentz_layers.busemann(u, head.weight, c, rate)
    equal(head(u), want, (u, head.weight, head.bias))
    layer = hnn.BusemannLinear(5, 7, gyro_bias=True, c=c, model=model).double()
    nn.init.normal_(layer.bias, std=0.3)
    nn.init.normal_(layer.gyro_bias, std=0.3)
    want = lorentz_layers.busemann_linear(u, layer.weight, layer.bias, layer.gyro_bias, c, rate)
    equal(layer(u), want, (u, layer.weight, layer.bias, layer.gyro_bias))
    plain = hnn.BusemannLinear(5, 7, c=c, model=model).double()
    plain.weight, plain.bias = layer.weight, layer.bias
    nn.init.zeros_(layer.gyro_bias)
    assert torch.allclose(layer(u), plain(u), **EXACT)


def test_the_function_is_the_limit_of_distances():
    """d(x, exp_0(t v)) - t at t = 16, where the rest is below 1e-12."""
    u, v = points(6, 3), F.normalize(points(6, 3), dim=-1)
    far = lorentz.exp0(16 * v, 1.0, max_radius=30.0)
    limit = lorentz.distance(lorentz.exp0(u, 1.0), far, 1.0) - 16
    assert torch.allclose(busemann(u, v, 1.0).diagonal(), limit, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("model", ["lorentz", "poincare"])
def test_near_the_origin_the_layer_is_the_euclidean_one(model):
    layer, u = hnn.BusemannLinear(5, 7, c=0.8, model=model).double(), points(4, 5, size=1e-6)
    nn.init.normal_(layer.bias, std=1e-6)
    assert torch.allclose(layer(u), F.linear(u, layer.weight, layer.bias), rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("angle", [1e-6, 1.0, 6.0, 11.9])
def test_float32_has_digits_where_training_goes(angle):
    """A point in the direction of its class: cosh r - sinh r in float32 has no digit left from r = 9 on."""
    v = F.normalize(torch.randn(5, 8), dim=-1)
    u = (angle * v).requires_grad_()
    weight = v.clone().requires_grad_()
    found = busemann(u, weight, 1.0).diagonal()
    wide_u, wide_weight = u.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    want = busemann(wide_u, wide_weight, 1.0).diagonal()
    assert torch.allclose(found.double(), want, rtol=1e-5) and (
        angle > 11 or found.add(angle).abs().max() < 1e-2
    )
    slopes = (
        torch.autograd.grad(found.sum(), (u, weight)),
        torch.autograd.grad(want.sum(), (wide_u, wide_weight)),
    )
    assert all(torch.allclose(a.double(), b, rtol=1e-3, atol=1e-3) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_float32_stays_finite(size, scale):
    for layer in (hnn.BusemannMLR(4, 3), hnn.BusemannLinear(4, 3, gyro_bias=True)):
        layer.weight.data *= scale
        u = (size * torch.randn(2, 4)).requires_grad_()
        out = layer(u)
        slopes = torch.autograd.grad(out.sum(), (u, *layer.parameters()))
        assert all(x.isfinite().all() for x in (out, *slopes))
    aligned = torch.full((1, 4), float(size), requires_grad=True)
    head = hnn.BusemannMLR(4, 3)
    nn.init.constant_(head.weight, scale)
    slopes = torch.autograd.grad(head(aligned).sum(), (aligned, head.weight))
    assert all(x.isfinite().all() for x in slopes)


def test_a_normalised_net_learns():
    """Ten noisy patterns near the origin, a norm before each ReLU; the docstring says why."""
    y = torch.arange(1600) % 10
    x = (torch.randn(10, 64)[y] + 1.2 * torch.randn(1600, 64)) / 1.6 / 8
    net = nn.Sequential(
        hnn.BusemannLinear(64, 32), hnn.BatchNorm1d(32), nn.ReLU(), hnn.BusemannLinear(32, 16), hnn.BatchNorm1d(16),
        nn.ReLU(), hnn.BusemannMLR(16, 10),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for step in range(80):
        rows = slice(step * 64 % 1280, step * 64 % 1280 + 64)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    net.eval()
    assert (net(x[1280:]).argmax(1) == y[1280:]).double().mean() > 0.8
