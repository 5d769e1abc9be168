"""Layers of van der Klis et al. 2026 against whole points in R^(D+1), and against `Linear`, `Conv2d` and `MLR`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyco.models.hyperbolic import nn as hnn
from tests.oracle import hyperbolic_layers, lorentz_layers

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SPACES = [(0.3, "lorentz"), (1.0, "poincare"), (2.0, "lorentz")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def points(*shape, size=0.5):
    return (size * torch.randn(*shape, dtype=torch.double)).requires_grad_()


def filled(layer):
    """The layer in float64 with a random bias."""
    nn.init.normal_(layer.bias, std=0.3)
    return layer.double()


def check(layer, oracle, u):
    """Values and gradients of input, weight and bias."""
    out, want = layer(u), oracle(u, layer.weight, layer.bias)
    inputs, by = (u, layer.weight, layer.bias), torch.randn_like(out)
    assert out.shape == want.shape and torch.allclose(out, want, **EXACT)
    slopes = [torch.autograd.grad((x * by).sum(), inputs) for x in (out, want)]
    assert all(torch.allclose(a, b, **EXACT) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize(("c", "model"), SPACES)
def test_linear_and_mlr_are_products_with_normals(c, model):
    rate = c**0.5 * (2 if model == "poincare" else 1)
    check(filled(hnn.LorentzLinear(5, 7, c=c, model=model)),
          lambda u, w, b: lorentz_layers.linear(u, w, b, rate), points(4, 3, 5))  # fmt: skip
    check(filled(hnn.LorentzMLR(5, 7, c=c, model=model)),
          lambda u, w, b: lorentz_layers.mlr(u, w, b, rate, c), points(4, 3, 5))  # fmt: skip


@pytest.mark.parametrize(("kind", "groups", "kernel", "stride", "padding", "dilation"), [
    (hnn.LorentzConv1d, 1, (3,), (2,), (1,), (1,)),
    (hnn.LorentzConv2d, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
    (hnn.LorentzConv2d, 2, (3, 2), (2, 1), (0, 1), (1, 2)),
    (hnn.LorentzConv3d, 1, (2, 3, 1), (1, 2, 1), (1, 0, 0), (1, 1, 1)),
])  # fmt: skip
def test_convolutions_are_products_of_directly_concatenated_points(
    kind, groups, kernel, stride, padding, dilation
):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = filled(kind(4, 6, kernel, groups=groups, c=0.7, **options))
    check(layer, lambda u, w, b: lorentz_layers.conv(u, w, b, 0.7**0.5, groups, **options),
          points(2, 4, *(5, 6, 4)[: len(kernel)]))  # fmt: skip
    free = kind(4, 6, kernel, groups=groups, c=0.7, bias=False, **options).double()
    layer.bias.data.zero_()
    free.weight = layer.weight
    u = points(2, 4, *(5, 6, 4)[: len(kernel)])
    assert torch.allclose(free(u), layer(u), **EXACT)


@pytest.mark.parametrize(("c", "model"), SPACES)
def test_they_are_the_layers_of_hnn_plus_plus_at_length_one(c, model):
    """|weight| = 2 |z| = 1, opposite biases, one cap: a scaled sinh is then the sinh of a scaled distance."""
    for new, old in (
        (hnn.LorentzLinear(5, 7, c=c, model=model), hnn.Linear(5, 7, c=c, model=model, max_angle=12)),
        (hnn.LorentzMLR(5, 7, c=c, model=model), hnn.MLR(5, 7, c=c, model=model, max_angle=12)),
        (hnn.LorentzConv2d(5, 7, 1, c=c, model=model), hnn.Conv2d(5, 7, 1, c=c, model=model, max_angle=12)),
    ):
        new = filled(new)
        new.weight.data = F.normalize(new.weight.data.flatten(1)).view_as(new.weight)
        old.double().weight.data, old.bias.data = new.weight.data / 2, -new.bias.data
        u = points(2, 5, 3, 3) if isinstance(old, hnn.Conv2d) else points(4, 5)
        assert torch.allclose(new(u), old(u), **EXACT)
        new.weight.data *= 2
        old.weight.data *= 2
        assert not torch.allclose(new(u), old(u), rtol=1e-3)


@pytest.mark.parametrize("model", ["lorentz", "poincare"])
def test_near_the_origin_they_are_the_euclidean_layer(model):
    layer, u = filled(hnn.LorentzLinear(5, 7, c=0.8, model=model)), points(4, 5, size=1e-5)
    layer.bias.data *= 1e-5
    assert torch.allclose(layer(u), F.linear(u, layer.weight, layer.bias), rtol=1e-7, atol=1e-14)


def test_equal_steps_of_the_bias_are_equal_distances():
    """The growth of van der Klis et al.: the distance to the origin is linear in the bias, not logarithmic."""
    layer = hnn.LorentzLinear(3, 1, c=1.0).double()
    layer.weight.data = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.double)
    found = []
    for bias in (6.0, 8.0, 10.0, 12.0):
        layer.bias.data.fill_(bias)
        found.append(layer(torch.zeros(1, 3, dtype=torch.double)).item())
    assert torch.tensor(found).diff().sub(1.0).abs().max() < 0.01


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e3, 1e15])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
@pytest.mark.parametrize("bias", [0.0, 1.0, 1e4])
def test_float32_stays_finite(size, scale, bias):
    layers = hnn.LorentzLinear(4, 3), hnn.LorentzMLR(4, 3), hnn.LorentzConv2d(4, 3, 3, padding=1)
    for layer in layers:
        layer.weight.data *= scale
        layer.bias.data.fill_(bias)
        u = (size * torch.randn(2, 4, 4, 4)).requires_grad_()
        out = layer(u)
        slopes = torch.autograd.grad(out.sum(), (u, layer.weight, layer.bias))
        assert all(x.isfinite().all() for x in (out, *slopes))


def test_conv3d_equals_the_textbook_chain():
    """Beta-concatenated windows through the fully connected layer of HNN++."""
    options = {"stride": (1, 2, 1), "padding": (1, 0, 1), "dilation": (1, 1, 2)}
    layer = filled(hnn.Conv3d(3, 4, (2, 3, 2), c=0.6, **options))
    nn.init.normal_(layer.weight, std=0.4)
    u = points(2, 3, 4, 6, 5)

    def textbook(u, weight, bias):
        patches = lorentz_layers.windows(u, weight.shape[2:], *options.values()).flatten(-2)
        lifted = hyperbolic_layers.poincare.exp0(
            patches * hyperbolic_layers.beta_ratio(patches.shape[-1], 3), 0.6
        )
        points = hyperbolic_layers.fully_connected(lifted, weight.flatten(1), bias, 0.6)
        return hyperbolic_layers.poincare.log0(points, 0.6).movedim(-1, 1)

    check(layer, textbook, u)


@pytest.mark.parametrize("c", [0.1, 3.0])
def test_a_net_of_them_learns_at_a_high_rate(c):
    """Ten noisy patterns at angle 8 sqrt(c), AdamW 1e-2, float32: far out, without any norm."""
    y = torch.arange(1600) % 10
    x = (torch.randn(10, 64)[y] + 1.2 * torch.randn(1600, 64)) / 1.6
    net = nn.Sequential(
        hnn.LorentzLinear(64, 64, c=c),
        nn.ReLU(),
        hnn.LorentzLinear(64, 32, c=c),
        nn.ReLU(),
        hnn.LorentzMLR(32, 10, c=c),
    )
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for step in range(60):
        rows = slice(step * 64 % 1280, step * 64 % 1280 + 64)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    assert (net(x[1280:]).argmax(1) == y[1280:]).double().mean() > 0.85
