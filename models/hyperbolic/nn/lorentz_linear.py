"""Lorentz fully connected layer: the coordinates of the output are Minkowski products with normals of hyperplanes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate, cosh_sinhc, to_tangent
from hyco.models.hyperbolic.nn.module import Device, _Affine, check_coordinates, full_precision
from hyco.models.hyperbolic.ops import has_direction


def normals(weight: Tensor, bias: Tensor | None, rate: Rate) -> tuple[Tensor, Tensor | None]:
    """Space parts and negated time parts of K space-like normals: weight [K, ...], bias [K] or None (tangent units).

    The space part is cosh(r) weight_k and the time part -|weight_k| sinh(r), with r = rate bias_k / |weight_k| the
    hyperbolic angle between the hyperplane and the origin. Beyond MAX_ANGLE, where no input point can lie, r is capped
    with a straight-through gradient. A weight of zeros has no hyperplane: both parts are zero.
    """
    if bias is None:
        return weight, None
    square = weight.square().flatten(1).sum(1)
    known = has_direction(square)
    size = torch.where(known, square, 1.0).sqrt()
    r = rate * bias / size
    r = r + (r.clamp(-MAX_ANGLE, MAX_ANGLE) - r).detach()
    space = weight * torch.cosh(r).view(-1, *(1,) * (weight.dim() - 1))
    return space, torch.where(known, size * torch.sinh(r), 0.0)


def lorentz_linear(u: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate) -> Tensor:
    """Lorentz fully connected layer (van der Klis et al. 2026): [..., I], [O, I], [O] or None -> [..., O].

    u and the result are tangent vectors at the origin. With (t, s) the input point on the unit hyperboloid, the space
    part of the output is y_k = cosh(r_k) <s, weight_k> + t |weight_k| sinh(r_k), with r_k of `normals`.
    """
    return to_tangent(products(u, weight, bias, rate), rate)


def products(u: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate) -> Tensor:
    """|weight_k| sinh of the signed angle to hyperplane k: [..., I] tangent vectors -> [..., O]."""
    space, time = normals(weight, bias, rate)
    t, f = cosh_sinhc(u, rate)
    y = F.linear(u * f, space)
    return y if time is None else torch.addcmul(y, t, time)


class LorentzLinear(_Affine):
    """Lorentz fully connected layer with linear growth (van der Klis et al. 2026): tangent vectors in and out.

    [..., in_features] -> [..., out_features]. Both this layer and `Linear` measure the signed distance d_k to
    hyperplanes. `Linear` multiplies the distance (space part sinh(2 |z_k| d_k)); this layer multiplies its sinh (space
    part |weight_k| sinh d_k), which needs no elementwise function of the products. They are the same map where
    |weight_k| = 2 |z_k| = 1 and the biases have opposite signs; near the origin this layer is
    `torch.nn.functional.linear(u, weight, bias)`. Linear steps of the bias move the output by linear distances, because
    the normals grow with sinh and cosh of it.

    Args:
        in_features: coordinates of an input point.
        out_features: coordinates of an output point.
        bias: whether hyperplanes may miss the origin.
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
        c: float | Curvature = 1.0,
        model: str = "lorentz",
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, c, model, device, dtype)
        self.reset_parameters()

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        check_coordinates(u, self.in_features)
        return lorentz_linear(u, self.weight, self.bias, self.rate())
