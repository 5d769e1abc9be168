"""Fully connected layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.nn.hyperplane_ops import (
    FEATURE_ANGLE,
    check_max_angle,
    hyperplane_outputs,
    hyperplane_outputs_plain,
    planes,
)
from hyco.models.hyperbolic.nn.module import (
    Device,
    _Affine,
    accepts_lean,
    check_coordinates,
    full_precision,
)
from hyco.models.hyperbolic.ops import square_norm


def linear(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    fused: bool = True,
    max_angle: float = FEATURE_ANGLE,
) -> Tensor:
    """Poincare fully connected layer (Shimizu et al. 2021, eq. 7): [..., I], [O, I], [O] or None -> [..., O].

    u and the result are tangent vectors at the origin. Output k depends on the signed distance to the hyperplane with
    direction weight_k and offset bias_k, and on the length of weight_k. fused=False is the reference implementation by
    plain autograd.
    """
    scales, powers, shifts = planes(weight, bias, rate)
    outputs = hyperplane_outputs if fused else hyperplane_outputs_plain
    s = (rate * rate) * square_norm(u)
    # Scaled afterwards, so that no second tensor of the size of the weights is computed or stored.
    return outputs(F.linear(u, weight), s, scales, shifts, powers, rate, (-1,), max_angle)


class Linear(_Affine):
    """Hyperbolic `torch.nn.Linear`: [..., in_features] -> [..., out_features], tangent vectors in and out.

    Parameters `weight` [out, in] and `bias` [out] are ordinary ones: any optimiser trains them.

    Args:
        in_features: coordinates of an input point.
        out_features: coordinates of an output point.
        bias: whether hyperplanes may miss the origin.
        c, model: see `HyperbolicModule`.
        fused: store only the matrix product for the backward pass; False: plain autograd, with the same results.
        max_angle: points that go in are moved to this angle sqrt(c) d(0, x) where they lie beyond; see `FEATURE_ANGLE`.
        device, dtype: as in torch; float32 or float64.
    """

    @accepts_lean
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        fused: bool = True,
        max_angle: float = FEATURE_ANGLE,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, c, model, device, dtype)
        self.fused, self.max_angle = fused, check_max_angle(max_angle)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Identity / 2, which is the identity map, where it fits (in <= out); else normal with std (2 I O)^-1/2."""
        init_planes_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        check_coordinates(u, self.in_features)
        return linear(u, self.weight, self.bias, self.rate(), self.fused, self.max_angle)


@torch.no_grad()
def init_planes_(weight: Tensor, gain: float = 1.0) -> None:
    """Fill [out, in] hyperplanes: eye(out, in) / (2 gain), which preserves norms, if in <= out; else normal (HNN++)."""
    rows, columns = weight.shape
    if columns <= rows:
        nn.init.eye_(weight).mul_(0.5 / gain)
    else:
        nn.init.normal_(weight, std=(2 * rows * columns) ** -0.5)
