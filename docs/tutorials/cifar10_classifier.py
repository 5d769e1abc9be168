"""HypLL's first tutorial, a small classifier of CIFAR-10, with tensors that are tensors and AdamW.

    .venv/bin/python docs/tutorials/cifar10_classifier.py --data data/cifar10

Trains a hyperbolic convolutional network and its Euclidean counterpart (the same layers of torch.nn, the same seed,
data order and optimiser) and prints the accuracy of both on the whole test set. In HypLL's version every activation is
a ManifoldTensor, the training loop lifts each batch to the ball by hand, and only its own optimisers run. Here:

1. Images go in as they are. A layer reads its input as tangent vectors at the origin.
2. The layers have torch's names and arguments, plus c: the curvature is -c.
3. Parameters are ordinary ones, so optimiser, schedule, loss and loop are those of any torch program.
4. The last layer is hyperbolic multinomial logistic regression; its outputs are logits.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import nn as hnn
from hyco.pipeline.datasets import open_labelled

WIDTHS = (16, 32, 64)


def hyperbolic(classes: int, c: float) -> nn.Module:
    """Three convolutions, batch norms and pools; about 25,000 parameters."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        # A point per pixel, its coordinates in the channels; padding adds points at the origin.
        layers += [
            hnn.Conv2d(before, after, 3, padding=1, c=c),
            hnn.BatchNorm2d(after, c=c),
            hnn.ReLU(),
            hnn.MaxPool2d(2),
        ]
    # The midpoint of the 16 pixels that are left, and the signed distances to a hyperplane for each class.
    return nn.Sequential(
        *layers, hnn.AdaptiveAvgPool2d(1, c=c), nn.Flatten(), hnn.MLR(WIDTHS[-1], classes, c=c)
    )


def euclidean(classes: int) -> nn.Module:
    """The Euclidean counterpart: c to 0."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes))


def load(spec: str, split: str, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] (channels normalised) and labels [N]; a random part of `samples` unless 0."""
    source = open_labelled(spec, split)
    chosen = np.random.default_rng(seed).permutation(len(source))[: samples or None]
    pixels = torch.from_numpy(np.stack([source.image(int(i)) for i in chosen]))
    labels = torch.from_numpy(np.asarray(source.labels)[chosen])
    mean, std = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
    return ((pixels / 255 - mean) / std).movedim(-1, 1).contiguous(), labels


def train(net: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> float:
    """The loop of any torch program; returns its seconds."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=1e-4)
    steps = options.epochs * (len(images) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.rate, total_steps=max(steps, 2), pct_start=0.2
    )
    start = shown = time.monotonic()
    step, average = 0, 0.0
    net.train()
    for _ in range(options.epochs):
        for batch in torch.randperm(len(images)).split(options.batch):
            if len(batch) < options.batch:
                continue
            flipped = torch.where(
                torch.rand(len(batch), 1, 1, 1) < 0.5, images[batch], images[batch].flip(-1)
            )
            loss = F.cross_entropy(net(flipped), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            average = loss.item() if step == 1 else 0.95 * average + 0.05 * loss.item()
            now = time.monotonic()
            if now - shown > 5 or step == steps:
                shown, rate = now, step * options.batch / (now - start)
                left = (steps - step) * options.batch / rate
                print(
                    f"  step {step:5d}/{steps}  loss {average:.3f}  {rate:,.0f} images/s  {left:.0f} s left",
                    flush=True,
                )
    return time.monotonic() - start


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of right answers, with the running statistics of the batch norms."""
    net.eval()
    right = sum(
        (net(x).argmax(1) == y).sum().item()
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    return right / len(labels)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train both networks; returns their test accuracies by name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="data/cifar10", help="folder or archive of CIFAR-10")
    parser.add_argument("--samples", type=int, default=20_000, help="training images; 0: all 50,000")
    parser.add_argument("--test-samples", type=int, default=0, help="test images; 0: all 10,000")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--c", type=float, default=0.1, help="the curvature is -c")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not Path(options.data).exists():
        parser.error(f"no CIFAR-10 at {options.data}: give its folder with --data")
    torch.set_num_threads(1)
    begin = time.monotonic()
    images, labels = load(f"cifar10:{options.data}", "train", options.samples, options.seed)
    test_images, test_labels = load(f"cifar10:{options.data}", "test", options.test_samples, options.seed)
    classes = int(labels.max()) + 1
    print(
        f"{len(images):,} training and {len(test_images):,} test images in {time.monotonic() - begin:.0f} s"
    )
    found = {}
    for name, make in (
        ("hyperbolic", lambda: hyperbolic(classes, options.c)),
        ("Euclidean", lambda: euclidean(classes)),
    ):
        torch.manual_seed(options.seed)
        net = make()
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters", flush=True)
        seconds = train(net, images, labels, options)
        found[name] = accuracy(net, test_images, test_labels)
        print(
            f"{name}: {100 * found[name]:.1f} % of the test images right after {seconds:.0f} s of training",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
