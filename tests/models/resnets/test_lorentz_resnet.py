"""Lorentz ResNet: its shape, its Euclidean limit, what it learns in seconds, and the depths of the kit."""

import pytest
import torch
from torch import nn

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.functional import to_space, to_tangent
from hyco.models.resnets.lorentz_resnet import LorentzResNet
from hyco.models.resnets.resnet import EuclideanResNet

SMALL = {"depth": 10, "widths": (4, 6, 8, 10), "num_classes": 5}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_resnet_18_has_the_parameters_of_its_euclidean_twin():
    """Eight blocks of two convolutions; batch norms have one variance, not one per channel; shortcuts have no bias."""
    ours, twin = (
        dict(net.named_parameters()) for net in (LorentzResNet(), EuclideanResNet(18, (64, 128, 256, 512)))
    )
    twin = {name: p for name, p in twin.items() if not name.endswith("shortcut.bias")}
    assert ours.keys() == twin.keys()
    assert sum("conv" in name for name in ours) == 17
    for name, p in ours.items():
        assert p.shape == (() if "bn" in name and name.endswith("weight") else twin[name].shape)


def test_without_curvature_it_is_the_euclidean_network():
    """c = 1e-12: convolutions, sums, ReLU, pooling and head are torch's; norms are left out on both sides."""
    ours, twin = LorentzResNet(**SMALL, c=1e-12).double(), EuclideanResNet(**SMALL).double()
    for net in (ours, twin):
        for part in net.modules():
            for name in ("bn", "bn1", "bn2"):
                if hasattr(part, name):
                    setattr(part, name, nn.Identity())
    twin.load_state_dict(
        {
            n: torch.zeros_like(p) if n.endswith("shortcut.bias") else ours.state_dict()[n]
            for n, p in twin.state_dict().items()
        }
    )
    x = torch.randn(2, 3, 16, 16, dtype=torch.double)
    assert torch.allclose(ours(x), twin(x), rtol=1e-5, atol=1e-7)


def test_a_block_of_space_parts_is_one_of_lorentz_layers():
    """The first convolution and activation against LorentzConv2d and LorentzActivation of tangent vectors."""
    net, rate = LorentzResNet(**SMALL, c=0.7).double(), 0.7**0.5
    conv, relu = (
        hnn.LorentzConv2d(3, 4, 3, padding=1, bias=False, c=0.7),
        hnn.LorentzActivation(torch.relu, c=0.7),
    )
    conv.weight = net.conv.weight
    u = torch.randn(2, 3, 9, 9, dtype=torch.double)
    want = relu(to_tangent(net.bn(to_space(conv(u), rate, 1)), rate, 1))
    got = to_tangent(torch.relu(net.bn(net.conv(to_space(u, rate, 1)))), rate, 1)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)
    plain = hnn.BatchNorm2d(4, c=0.7, model="lorentz").double()
    assert torch.allclose(
        to_tangent(net.bn(to_space(conv(u), rate, 1)), rate, 1), plain(conv(u)), rtol=1e-8, atol=1e-10
    )


def test_it_learns_in_float32():
    """Four patterns in noise: eight steps halve the loss, with finite gradients."""
    patterns = torch.randn(4, 3, 8, 8)
    labels = torch.arange(32) % 4
    x = patterns[labels] + 0.3 * torch.randn(32, 3, 8, 8)
    net = LorentzResNet(10, (8, 8, 16, 16), 4, c=1.0)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("depth", "widths", "said"), [
    (18, (8, 8, 8), "depth 18 is not 6n .* widths .8, 8, 8.: 8, 14, 20"),
    (20, (8, 8, 8, 8), "depth 20 is not 8n .* widths .8, 8, 8, 8.: 10, 18, 26"),
    (18, (8, 0, 8, 8), r"widths \(8, 0, 8, 8\) must be positive"),
    (18, (), r"widths \(\) must be positive"),
])  # fmt: skip
def test_depths_that_do_not_fit_are_named_with_some_that_do(depth, widths, said):
    with pytest.raises(ValueError, match=said):
        LorentzResNet(depth, widths)
