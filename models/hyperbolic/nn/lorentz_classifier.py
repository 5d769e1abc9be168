"""Multinomial logistic regression on the hyperboloid whose scale multiplies the angle's sinh."""

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.lorentz_linear import products
from hyco.models.hyperbolic.nn.module import Device, _Affine, check_coordinates, full_precision
from hyco.models.hyperbolic.ops import asinh, sqrt_c


class LorentzMLR(_Affine):
    """Lorentz multinomial logistic regression (van der Klis et al. 2026): [..., in_features] -> [..., num_classes].

    The logits are asinh(|weight_k| sinh(sqrt(c) d_k)) / sqrt(c), with d_k the signed distance to the hyperplane of
    class k as in `LorentzLinear`. `MLR` has 2 |z_k| d_k: the same where |weight_k| = 2 |z_k| = 1 and the biases have
    opposite signs.

    Args:
        in_features: coordinates of a point (tangent vectors).
        num_classes: number of hyperplanes.
        bias: whether hyperplanes may miss the origin.
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
        model: str = "lorentz",
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, bias, c, model, device, dtype)
        self.num_classes = num_classes
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std (5 / in_features)^1/2; zero bias."""
        nn.init.normal_(self.weight, std=(5 / self.in_features) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] tangent vectors -> [..., num_classes] logits."""
        check_coordinates(u, self.in_features)
        return asinh(products(u, self.weight, self.bias, self.rate())) / sqrt_c(self.curvature())
