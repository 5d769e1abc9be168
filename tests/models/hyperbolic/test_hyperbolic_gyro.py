"""What the intrinsic Lorentz network (Shi et al. 2026) calls PLFC and GyroLBN, against `Linear` and `BatchNorm1d`."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.hyperbolic import lorentz, mean
from models.hyperbolic import nn as hnn

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
