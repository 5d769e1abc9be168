"""Poincare ResNet in five commands: the three claims of its paper, measured, and a short training.

    python docs/tutorials/poincare_resnet.py init       # the initialisation keeps norms over many layers
    python docs/tutorials/poincare_resnet.py midpoint   # midpoint against Frechet batch norm
    python docs/tutorials/poincare_resnet.py memory     # hand-written backward against plain autograd
    python docs/tutorials/poincare_resnet.py start      # what the initialisation means for the first steps
    python docs/tutorials/poincare_resnet.py train --data cifar10:data/cifar10 --steps 400

van Spengler et al., ICCV 2023. What they print is discussed in docs/poincare_resnet.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import isometry, lorentz, mean
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.nn.pooling import midpoint as tangent_midpoint
from hyco.models.resnets import published_poincare_resnet as published
from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet

C = 0.1


# Claim 1: norms over depth.


def layers(kind: str, channels: int) -> Iterator[nn.Module]:
    """Convolutions of one kind without end, 3 x 3, as many channels out as in, no norm and no activation."""
    while True:
        if kind == "Euclidean, Kaiming":
            layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            yield layer
        elif kind == "published, half an identity":
            yield published.Conv2d(channels, channels, 3, 1, C)
        else:
            init = {"ours, identity": "identity", "HNN++ and HypLL, normal": "normal"}[kind]
            yield hnn.Conv2d(channels, channels, 3, padding=1, c=C, init=init)


def init(depth: int = 40, channels: int = 16, size: float = 0.05) -> None:
    """Mean norm of the tangent vectors after each of `depth` convolutions, over that of the input."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {
        "ours, identity": "-",
        "published, half an identity": "--",
        "HNN++ and HypLL, normal": ":",
        "Euclidean, Kaiming": "-.",
    }
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for kind, style in styles.items():
        torch.manual_seed(0)
        x = size * torch.randn(4, channels, 16, 16)
        start, ratios = x.norm(dim=1).mean(), [1.0]
        with torch.no_grad():
            for _, layer in zip(range(depth), layers(kind, channels), strict=False):
                x = layer(x)
                ratios.append(float(x.norm(dim=1).mean() / start))
        shown = {n: f"{ratios[n]:.3g}" for n in (1, 5, 10, 20, depth)}
        print(f"{kind:27s} norm after n layers over the input's: {shown}")
        axes.plot([max(r, 1e-12) for r in ratios], style, label=kind)
    axes.set(yscale="log", ylim=(1e-9, 1e3), xlabel="convolutions", ylabel="norm / norm of the input")
    axes.set_title(f"{channels} channels, 3 x 3, c = {C}, no norm, no activation", fontsize=10)
    axes.legend(fontsize=9)
    out = Path(__file__).parents[1] / "images" / "poincare_init.png"
    figure.savefig(out, dpi=150)
    print(f"{out} written")


# Claim 2: the midpoint in place of the Frechet mean.


def milliseconds(call: Callable[[], object], rounds: int = 5) -> float:
    """Median processor time of a call."""
    call()
    spent = []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        spent.append(1e3 * (time.process_time() - begin))
    return statistics.median(spent)


def gradient_step(run: Callable[[Tensor], Tensor], start: Tensor) -> Callable[[], None]:
    """Forward and backward of a function of one tensor."""
    leaf = start.clone().requires_grad_()
    return lambda: run(leaf).square().sum().backward()


def midpoint(points: int = 8192, dim: int = 16) -> None:
    """Time of the mean of a batch, and of a batch norm, and how far the midpoint is from the Frechet mean."""
    import hypll.nn as hypll
    from hypll.manifolds.poincare_ball import Curvature, PoincareBall
    from hypll.manifolds.poincare_ball.math import stats
    from hypll.tensors import ManifoldTensor

    c, rate = torch.tensor(C), 2 * C**0.5
    print(f"the mean of {points} points of dimension {dim}, c = {C}, one thread, forward and backward")
    for spread in (0.5, 1.0, 2.0, 4.0):
        torch.manual_seed(0)
        # About a mean at distance 1; `spread` is the root mean square distance from it.
        centre = torch.eye(dim)[0]
        x = lorentz.add(
            lorentz.exp0(centre, C), lorentz.exp0(spread * torch.randn(points, dim) / dim**0.5, C), C
        )
        ball, tangent = isometry.lorentz_to_poincare(x, C), lorentz.log0(x, C) / 2
        times = {
            "midpoint, ours": milliseconds(gradient_step(lambda u: tangent_midpoint(u, rate), tangent)),
            "midpoint, HypLL": milliseconds(gradient_step(lambda u: stats.midpoint(u, c), ball)),
            "Frechet, ours": milliseconds(gradient_step(lambda u: mean.frechet_mean(u, C), x), 3),
            "Frechet, HypLL": milliseconds(gradient_step(lambda u: stats.frechet_mean(u, c), ball), 3),
        }
        wide = x.double()
        exact, near = mean.frechet_mean(wide, C), mean.midpoint(wide, C)
        apart = float(lorentz.distance(exact, near, C))
        excess = float(mean.frechet_variance(wide, C, near) / mean.frechet_variance(wide, C, exact)) - 1
        shown = ", ".join(f"{name} {spent:.1f} ms" for name, spent in times.items())
        print(f"spread {spread}: {shown}; {apart:.1e} apart, variance {excess:.1e} larger about the midpoint")

    torch.manual_seed(0)
    u = 0.3 * torch.randn(16, dim, 16, 16)
    curvature = Curvature(C, constraining_strategy=lambda value: value)
    manifold = PoincareBall(curvature)
    norms = {"midpoint, ours": gradient_step(hnn.BatchNorm2d(dim, c=C), u)}
    for name, use_midpoint in (("midpoint, HypLL", True), ("Frechet, HypLL", False)):
        layer = hypll.HBatchNorm2d(dim, manifold=manifold, use_midpoint=use_midpoint)
        norms[name] = gradient_step(
            lambda x, layer=layer: layer(ManifoldTensor(x, manifold=manifold, man_dim=1)).tensor,
            isometry.lorentz_to_poincare(lorentz.exp0(2 * u.movedim(1, -1), C), C).movedim(-1, 1),
        )
    shown = ", ".join(f"{name} {milliseconds(run, 3):.1f} ms" for name, run in norms.items())
    print(f"batch norm of {list(u.shape)}, forward and backward: {shown}")


