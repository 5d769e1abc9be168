"""Multinomial logistic regression."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.functional import Rate
from models.hyperbolic.nn.hyperplane_ops import FEATURE_ANGLE, check_max_angle, planes, scores
from models.hyperbolic.nn.module import Device, HyperbolicModule, check_coordinates, full_precision, placed
from models.hyperbolic.ops import asinh, square_norm


def mlr(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c: Rate,
    rate: Rate,
    max_angle: float = FEATURE_ANGLE,
) -> Tensor:
    """Class logits 2|z_k| d_k(x), d_k the signed distance to the class's hyperplane: [..., D], [K, D] -> [..., K].

    Shimizu et al. 2021, eq. 6: (2|z_k| / sqrt c) asinh(a_k). u are tangent vectors; bias as in `linear`.
    """
    scales, powers, shifts = planes(weight, bias, rate)
    a = scores(F.linear(u, weight), (rate * rate) * square_norm(u), scales, shifts, max_angle)
    return powers * asinh(a) / (c.sqrt() if isinstance(c, Tensor) else math.sqrt(c))


class MLR(HyperbolicModule):
    """Hyperbolic multinomial logistic regression: tangent vectors [..., in_features] -> logits [..., num_classes].

    Args:
        in_features: coordinates of a point.
        num_classes: number of hyperplanes.
        bias: whether hyperplanes may miss the origin.
        c, model: see `HyperbolicModule`.
        max_angle: points that go in are moved to this angle sqrt(c) d(0, x) where they lie beyond; see `FEATURE_ANGLE`.
        device, dtype: as in torch; float32 or float64.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        max_angle: float = FEATURE_ANGLE,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        self.in_features, self.num_classes = in_features, num_classes
        self.max_angle = check_max_angle(max_angle)
        place = placed(device, dtype)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, **place))
        self.bias = nn.Parameter(torch.empty(num_classes, **place)) if bias else None
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
        return mlr(u, self.weight, self.bias, self.curvature(), self.rate(), self.max_angle)

    def extra_repr(self) -> str:
        """Sizes, curvature and model."""
        return f"{self.in_features}, {self.num_classes}, bias={self.bias is not None}, {super().extra_repr()}"
