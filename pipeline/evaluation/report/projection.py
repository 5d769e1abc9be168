"""A two-dimensional view of the space: every type of node on one plane, as points of a disk.

Hyperbolic points are projected by HoroPCA (see horopca.py and decision 17), those of a product in the factor with the
largest spread. Unit vectors of a Euclidean model are drawn by their two principal directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, product
from hyco.pipeline.evaluation.metrics.geometry import Points
from hyco.pipeline.evaluation.report import horopca

MOST = 300  # points of each type of node


@dataclass(frozen=True, slots=True)
class View:
    """Points by node type [n, 2] in the unit disk.

    Attributes:
        kept: fraction of the mean squared distance between the points that the plane preserves.
        factor: which factor of a product is shown (from 0), None where there is one space.
        flat: whether the model is Euclidean.
    """

    points: dict[str, Float[np.ndarray, "n 2"]]
    kept: float
    factor: int | None = None
    flat: bool = False


def plane_view(nodes: Mapping[str, Points], curvatures: Float[Tensor, " k"] | None, seed: int) -> View:
    """At most MOST points of each node type, drawn by seed, on one plane."""
    random = np.random.default_rng(seed)
    drawn = {
        name: node.points[torch.from_numpy(np.sort(random.permutation(len(node.points))[:MOST]))]
        for name, node in nodes.items()
        if len(node.points)
    }
    with torch.inference_mode(False):
        everything = torch.cat(list(drawn.values())).clone().double()
        factor = None
        if curvatures is None:
            laid, kept = _main_directions(everything)
        else:
            c = curvatures.clone().double()
            if len(c) > 1:
                each = product.split(product.log0(everything, c, len(c)), len(c))
                factor = int(each.var(dim=0).sum(dim=-1).argmax())
                everything, c = product.split(everything, len(c))[:, factor], c[factor : factor + 1]
            unit = F.pad(
                everything * c.sqrt(), (0, max(0, 2 - everything.shape[1]))
            )  # a factor may have one dimension
            flat = horopca.project(unit, horopca.fit(unit, seed))
            kept = _spread(flat) / max(_spread(unit), 1e-30)
            laid = horopca.disk(flat)
    sizes = [len(points) for points in drawn.values()]
    parts = np.split(laid.cpu().numpy(), np.cumsum(sizes)[:-1])
    return View(dict(zip(drawn, parts, strict=True)), kept, factor, curvatures is None)


def _spread(x: Tensor) -> float:
    return float(lorentz.pairwise_distance(x, x, 1.0).square().mean())


def _main_directions(x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N 2"], float]:
    """Principal components of unit vectors, which stay in the unit disk."""
    _, scale, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return x @ directions[:2].T, float(scale[:2].square().sum() / scale.square().sum().clamp(min=1e-30))
