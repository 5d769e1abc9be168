"""Normalisation of each point or image by itself: torch's functions on tangent vectors, brought to distance 1.

torch's norms give every coordinate variance 1, so a point of D coordinates would lie at distance sqrt(D) or
2 sqrt(D): beyond the cap of the layers at D = 144 and c = 1. Here the whole point has a root mean square distance of 1
from the origin at the start, as behind `BatchNorm2d`. That holds for any curvature, so these layers take no c.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.nn.module import (
    Device,
    HyperbolicModule,
    check_coordinates,
    full_precision,
    placed,
)


class _Norm(HyperbolicModule):
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        size: int,
        eps: float,
        affine: bool,
        bias: bool,
        model: str,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(model=model)
        if size < 1:
            raise ValueError(f"a point has at least one coordinate; got {size}")
        self._size, self.eps, place = size, eps, placed(device, dtype)
        # The tangent vector of a point at distance 1 has this length.
        length = 0.5 if model == "poincare" else 1.0
        self._scale, self._eps = length / size**0.5, eps * length**2 / size
        self.weight = nn.Parameter(torch.empty(size, **place)) if affine else None
        self.bias = nn.Parameter(torch.empty(size, **place)) if affine and bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weight 1: root mean square distance 1; zero bias."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _weight(self, u: Tensor) -> Tensor:
        return u.new_full((self._size,), self._scale) if self.weight is None else self.weight * self._scale

    def extra_repr(self) -> str:
        """Size, constants and model."""
        return f"{self._size}, eps={self.eps}, affine={self.weight is not None}, model={self.model}"


class LayerNorm(_Norm):
    """`torch.nn.LayerNorm` of tangent vectors, at distance 1: [..., normalized_shape], same shape.

    weight (u - mean u) length / |u - mean u| + bias, with the mean over the coordinates and `length` the tangent length
    of distance 1 (Ba et al. 2016 in the coordinates of log_0).

    Args:
        normalized_shape: coordinates of a point.
        eps: added to the squared distance from the origin.
        elementwise_affine: learn `weight` (starts at 1) and `bias` (a tangent vector, starts at 0).
        bias: whether there is a bias.
        model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: no coordinates, another model; later, an input without normalized_shape coordinates.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        model: str = "poincare",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, model, device, dtype)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [..., normalized_shape]."""
        check_coordinates(u, self._size)
        return F.layer_norm(u, (self._size,), self._weight(u), self.bias, self._eps)


class RMSNorm(_Norm):
    """`torch.nn.RMSNorm` of tangent vectors, at distance 1: [..., normalized_shape], same shape.

    weight u length / |u|, `length` the tangent length of distance 1 (Zhang and Sennrich 2019 in the coordinates of
    log_0). Equal weights move each point along its geodesic to the origin to the distance `weight`: the gyroscalar
    product of weight / d(0, x) and x.

    Args:
        normalized_shape: coordinates of a point.
        eps: added to the squared distance from the origin.
        elementwise_affine: learn `weight`, which starts at 1.
        model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: no coordinates, another model; later, an input without normalized_shape coordinates.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        model: str = "poincare",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, model, device, dtype)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [..., normalized_shape]."""
        check_coordinates(u, self._size)
        return F.rms_norm(u, (self._size,), self._weight(u), self._eps)


class GroupNorm(_Norm):
    """`torch.nn.GroupNorm` of tangent vectors, at root mean square distance 1: [B, num_channels, ...], same shape.

    Mean and variance of each group of coordinates are taken over its coordinates and all positions of one image (Wu and
    He 2018 in the coordinates of log_0); the mean square distance of the image's points from the origin becomes 1.

    Args:
        num_groups: number of groups of coordinates.
        num_channels: coordinates of a point, a multiple of num_groups.
        eps: added to the mean squared distance from the origin.
        affine: learn `weight` (starts at 1) and `bias` (a tangent vector, starts at 0).
        model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: channels that are not a multiple of the groups, another model; later, an input of another shape.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        model: str = "poincare",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"{num_channels} channels are not a multiple of {num_groups} groups; num_groups divides num_channels"
            )
        super().__init__(num_channels, eps, affine, True, model, device, dtype)
        self.num_groups = num_groups

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [B, num_channels, ...]."""
        if u.dim() < 2 or u.shape[1] != self._size:
            raise ValueError(f"expected a tensor of shape [B, {self._size}, ...], got {list(u.shape)}")
        return F.group_norm(u, self.num_groups, self._weight(u), self.bias, self._eps)

    def extra_repr(self) -> str:
        """Groups, size, constants and model."""
        return f"{self.num_groups}, {super().extra_repr()}"
