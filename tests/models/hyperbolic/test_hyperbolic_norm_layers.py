"""LayerNorm, RMSNorm and GroupNorm by their definitions, in distances; dropout in both charts."""

import pytest
import torch
from torch import nn

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.functional import to_space, to_tangent

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def learned(layer):
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer.double()


@pytest.mark.parametrize(("model", "length"), [("lorentz", 1.0), ("poincare", 0.5)])
def test_norms_by_their_definitions(model, length):
    """Written with sums, in units of distance: u / length is the vector whose norm is the distance."""
    u = 0.3 * torch.randn(4, 6, 3, 5, dtype=torch.double)
    rows = u.movedim(1, -1)
    layer = learned(hnn.LayerNorm(6, eps=0.1, model=model))
    centred = rows / length - (rows / length).sum(-1, keepdim=True) / 6
    unit = centred / (centred.square().sum(-1, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(layer(rows), length * unit * layer.weight + layer.bias, **EXACT)
    layer = learned(hnn.RMSNorm(6, eps=0.1, model=model))
    unit = rows / length / ((rows / length).square().sum(-1, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(layer(rows), length * unit * layer.weight, **EXACT)
    layer = learned(hnn.GroupNorm(2, 6, eps=0.1, model=model))
    parts = []
    for part in (u / length).chunk(2, 1):
        centred = part - part.sum((1, 2, 3), keepdim=True) / 45
        # Six coordinates of this mean square make the mean squared distance of a point.
        mean_square = 6 * centred.square().sum((1, 2, 3), keepdim=True) / 45
        parts.append(centred / (mean_square + 0.1).sqrt())
    want = length * torch.cat(parts, 1) * layer.weight.view(6, 1, 1) + layer.bias.view(6, 1, 1)
    assert torch.allclose(layer(u), want, **EXACT)


@pytest.mark.parametrize("c", [0.2, 3.0])
def test_rms_norm_is_a_gyroscalar_product(c):
    u = torch.randn(5, 4, dtype=torch.double)
    for model, space in (("lorentz", lorentz), ("poincare", poincare)):
        layer = hnn.RMSNorm(4, eps=0.0, model=model).double()
        nn.init.constant_(layer.weight, 0.7)
        x = space.exp0(u, c)
        d = space.distance(torch.zeros_like(x), x, c).unsqueeze(-1)
        assert torch.allclose(space.exp0(layer(u), c), space.scale(0.7 / d, x, c), **EXACT)


@pytest.mark.parametrize("kind", [hnn.LayerNorm, hnn.RMSNorm, lambda n: hnn.GroupNorm(4, n)])
def test_points_start_at_distance_one_at_any_width(kind):
    for width in (8, 512):
        out = kind(width)(5 * torch.randn(64, width))
        distance = 2 * out.norm(dim=-1)
        assert abs(distance.square().mean() - 1) < 1e-3


def test_norms_stay_finite_and_say_what_is_wrong():
    for layer in (hnn.LayerNorm(4), hnn.RMSNorm(4), hnn.GroupNorm(2, 4)):
        for size in (0.0, 1e-25, 1e15):
            u = (size * torch.randn(3, 4)).requires_grad_()
            out = layer(u)
            assert out.isfinite().all() and torch.autograd.grad(out.square().sum(), u)[0].isfinite().all()
        with pytest.raises(ValueError, match=r"expected a tensor of shape \[.*4.*\], got \[3, 5\]"):
            layer(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="5 channels are not a multiple of 2 groups"):
        hnn.GroupNorm(2, 5)
    with pytest.raises(ValueError, match="at least one coordinate; got 0"):
        hnn.LayerNorm(0)


def test_dropout_of_tangent_vectors_and_of_space_parts():
    """torch's layer as it is, and inside LorentzActivation: Lorentz dropout, whose time part follows."""
    assert hnn.Dropout is nn.Dropout
    u, layer = torch.randn(50, 8, dtype=torch.double), hnn.LorentzActivation(nn.Dropout(0.25), dim=-1, c=0.5)
    torch.manual_seed(1)
    found = layer(u)
    torch.manual_seed(1)
    space = nn.functional.dropout(to_space(u, 0.5**0.5), 0.25)
    assert torch.allclose(found, to_tangent(space, 0.5**0.5), **EXACT)
    assert 0.15 < (found == 0).double().mean() < 0.35
    assert torch.allclose(layer.eval()(u), u, **EXACT)
