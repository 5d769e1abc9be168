"""Embedding tables."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.module import Device, HyperbolicModule, full_precision, placed
from hyco.models.hyperbolic.ops import expand_c

GEOMETRIES = {"poincare": poincare, "lorentz": lorentz}


class Embedding(HyperbolicModule):
    """A table of points, [num_embeddings, embedding_dim]; indices of any shape -> [..., embedding_dim].

    Args:
        num_embeddings: rows of the table.
        embedding_dim: coordinates of a point.
        padding_idx: row that starts at the origin and gets no gradient, as in torch; None: there is none.
        points: False: the rows are tangent vectors at the origin, ordinary parameters for any optimiser. True: the rows
            are points in the coordinates of `model` (c fixed); train them with `optim.RiemannianSGD` or
            `RiemannianAdam`, which find them by `manifold_parameters`.
        std: standard deviation of the tangent vectors that initialise the table.
        c, model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        points: bool = False,
        std: float = 1e-2,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        if points and isinstance(c, Curvature) and any(True for _ in c.parameters()):
            raise ValueError("points=True needs a fixed curvature: points do not move with a learnable one")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be a row of the {num_embeddings}; got {padding_idx}")
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.num_embeddings, self.embedding_dim, self.points, self.std = (
            num_embeddings,
            embedding_dim,
            points,
            std,
        )
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, **placed(device, dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise with normal tangent vectors, lifted where the table holds points."""
        nn.init.normal_(self.weight, std=self.std)
        if self.padding_idx is not None:
            self.weight[self.padding_idx].zero_()
        if self.points:
            self.weight.copy_(GEOMETRIES[self.model].exp0(self.weight, expand_c(self.curvature())))

    def manifold_parameters(self) -> list[tuple[nn.Parameter, str, float]]:
        """(parameter, model, c) of the parameters that are points; empty without `points`."""
        return [(self.weight, self.model, float(self.curvature()))] if self.points else []

    @full_precision
    def forward(self, index: Tensor) -> Tensor:
        """The rows as stored: tangent vectors, or points."""
        return F.embedding(index, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        kind = f"points={self.points}"
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, {kind}{padding}, {super().extra_repr()}"
