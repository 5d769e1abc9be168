"""Balanced hyperbolic prototypes: the leaves of a class hierarchy, embedded with its distances, as a classifier.

After Kasarla, van Spengler and Mettes, Balanced Hyperbolic Embeddings Are Natural Out-of-Distribution Detectors (2025).
The nodes of the tree are embedded once, before training, so that

    distortion = mean over pairs of |d(x_i, x_j) - g_ij| / g_ij   and   spread = mean over nodes of |r_i - r_level(i)|

are small: d is the hyperbolic distance, g the number of edges between two nodes, r_i the distance of a node from the
origin and r_level the mean of it over the nodes of the same depth. The leaves are then the fixed prototypes of a
softmax over minus the distance. The distortion and the softmax are the paper's; of its norm loss only the purpose was
at hand (nodes of one level have one norm), so the form of the spread, its weight and its linear ramp are ours, as is
the optimisation of tangent vectors of the hyperboloid by Adam instead of points of the ball by Riemannian SGD.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import lorentz

RATE = 0.05
NEAR = 0.3  # of the noise that separates the directions of siblings at the start


def depths_of(parents: Sequence[int]) -> list[int]:
    """Depth of each node; the root has the parent -1 and comes before its children, as every node does.

    ValueError for anything else.
    """
    depths: list[int] = []
    for node, parent in enumerate(parents):
        if parent >= node or (parent < 0) != (node == 0):
            raise ValueError(
                f"node {node} has the parent {parent}: the root is node 0, and parents come first"
            )
        depths.append(depths[parent] + 1 if node else 0)
    return depths


def tree_distances(parents: Sequence[int]) -> Tensor:
    """Edges between all pairs of nodes: float64 [N, N]."""
    count = len(depths_of(parents))
    found = torch.zeros(count, count, dtype=torch.float64)
    for node in range(1, count):
        found[node, :node] = found[:node, node] = found[parents[node], :node] + 1
    return found


def distortion(tangents: Tensor, distances: Tensor, curvature: float = 1.0) -> Tensor:
    """Mean relative error of the distances of all pairs: tangent vectors [N, D], [N, N] -> []."""
    row, column = torch.triu_indices(len(distances), len(distances), 1, device=tangents.device)
    points = lorentz.exp0(tangents, curvature)
    found = lorentz.pairwise_distance(points, points, curvature)[row, column]
    wanted = distances[row, column]
    return ((found - wanted).abs() / wanted).mean()


def spread(tangents: Tensor, depths: Tensor) -> Tensor:
    """Mean distance of a node's radius from the mean radius of its level: [N, D], [N] -> []."""
    radius = tangents.norm(dim=-1)
    count = torch.bincount(depths)
    level = radius.new_zeros(len(count)).index_add_(0, depths, radius) / count
    return (radius - level[depths]).abs().mean()


def embed_hierarchy(
    parents: Sequence[int],
    dim: int,
    *,
    curvature: float = 1.0,
    steps: int = 500,
    balance: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Embed a tree: float64 tangent vectors [N, D] at the origin, whose lengths are distances from it.

    Args:
        parents: the parent of each node, see `depths_of`.
        dim: D, at least 2 (ValueError).
        curvature: c > 0 of the space.
        steps: of the optimisation.
        balance: final weight of the spread; 0 embeds by the distortion alone.
        seed: of the start.
    """
    if dim < 2:
        raise ValueError(f"dim {dim} is too few for a tree: use 2 or more")
    depths, distances = torch.tensor(depths_of(parents)), tree_distances(parents)
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(parents), dim, dtype=torch.float64, generator=random)
    direction = noise.clone()
    for node, parent in enumerate(parents):
        if parent > 0:
            direction[node] = direction[parent] + NEAR * noise[node]
        direction[node] /= direction[node].norm()
    tangents = (direction * depths[:, None]).requires_grad_()
    optimiser = torch.optim.Adam([tangents], lr=RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        loss = distortion(tangents, distances, curvature)
        loss = loss + balance * step / steps * spread(tangents, depths)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tangents.detach()


class BalancedPrototypes(nn.Module):
    """Classifier head: features [..., in_features] -> logits [..., C], minus the distance to fixed prototypes.

    A linear layer takes the features to tangent vectors at the origin; logits are those of their points.

    Args:
        prototypes: tangent vectors of the classes [C, D], such as the leaves of `embed_hierarchy`; a buffer.
        in_features: length of the features.
        curvature: c > 0 that the prototypes were embedded with.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, in_features: int, curvature: float = 1.0) -> None:
        super().__init__()
        self.curvature = curvature
        self.register_buffer("prototypes", prototypes.detach().float())
        self.projection = nn.Linear(in_features, prototypes.shape[1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits, never in half precision."""
        with torch.autocast(features.device.type, enabled=False):
            projected = self.projection(features.to(self.projection.weight.dtype))
            points = lorentz.exp0(projected, self.curvature)
            prototypes = lorentz.exp0(self.prototypes, self.curvature)
            return -lorentz.pairwise_distance(points, prototypes, self.curvature)

    def extra_repr(self) -> str:
        """Sizes and curvature."""
        classes, dim = self.prototypes.shape
        return f"classes={classes}, dim={dim}, curvature={self.curvature}"
