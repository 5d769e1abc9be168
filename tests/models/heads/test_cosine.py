"""Cosine head, NTCE and NONL against float64 references; their gradients and what they learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hyco.models.heads.cosine import CosineHead, nonl, ntce
from tests.oracle import prototype_heads as plain


def batch(seed: int, count: int = 11, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, dtype=torch.float64, generator=random), torch.arange(count) % classes


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_logits_and_losses_are_the_twins(temperature: float) -> None:
    features, labels = batch(0)
    head = CosineHead(4, 6, temperature).double()
    logits = head(features)
    expected = plain.cosine_logits(features.numpy(), head.weight.detach().numpy(), temperature)
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-12)
    for loss, twin in ((ntce, plain.ntce), (nonl, plain.nonl)):
        assert loss(logits, labels).item() == pytest.approx(twin(expected, labels.tolist()), abs=1e-12)
        assert loss(logits.float(), labels).item() == pytest.approx(twin(expected, labels.tolist()), abs=1e-5)


@pytest.mark.parametrize("loss", [ntce, nonl])
def test_gradients(loss) -> None:
    logits = torch.randn(
        7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.tensor([0, 1, 2, 0, 1, 0, 0])), (logits,))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 1]])
def test_a_class_that_fills_the_batch_has_no_negatives(labels: list[int]) -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.0, 1.0]], requires_grad=True)
    value = nonl(logits, torch.tensor(labels))
    value.backward()
    assert value.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    if labels == [1, 1, 1]:
        assert value.item() == pytest.approx(-(-1.0 + 0.3 + 1.0) / 3)


@pytest.mark.parametrize("loss", [F.cross_entropy, ntce, nonl])
def test_each_loss_separates_classes(loss) -> None:
    torch.manual_seed(0)
    centres = torch.randn(4, 16)
    labels = torch.arange(64) % 4
    images = centres[labels] + 0.5 * torch.randn(64, 16)
    net, head = torch.nn.Linear(16, 8), CosineHead(4, 8)
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss(head(net(images)), labels).backward()
        optimiser.step()
    assert (head(net(images)).argmax(1) == labels).float().mean() > 0.9  # chance is a quarter


def test_ends() -> None:
    head = CosineHead(3, 5, 0.5)
    assert (head(torch.zeros(2, 5)) == 0).all() and head(torch.randn(9, 5)).abs().max() <= 2 + 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(2, 5)).dtype == torch.float32
    with pytest.raises(ValueError, match="temperature 0 must be positive"):
        CosineHead(3, 5, 0)
