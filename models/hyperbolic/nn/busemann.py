"""Busemann layers: a feature is the signed distance to a horosphere instead of a hyperplane (Chen et al. 2026).

The Busemann function of the ideal point v (a unit vector) is B_v(x) = lim_t d(x, exp_0(t v)) - t: minus the distance
that x has gone towards v, constant on horospheres about v. Here it is an angle on the unit hyperboloid,
log(t - <s, v>) for the point (t, s); the distance is the angle over sqrt(c).
"""

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import Rate, cosh_sinhc, to_tangent
from hyco.models.hyperbolic.nn.hyperplane_ops import MAX_EXPONENT
from hyco.models.hyperbolic.nn.module import Device, _Affine, check_coordinates, full_precision, placed
from hyco.models.hyperbolic.nn.residual import residual_add
from hyco.models.hyperbolic.ops import safe_sqrt, sqrt_c, unit, wide


def busemann(u: Tensor, weight: Tensor, rate: Rate) -> Tensor:
    """Angles |weight_k| B_k(x) of K ideal points: tangent vectors [..., D], weight [K, D] -> [..., K].

    The ideal point is the direction of weight_k. Towards it t - <s, v> is a small difference of large numbers,
    exp(-angle), so the product is taken in float64 where the device has it. A weight of zeros gives 0.
    """
    # Widened once: the gradients of t and of the product cancel too, and must meet before they are rounded.
    x, wide_rate = wide(u), wide(rate) if isinstance(rate, Tensor) else rate
    t, f = cosh_sinhc(x, wide_rate)
    inner = (x * f) @ unit(wide(weight)).transpose(-1, -2)
    # At least exp(-MAX_ANGLE - 1): a bound for what rounding leaves where there is no float64.
    angle = (t - inner).clamp(min=2e-6).log().to(u.dtype)
    return angle * safe_sqrt(weight.square().sum(-1))


class BusemannMLR(_Affine):
    """Busemann multinomial logistic regression (Chen et al. 2026): [..., in_features] -> [..., num_classes].

    The logits are bias_k - |weight_k| B_k(x), with B_k the Busemann function of the direction of weight_k: the distance
    to a horosphere of class k, times |weight_k| (alpha_k of the paper). One vector and one number per class.

    Args:
        in_features: coordinates of a point (tangent vectors).
        num_classes: number of horospheres.
        bias: whether horospheres may miss the origin.
        c, model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: see `HyperbolicModule`; later, an input without in_features coordinates.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, bias, c, model, device, dtype)
        self.reset_parameters()

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] tangent vectors -> [..., num_classes] logits."""
        check_coordinates(u, self.in_features)
        logits = -busemann(u, self.weight, self.rate()) / sqrt_c(self.curvature())
        return logits if self.bias is None else logits + self.bias


class BusemannLinear(_Affine):
    """Busemann fully connected layer (Chen et al. 2026): tangent vectors [..., in_features] -> [..., out_features].

    The space part of the output is sinh(a_k), a_k = rate bias_k - |weight_k| B_k(x): output coordinate k is the signed
    distance of the result to a coordinate hyperplane. Near the origin it is
    `torch.nn.functional.linear(u, weight, bias)`.

    Far out B_k is positive in nearly all directions (about r - 0.7 at angle r, at right angles to v_k), so that all
    outputs are negative and a ReLU behind them is zero everywhere. Feed it points near the origin (angles of about 1)
    and put a norm before the activation.

    Args:
        in_features: coordinates of an input point.
        out_features: coordinates of an output point.
        bias: whether horospheres may miss the origin.
        gyro_bias: learn a point to which the outputs are moved by gyrovector addition, exp_0(p) + y.
        c, model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: see `HyperbolicModule`; later, an input without in_features coordinates.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gyro_bias: bool = False,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, c, model, device, dtype)
        self.gyro_bias = (
            nn.Parameter(torch.zeros(out_features, **placed(device, dtype))) if gyro_bias else None
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std in_features^-1/2; zero biases."""
        super().reset_parameters()
        if self.gyro_bias is not None:
            nn.init.zeros_(self.gyro_bias)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        check_coordinates(u, self.in_features)
        rate = self.rate()
        a = -busemann(u, self.weight, rate)
        a = a if self.bias is None else a + rate * self.bias
        y = to_tangent(torch.sinh(a + (a.clamp(-MAX_EXPONENT, MAX_EXPONENT) - a).detach()), rate)
        # By plain autograd, as the rest of the layer: differentiable any number of times.
        return y if self.gyro_bias is None else residual_add(self.gyro_bias.expand_as(y), y, rate, -1, False)
