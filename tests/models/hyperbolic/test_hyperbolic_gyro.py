"""What the intrinsic Lorentz network (Shi et al. 2026) calls PLFC and GyroLBN, against ours, and its concatenation."""

import mpmath
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, mean
from hyco.models.hyperbolic import nn as hnn

EXACT = {"rtol": 1e-8, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("c", [0.3, 2.0])
def test_plfc_is_the_linear_layer(c):
    """Signed distances times |z|, sinh back to space coordinates: `Linear` with z / 2."""
    layer = hnn.Linear(5, 7, c=c, model="lorentz").double()
    nn.init.normal_(layer.weight, std=0.4)
    nn.init.normal_(layer.bias, std=0.3)
    z, u = 2 * layer.weight, 0.5 * torch.randn(6, 5, dtype=torch.double)
    distance = z.norm(dim=1) * lorentz.hyperplane_distance(lorentz.exp0(u, c), z, layer.bias, c)
    space = torch.sinh(c**0.5 * distance) / c**0.5
    assert torch.allclose(layer(u), lorentz.log0(space, c), **EXACT)


def gyro_batch_norm(layer, u, c):
    """beta + (gamma / sqrt(v^2 + eps)) (-mu + x) in gyrovector operations (Chen et al. 2025), closed-form centroid."""
    x = lorentz.exp0(u, c)
    mu = mean.midpoint(x, c)
    variance = lorentz.distance(mu.expand_as(x), x, c).square().mean()
    gain = (F.softplus(layer.weight) / (variance + layer.eps)).sqrt()
    centred = lorentz.add(-mu.expand_as(x), x, c)
    return lorentz.add(lorentz.exp0(layer.bias, c).expand_as(x), lorentz.scale(gain, centred, c), c)


@pytest.mark.parametrize("c", [0.3, 2.0])
def test_gyro_batch_norm_is_ours_up_to_a_rotation_about_the_learned_mean(c):
    """Ours carries velocities from the mean to the learned mean directly, GyroBN through the origin."""
    layer = hnn.BatchNorm1d(4, c=c, model="lorentz").double()
    u = 0.4 * torch.randn(9, 4, dtype=torch.double) + 0.5
    assert torch.allclose(layer(u), lorentz.log0(gyro_batch_norm(layer, u, c), c), **EXACT)
    nn.init.normal_(layer.bias, std=0.5)
    ours, theirs = lorentz.exp0(layer(u), c), gyro_batch_norm(layer, u, c)
    assert not torch.allclose(ours, theirs, rtol=1e-2)
    b = lorentz.exp0(layer.bias, c).expand_as(ours)
    assert torch.allclose(lorentz.distance(b, ours, c), lorentz.distance(b, theirs, c), **EXACT)
    apart = [lorentz.pairwise_distance(x, x, c) for x in (ours, theirs)]
    assert torch.allclose(*apart, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rate", [0.6, 1.5])
def test_log_radius_concatenation_keeps_the_mean_log_radius(rate):
    """Normal space parts; mpmath's digamma. The time part is that of a point on the hyperboloid."""
    sizes = (3, 3, 4, 1)
    parts = [torch.randn(20_000, n, dtype=torch.double) for n in sizes]
    u = [
        part * (part.norm(dim=1, keepdim=True).asinh() / part.norm(dim=1, keepdim=True) / rate)
        for part in parts
    ]
    out = hnn.log_radius_cat(u, rate)
    length = out.norm(dim=1, keepdim=True)
    space = out * (length * rate).sinh() / length
    for part, joined in zip(parts, space.split(sizes, 1), strict=True):
        n = part.shape[1]
        scale = mpmath.exp(
            (mpmath.digamma(mpmath.mpf(n) / 2) - mpmath.digamma(mpmath.mpf(sum(sizes)) / 2)) / 2
        )
        assert torch.allclose(joined, float(scale) * part, **EXACT)
    equal = hnn.log_radius_cat(u[:2], rate)
    radius = (equal.norm(dim=1) * rate).sinh().log().mean()
    assert (radius - parts[0].norm(dim=1).log().mean()).abs() < 0.02
    assert torch.allclose(hnn.log_radius_cat(u[2:3], rate), u[2], **EXACT)
    moved = hnn.log_radius_cat([v.T for v in u], rate, dim=0)
    assert torch.allclose(moved.T, out, **EXACT)
