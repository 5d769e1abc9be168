"""HypLL's fourth tutorial, metric learning with a vision transformer (Ermolov et al., CVPR 2022), on a small scale.

    .venv/bin/python docs/tutorials/hyperbolic_vit.py --data data/tiny_imagenet

Images of one class are to lie close together. Each step takes two images of each of some classes; a softmax over
minus the distances has to find the partner of every image among the others. The embeddings are points of hyperbolic
space with c = 0.1, or unit vectors. HypLL's version fine-tunes a pretrained ViT-S on birds at 224 pixels. This one
trains a small transformer from scratch on the 200 classes of Tiny-ImageNet's validation images at 32 pixels, where
fewer neighbours are right. What it shows is the code:

1. The transformer is an ordinary one. Its features, clipped in length, are tangent vectors at the origin.
2. One layer takes them to the hyperboloid, where all distances of a batch are one matrix product.
3. c = 0.1 is 0.1. HypLL's version needs `constraining_strategy=lambda x: x` for that; load its weights with the
   same argument of `load_hypll`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.encoders.vit import VisionConfig, VisionTransformer
from hyco.models.hyperbolic import lorentz
from hyco.models.hyperbolic import nn as hnn
from hyco.pipeline.datasets import open_labelled

PER_CLASS = 2


class Embedder(nn.Module):
    """Images [B, 3, S, S] -> points [B, dimensions] of the hyperboloid, or of the sphere where c is None."""

    def __init__(self, options: argparse.Namespace, c: float | None) -> None:
        super().__init__()
        self.c, self.clip = c, options.clip
        self.tower = VisionTransformer(
            VisionConfig(image_size=options.size, patch_size=options.size // 4, width=64, depth=4, heads=4)
        )
        self.project = nn.Linear(64, options.dimensions)
        self.lift = hnn.ChangeManifold("tangent", "lorentz", c=c or 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Points, or unit vectors."""
        u = self.project(self.tower(images))
        if self.c is None:
            return F.normalize(u, dim=1)
        # Guo et al. 2022: long vectors have small gradients, so features are no longer than `clip`.
        return self.lift(u * (self.clip / u.norm(dim=1, keepdim=True).clamp(min=self.clip)))

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Of all pairs, [B, D] x [K, D] -> [B, K]."""
        return torch.cdist(x, y) if self.c is None else lorentz.pairwise_distance(x, y, self.c)


def pairwise_loss(net: Embedder, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the partner among the partners of all and the other images of the own side (eq. 3)."""
    same = torch.eye(len(first), dtype=torch.bool)
    logits = torch.cat(
        [-net.distances(first, second), (-net.distances(first, first)).masked_fill(same, -torch.inf)], 1
    )
    return F.cross_entropy(logits / temperature, torch.arange(len(first)))


def load(spec: str, size: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, size, size] in [-1, 1] and labels [N]."""
    source = open_labelled(spec, "test")
    pixels = torch.from_numpy(np.stack([source.image(i) for i in range(len(source))])).movedim(-1, 1)
    images = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
    return images / 127.5 - 1, torch.from_numpy(np.asarray(source.labels))


def train(net: Embedder, images: Tensor, labels: Tensor, options: argparse.Namespace) -> float:
    """Returns the seconds."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=max(options.steps, 2))
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    start = shown = time.monotonic()
    for step in range(1, options.steps + 1):
        classes = torch.randperm(len(members))[: options.classes].tolist()
        pairs = torch.stack([members[k][torch.randperm(len(members[k]))[:PER_CLASS]] for k in classes])
        batch = images[pairs.T.flatten()]
        batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch, batch.flip(-1))
        first, second = net(batch).chunk(2)
        loss = sum(
            pairwise_loss(net, a, b, options.temperature) for a, b in ((first, second), (second, first))
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 3)
        optimiser.step()
        schedule.step()
        now = time.monotonic()
        if now - shown > 10 or step == options.steps:
            shown, left = now, (now - start) / step * (options.steps - step)
            print(f"  step {step:5d}/{options.steps}  loss {loss.item():.3f}  {left:.0f} s left", flush=True)
    return time.monotonic() - start


@torch.no_grad()
def recall(net: Embedder, images: Tensor, labels: Tensor, k: int) -> float:
    """Fraction of the images that have one of their class among their k nearest neighbours."""
    net.eval()
    points = torch.cat([net(part) for part in images.split(500)])
    distances = net.distances(points, points).fill_diagonal_(torch.inf)
    nearest = labels[distances.topk(k, largest=False).indices]
    return (nearest == labels.unsqueeze(1)).any(1).double().mean().item()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train both networks; returns their recall by name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="data/tiny_imagenet", help="folder of Tiny-ImageNet")
    parser.add_argument("--set", default="tiny_imagenet", help="name of another labelled set")
    parser.add_argument("--held-out", type=int, default=10, help="test images per class")
    parser.add_argument("--size", type=int, default=32, help="side of the images, a multiple of 4")
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--classes", type=int, default=50, help="classes per step")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--clip", type=float, default=2.3, help="maximum length of a tangent vector")
    parser.add_argument("--c", type=float, default=0.1, help="the curvature is -c")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not Path(options.data).exists():
        parser.error(f"no images at {options.data}: give the folder of Tiny-ImageNet with --data")
    torch.set_num_threads(1)
    images, labels = load(f"{options.set}:{options.data}", options.size)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test = torch.cat([order[labels[order] == label][: options.held_out] for label in labels.unique()])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[test] = True
    print(
        f"{int((~chosen).sum()):,} training and {len(test):,} test images of {len(labels.unique())} classes"
    )
    found = {}
    for name, c in (("hyperbolic", options.c), ("sphere", None)):
        torch.manual_seed(options.seed)
        net = Embedder(options, c)
        seconds = train(net, images[~chosen], labels[~chosen], options)
        found[name] = recall(net, images[chosen], labels[chosen], options.k)
        print(
            f"{name}: recall@{options.k} {100 * found[name]:.1f} % after {seconds:.0f} s of training",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
