"""Embedding tables."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hyperbolic import lorentz, poincare
from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.module import HyperbolicModule, full_precision
from models.hyperbolic.ops import expand_c

GEOMETRIES = {"poincare": poincare, "lorentz": lorentz}


class Embedding(HyperbolicModule):
    """A table of points, [num_embeddings, embedding_dim]; indices of any shape -> [..., embedding_dim].

    Args:
        num_embeddings: rows of the table.
        embedding_dim: coordinates of a point.
        points: False: the rows are tangent vectors at the origin, ordinary parameters for any optimiser. True: the rows
            are points in the coordinates of `model` (c fixed); train them with `optim.RiemannianSGD` or
            `RiemannianAdam`, which find them by `manifold_parameters`.
        std: standard deviation of the tangent vectors that initialise the table.
        c, model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        points: bool = False,
        std: float = 1e-2,
        c: float | Curvature = 1.0,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        if points and isinstance(c, Curvature) and any(True for _ in c.parameters()):
            raise ValueError("points=True needs a fixed curvature: points do not move with a learnable one")
        self.num_embeddings, self.embedding_dim, self.points, self.std = (
            num_embeddings,
            embedding_dim,
            points,
            std,
        )
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise with normal tangent vectors, lifted where the table holds points."""
        nn.init.normal_(self.weight, std=self.std)
        if self.points:
            self.weight.copy_(GEOMETRIES[self.model].exp0(self.weight, expand_c(self.curvature())))

    def manifold_parameters(self) -> list[tuple[nn.Parameter, str, float]]:
        """(parameter, model, c) of the parameters that are points; empty without `points`."""
        return [(self.weight, self.model, float(self.curvature()))] if self.points else []

    @full_precision
    def forward(self, index: Tensor) -> Tensor:
        """The rows as stored: tangent vectors, or points."""
        return F.embedding(index, self.weight)

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        kind = f"points={self.points}"
        return f"{self.num_embeddings}, {self.embedding_dim}, {kind}, {super().extra_repr()}"
