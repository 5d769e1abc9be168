"""A training step of Lorentz ResNet-18 beside its Euclidean form: forward, backward, batch 32 of 32 x 32.

The floor of the step is 1 / 1.5. The layers of linear growth stand beside `Conv2d`, whose map differs.
"""

from collections.abc import Callable, Iterator

import torch

from hyco.models.hyperbolic import nn as hnn
from hyco.models.resnets.lorentz_resnet import LorentzResNet
from hyco.models.resnets.resnet import EuclideanResNet
from tests.perf.bench_poincare_resnet import step
from tests.perf.runner import Case, saved_megabytes


def flat_limit() -> str:
    """Small networks of one state at c = 1e-12, norms in evaluation mode: the largest relative difference of logits."""
    size = {"depth": 10, "widths": (4, 6, 8, 10)}
    ours, twin = LorentzResNet(**size, c=1e-12).double(), EuclideanResNet(**size).double()
    # One variance for all channels against one per channel, each starting at 1; shortcuts start with other biases.
    theirs = twin.state_dict()
    known = {
        name: p for name, p in ours.state_dict().items() if name in theirs and p.shape == theirs[name].shape
    }
    zeros = {name: torch.zeros_like(p) for name, p in theirs.items() if name.endswith("shortcut.bias")}
    twin.load_state_dict(known | zeros, strict=False)
    images = torch.randn(4, 3, 16, 16, dtype=torch.double)
    a, b = ours.eval()(images), twin.eval()(images)
    off = float(((a - b).abs().max() / b.abs().max()).detach())
    assert off < 1e-4, f"results differ by {off:.1e}"
    return f"{off:.0e}"


def same_map() -> str:
    """LorentzConv2d and Conv2d of one pixel are the same map at |weight| = 1: the largest difference."""
    new, old = hnn.LorentzConv2d(8, 8, 1, c=0.5), hnn.Conv2d(8, 8, 1, c=0.5, model="lorentz")
    with torch.no_grad():
        new.weight.copy_(torch.nn.functional.normalize(new.weight.flatten(1)).view_as(new.weight))
        old.weight.copy_(new.weight / 2)
    u = 0.3 * torch.randn(2, 8, 9, 9)
    off = float((new(u) - old(u)).abs().max().detach())
    assert off < 1e-5, f"results differ by {off:.1e}"
    return f"{off:.0e}"


def pass_through(layer: torch.nn.Module, u: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of one layer."""

    def run() -> None:
        layer.zero_grad()
        layer(u).square().sum().backward()

    return run


def cases() -> Iterator[Case]:
    """64-128-256-512, training mode; convolutions of 64 channels at 32 x 32, batch 8."""
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    ours, twin = LorentzResNet(), EuclideanResNet(18, (64, 128, 256, 512))
    yield Case(
        "lorentz resnet-18 step",
        "EuclideanResNet",
        "ms",
        step(ours, images, labels),
        step(twin, images, labels),
        flat_limit,
        1 / 1.5,
    )
    yield Case(
        "lorentz resnet-18 saved",
        "EuclideanResNet",
        "MB",
        lambda: saved_megabytes(lambda: ours(images)),
        lambda: saved_megabytes(lambda: twin(images)),
        flat_limit,
    )
    u = (0.1 * torch.randn(8, 64, 32, 32)).requires_grad_()
    for bias in (True, False):
        yield Case(
            f"lorentz conv2d, bias {bias}",
            "hnn.Conv2d",
            "ms",
            pass_through(hnn.LorentzConv2d(64, 64, 3, padding=1, bias=bias, c=0.5), u),
            pass_through(hnn.Conv2d(64, 64, 3, padding=1, bias=bias, c=0.5, model="lorentz"), u),
            same_map,
        )