# Claim 3: memory and size of the graph.


def graph_nodes(out: Tensor) -> int:
    """Operations that the backward pass of `out` visits."""
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return len(seen)


def memory(batch: int = 32) -> None:
    """Saved tensors, graph and step time of a ResNet-20, 8-16-32, on images of 32 x 32."""
    networks = {
        "ours, fused backward": lambda: PoincareResNet(c=C),
        "ours, plain autograd": lambda: PoincareResNet(c=C, fused=False),
        "published arithmetic, plain autograd": lambda: published.PublishedPoincareResNet(c=C),
        "Euclidean": EuclideanResNet,
    }
    print(f"batch {batch}, one thread; processor time of forward and backward")
    for name, build in networks.items():
        torch.manual_seed(0)
        model, images = build(), torch.randn(batch, 3, 32, 32)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = model(images)
        spent = milliseconds(lambda m=model, x=images: m(x).logsumexp(1).sum().backward(), 3)
        megabytes = sum(kept.values()) / 1e6
        print(
            f"{name:37s} {megabytes:7.1f} MB saved  {graph_nodes(out):6d} graph nodes  {spent:7.0f} ms a step"
        )


# The first steps of training.


def start(data: str, steps: int = 150, batch: int = 64) -> None:
    """First steps of a ResNet-8 from each initialisation, on 9,000 images; accuracy on 1,000 others."""
    import numpy as np

    from hyco.pipeline.classification.in_memory import load_images
    from hyco.pipeline.datasets import open_labelled

    found = open_labelled(data, "train")
    index = np.random.default_rng(0).permutation(len(found))[:10_000]
    pixels = load_images(found, 32, index).pixels.float() / 255
    pixels = pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == 3 else pixels
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    labels = torch.from_numpy(np.asarray(found.labels)[index])
    networks = {
        "identity": lambda: PoincareResNet(8, c=C, init="identity"),
        "normal": lambda: PoincareResNet(8, c=C),
        "Euclidean": lambda: EuclideanResNet(8),
    }
    for name, build in networks.items():
        torch.manual_seed(0)
        model, generator, losses = build(), torch.Generator().manual_seed(1), []
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
        for _ in range(steps):
            drawn = torch.randint(9000, (batch,), generator=generator)
            loss = nn.functional.cross_entropy(model(pixels[drawn]), labels[drawn])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            answers = torch.cat([model(part).argmax(1) for part in pixels[9000:].split(250)])
        right = float((answers == labels[9000:]).float().mean())
        means = [f"{statistics.mean(losses[i : i + 25]):.2f}" for i in range(0, steps, 25)]
        print(f"{name:10s} loss by 25 steps: {' '.join(means)}  accuracy {100 * right:.1f} %")


# A short training.


def train(data: str, steps: int, out: str) -> None:
    """Poincare ResNet-20 by the paper's recipe, cut to `steps`, and its accuracy on the test split."""
    from hyco.pipeline.classification.config import fit_recipe
    from hyco.pipeline.classification.evaluate import EvaluateConfig, evaluate
    from hyco.pipeline.classification.train import fit

    config = fit_recipe("poincare", "poincare_resnet20", data).replace(steps=steps)
    done = fit(out, config)
    measured = evaluate(out, EvaluateConfig(data=data))
    print(
        f"{done['samples_seen']} images in {done['seconds']:.0f} s, {done['samples_per_second']:.0f} images/s"
    )
    right, span = measured["classification"]["accuracy"], measured["intervals"]["classification.accuracy"]
    print(f"test accuracy {100 * right:.1f} %, 95 % interval {100 * span[0]:.1f} to {100 * span[1]:.1f}")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for part in (init, midpoint, memory):
        parts.add_parser(part.__name__, help=part.__doc__)
    first = parts.add_parser("start", help=start.__doc__)
    training = parts.add_parser("train", help=train.__doc__)
    for part in (first, training):
        part.add_argument("--data", default="cifar10:data/cifar10", help="labelled set, NAME:DIR")
    training.add_argument("--steps", type=int, default=400, help="of 128 images")
    training.add_argument("--out", default="var/tutorials/poincare_resnet20", help="directory of the run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "train":
        train(options.data, options.steps, options.out)
    elif options.part == "start":
        start(options.data)
    else:
        {"init": init, "midpoint": midpoint, "memory": memory}[options.part]()


if __name__ == "__main__":
    main()
