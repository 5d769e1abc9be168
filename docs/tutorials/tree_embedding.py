"""A binary tree in five dimensions: tangent rows, points of two models and geoopt's points, trained alike.

    .venv/bin/python docs/tutorials/tree_embedding.py              # the table of docs/tutorials/README.md
    .venv/bin/python docs/tutorials/tree_embedding.py --grow 0     # without the growing target

The tree has 511 nodes and edges of length 1.5; the embedding is to reproduce all distances along it. Measured is the
mean distortion: the mean of |distance / tree distance - 1| over all pairs of nodes. Two things decide it.

1. The scale of the target grows. Points that are far out can no longer pass each other: what lies in the wrong
   branch stays there. So training starts with a tree of edge 0.03, nearly flat, where the branches sort themselves
   out, and lets it grow to its size.
2. Tangent rows, not points. A Riemannian step has a bounded length, lr or so; seen from the root, a point at radius r
   turns by lr / sinh(r) and no more. A row u is an ordinary parameter, which Adam turns by lr / |u|, hyperbolic
   steps of any length. The printed turn is what nodes turn per step, half-way through the training.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.optim import RiemannianAdam, parameter_groups

Distance = Callable[[Tensor, Tensor], Tensor]


def tree_distances(depth: int, edge: float) -> Tensor:
    """Distances along a binary tree with 2^(depth + 1) - 1 nodes: [N, N]."""
    nodes = torch.arange(1, 2 ** (depth + 1))
    level = torch.log2(nodes + 0.5).floor().long()
    ancestors = torch.stack([torch.where(level >= k, nodes >> (level - k).clamp(min=0), -1 - nodes)
                             for k in range(depth + 1)])  # fmt: skip
    shared = (ancestors.unsqueeze(2) == ancestors.unsqueeze(1)).sum(0) - 1
    apart = level.unsqueeze(1) + level - 2 * shared
    return edge * apart.fill_diagonal_(0).float()


def contestants(
    nodes: int, options: argparse.Namespace
) -> dict[str, Callable[[], tuple[Tensor, Distance, torch.optim.Optimizer]]]:
    """What is trained, by name: each makes (parameter, distance of two sets of its rows, optimiser)."""

    def table(model: str, points: bool) -> tuple[Tensor, Distance, torch.optim.Optimizer]:
        net = hnn.Embedding(nodes, options.dimensions, points=points, model=model)
        space = {"lorentz": lorentz, "poincare": poincare}[model]

        def distance(u: Tensor, v: Tensor) -> Tensor:
            if not points:
                u, v = space.exp0(u, 1.0), space.exp0(v, 1.0)
            return space.distance(u, v, 1.0)

        return net.weight, distance, RiemannianAdam(parameter_groups(net), lr=options.rate)

    def geoopt_points() -> tuple[Tensor, Distance, torch.optim.Optimizer]:
        import geoopt

        start = hnn.Embedding(nodes, options.dimensions, points=True).weight.detach()
        points = geoopt.ManifoldParameter(start, manifold=geoopt.PoincareBall())
        return points, points.manifold.dist, geoopt.optim.RiemannianAdam([points], lr=options.rate)

    return {
        "tangent rows, lorentz": lambda: table("lorentz", False),
        "tangent rows, poincare": lambda: table("poincare", False),
        "points, lorentz": lambda: table("lorentz", True),
        "points, poincare": lambda: table("poincare", True),
        "points, geoopt's ball": geoopt_points,
    }


def train(rows: Tensor, distance: Distance, optimiser: torch.optim.Optimizer, wanted: Tensor,
          options: argparse.Namespace) -> tuple[float, float]:  # fmt: skip
    """(mean distortion, degrees that nodes turn per step half-way, seen from the root)."""
    first, second = torch.triu_indices(len(wanted), len(wanted), 1)
    target, turn = wanted[first, second], math.nan
    for step in range(options.steps):
        done = step / options.steps
        scale = options.start ** (1 - done / options.grow) if done < options.grow else 1.0
        for group in optimiser.param_groups:
            group["lr"] = options.rate * (1 - done)
        pair = torch.randint(len(target), (options.pairs,))
        there = scale * target[pair]
        found = distance(rows[first[pair]], rows[second[pair]])
        # The stress of multidimensional scaling: between squared errors, which see far pairs alone, and squares
        # of relative errors, which see near ones alone.
        loss = ((found - there).square() / there).mean()
        optimiser.zero_grad()
        loss.backward()
        before = rows.detach().clone()
        optimiser.step()
        if step == options.steps // 2:
            cosine = nn.functional.cosine_similarity(before.double(), rows.detach().double(), dim=1)
            turn = math.degrees(cosine.clamp(max=1).acos().median().item())
    with torch.no_grad():
        found = torch.cat(
            [distance(rows[a], rows[b]) for a, b in zip(first.split(16384), second.split(16384), strict=True)]
        )
    return (found / target - 1).abs().mean().item(), turn


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train each contestant and print the table; returns the mean distortions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--edge", type=float, default=1.5)
    parser.add_argument("--dimensions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--pairs", type=int, default=1024, help="pairs of nodes per step")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate, falling linearly to 0")
    parser.add_argument(
        "--grow", type=float, default=0.8, help="fraction of the steps in which the tree grows"
    )
    parser.add_argument("--start", type=float, default=0.02, help="fraction of its size at which it starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="train those whose name contains this")
    options = parser.parse_args(arguments)
    wanted, results = tree_distances(options.depth, options.edge), {}
    print(f"{'table':24s} {'distortion':>10s} {'turn, degrees':>14s} {'seconds':>8s}")
    for name, make in contestants(len(wanted), options).items():
        if options.only not in name:
            continue
        torch.manual_seed(options.seed)
        start = time.process_time()
        results[name], turn = train(*make(), wanted, options)
        print(f"{name:24s} {results[name]:10.3f} {turn:14.2g} {time.process_time() - start:8.0f}", flush=True)
    return results


if __name__ == "__main__":
    main()
