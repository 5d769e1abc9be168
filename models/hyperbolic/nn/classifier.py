"""Multinomial logistic regression."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.functional import Rate
from models.hyperbolic.nn.hyperplane_ops import planes, scores
from models.hyperbolic.nn.module import HyperbolicModule, check_coordinates, full_precision
from models.hyperbolic.ops import asinh, square_norm


def mlr(u: Tensor, weight: Tensor, bias: Tensor | None, c: Rate, rate: Rate) -> Tensor:
    """Class logits 2|z_k| d_k(x), d_k the signed distance to the class's hyperplane: [..., D], [K, D] -> [..., K].

    Shimizu et al. 2021, eq. 6: (2|z_k| / sqrt c) asinh(a_k). u are tangent vectors; bias as in `linear`.
    """
    scales, powers, shifts = planes(weight, bias, rate)
    a = scores(F.linear(u, weight), (rate * rate) * square_norm(u), scales, shifts)
    return powers * asinh(a) / (c.sqrt() if isinstance(c, Tensor) else math.sqrt(c))


class MLR(HyperbolicModule):
    """Hyperbolic multinomial logistic regression: tangent vectors [..., in_features] -> logits [..., num_classes].

    Args:
        in_features: coordinates of a point.
        num_classes: number of hyperplanes.
        bias: whether hyperplanes may miss the origin.
        c, model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        self.in_features, self.num_classes = in_features, num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.bias = nn.Parameter(torch.empty(num_classes)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std in_features^-1/2, as Ganea et al.; zero bias."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] -> [..., num_classes]."""
        check_coordinates(u, self.in_features)
        return mlr(u, self.weight, self.bias, self.curvature(), self.rate())

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        return f"{self.in_features}, {self.num_classes}, bias={self.bias is not None}, {super().extra_repr()}"
