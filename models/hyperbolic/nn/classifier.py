"""Multinomial logistic regression."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.nn.hyperplane_ops import FEATURE_ANGLE, check_max_angle, planes, scores
from hyco.models.hyperbolic.nn.module import Device, _Affine, check_coordinates, full_precision
from hyco.models.hyperbolic.ops import asinh, sqrt_c, square_norm


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
    return powers * asinh(a) / sqrt_c(c)


class MLR(_Affine):
    """Hyperbolic multinomial logistic regression: tangent vectors [..., in_features] -> logits [..., num_classes].

    Weights start as those of Ganea et al. 2018, normal with std in_features^-1/2; biases at zero.

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
        super().__init__(in_features, num_classes, bias, c, model, device, dtype)
        self.num_classes, self.max_angle = num_classes, check_max_angle(max_angle)
        self.reset_parameters()

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] -> [..., num_classes]."""
        check_coordinates(u, self.in_features)
        return mlr(u, self.weight, self.bias, self.curvature(), self.rate(), self.max_angle)
