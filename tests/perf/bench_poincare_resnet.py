"""A training step of the Poincare ResNet-20 beside its Euclidean counterpart: forward, backward, batch 32 of 32 x 32.

The authors' code takes 28 times the time and 33 times the saved memory of the Euclidean network
(our own measurement, docs/poincare_resnet.md); the floors here are 3 times each.
"""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet, ResNet
from tests.perf.runner import Case, saved_megabytes


def step(model: ResNet, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Forward, loss and backward."""

    def run() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return run


def fused_equals_plain(fused: ResNet, images: torch.Tensor) -> Callable[[], str]:
    """The fused network's logits and the gradient of its first layer against plain autograd's, one state."""

    def check() -> str:
        plain = PoincareResNet(fused=False)
        plain.load_state_dict(fused.state_dict())
        results = []
        for model in (fused, plain):
            logits = model(images)
            (slope,) = torch.autograd.grad(logits.square().sum(), next(model.parameters()))
            results.append((logits.detach(), slope))
        off = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(results[0], results[1], strict=True)
        )
        assert off < 2e-3, f"results differ by {off:.1e}"
        return f"{off:.0e}"

    return check


def cases() -> Iterator[Case]:
    """8-16-32, training mode."""
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    ours, plain, euclid = PoincareResNet(), PoincareResNet(fused=False), EuclideanResNet()
    equal = fused_equals_plain(ours, images)
    peers = ((euclid, "EuclideanResNet", 1 / 3, 1 / 3), (plain, "plain autograd", None, None))
    for model, peer, fast, small in peers:
        yield Case(
            "poincare resnet-20 step",
            peer,
            "ms",
            step(ours, images, labels),
            step(model, images, labels),
            equal,
            fast,
        )
        yield Case(
            "poincare resnet-20 saved",
            peer,
            "MB",
            lambda: saved_megabytes(lambda: ours(images)),
            lambda model=model: saved_megabytes(lambda: model(images)),
            equal,
            small,
        )
