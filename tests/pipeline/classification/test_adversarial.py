"""Attacks: where the model is linear the worst image is known, and both must find it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyco.pipeline.classification.adversarial import fgsm, pgd

EPS = 8 / 255


@pytest.fixture
def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).eval()


def test_both_find_the_worst_image_of_a_linear_model(linear: nn.Module) -> None:
    """With two classes the loss falls along w_y - w_other, so the worst step is eps times minus its sign."""
    pixels, labels = 0.3 + 0.4 * torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    weight = linear[1].weight.detach()  # type: ignore[index]
    worst = pixels - EPS * (weight[labels] - weight[1 - labels]).sign().view(-1, 3, 4, 4)
    torch.testing.assert_close(fgsm(linear, pixels, labels, EPS), worst)
    found = pgd(linear, pixels, labels, EPS, 2 / 255, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, worst)


def test_no_attack_leaves_the_ball_or_the_range() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).eval()
    pixels, labels = torch.rand(8, 3, 4, 4).round(decimals=1), torch.randint(5, (8,))
    losses = [F.cross_entropy(net(pixels), labels).item()]
    for tried in (fgsm(net, pixels, labels, EPS), pgd(net, pixels, labels, EPS, 2 / 255, 20)):
        assert (tried - pixels).abs().max() <= EPS + 1e-6
        assert tried.min() >= 0 and tried.max() <= 1
        losses.append(F.cross_entropy(net(tried), labels).item())
    assert losses[0] < losses[1] and losses[0] < losses[2]
    assert all(p.grad is None for p in net.parameters()), "an attack leaves nothing behind in the model"


def test_the_random_start_is_the_generators(linear: nn.Module) -> None:
    pixels, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    one, two, other = (
        pgd(linear, pixels, labels, EPS, 1e-4, 1, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)
