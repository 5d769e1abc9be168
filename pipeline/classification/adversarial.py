"""Accuracy under attack: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018), in the maximum norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fgsm(model: nn.Module, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    """One step of size eps along the sign of the loss's gradient, clipped to [0, 1]: [B, 3, S, S] -> the same."""
    return (pixels + eps * _ascent(model, pixels, labels)).clamp(0, 1)


def pgd(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`steps` steps of size `step` from a random start, each projected to within eps of the image and into [0, 1]."""
    noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
    found = (pixels + eps * (2 * noise - 1)).clamp(0, 1)
    for _ in range(steps):
        found = found + step * _ascent(model, found, labels)
        found = torch.minimum(torch.maximum(found, pixels - eps), pixels + eps).clamp(0, 1)
    return found


def _ascent(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Sign of the cross-entropy's gradient in the pixels. The model must be in eval mode, independent of the batch."""
    assert not model.training
    pixels = pixels.detach().requires_grad_()
    loss = F.cross_entropy(model(pixels), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient.sign()
