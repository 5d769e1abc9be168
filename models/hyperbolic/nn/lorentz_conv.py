"""Lorentz convolutions: the points under the kernel are joined directly, then `lorentz_linear` without im2col.

Direct concatenation (Qu and Zou 2022) puts the space parts of the points side by side; the time part of the result
follows, t^2 = 1 + sum |s|^2. So the products with the space parts of the normals are one ordinary convolution, and
the time part is a box sum. Without bias no time part is needed. Padding adds points at the origin.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.conv import Sizes, _Window
from hyco.models.hyperbolic.nn.conv_fused import Geometry, window_sum
from hyco.models.hyperbolic.nn.functional import Rate, to_space, to_tangent
from hyco.models.hyperbolic.nn.lorentz_linear import normals
from hyco.models.hyperbolic.nn.module import Device
from hyco.models.hyperbolic.ops import square_norm


def lorentz_convolve(
    convolution: Callable[..., Tensor],
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    groups: int = 1,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Lorentz convolution by torch's `convolution`: [B, C, *space], [K, C/groups, *kernel] -> [B, K, *space'].

    With groups, each group of output coordinates sees only its own coordinates of every input point.
    """
    space, time = normals(weight, bias, rate)
    s = to_space(u, rate, 1)
    y = convolution(s, space, None, stride, padding, dilation, groups)
    if time is not None:
        square = square_norm(s.unflatten(1, (groups, -1)), 2).squeeze(2)
        t = (1 + window_sum(square, Geometry(tuple(weight.shape[2:]), stride, padding, dilation))).sqrt()
        y = torch.addcmul(
            y.unflatten(1, (groups, -1)), t.unsqueeze(2), time.view(groups, -1, *(1,) * (u.dim() - 2))
        )
        y = y.flatten(1, 2)
    return to_tangent(y, rate, 1)


class _LorentzConv(_Window):
    # These maps do not magnify far points as `Conv2d` does: they have no `max_angle`, only the cap of float32.
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        c: float | Curvature = 1.0,
        model: str = "lorentz",
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = kernel_size, stride, padding, dilation
        super().__init__(in_channels, out_channels, *geometry, groups, bias, c, model, device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std (2 / fan_in)^1/2 (He et al. 2015), for a ReLU behind it; zero bias."""
        nn.init.normal_(self.weight, std=(2 / self.weight[0].numel()) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _respond(self, u: Tensor, **geometry) -> Tensor:
        convolution = type(self)._convolution
        return lorentz_convolve(convolution, u, self.weight, self.bias, self.rate(), self.groups, **geometry)


class LorentzConv1d(_LorentzConv):
    """Lorentz `torch.nn.Conv1d`: [B, C, L] -> [B, K, L'] tangent vectors; see `LorentzConv2d`."""

    _convolution = staticmethod(F.conv1d)
    _space = 1


class LorentzConv2d(_LorentzConv):
    """Lorentz `torch.nn.Conv2d` with linear growth (van der Klis et al. 2026): [B, C, H, W] -> [B, K, H', W'].

    Tangent vectors in and out, coordinates in dimension 1. The points under the kernel are concatenated directly and go
    through the map of `LorentzLinear`. `Conv2d` differs twice: it beta-concatenates tangent vectors and multiplies
    distances. Without bias this layer is a convolution of space parts, the cheapest of all.

    Args:
        in_channels: coordinates of an input point.
        out_channels: coordinates of an output point.
        kernel_size, stride, dilation, groups, bias: as in torch.
        padding: numbers, as in torch; adds points at the origin.
        c, model: see `HyperbolicModule`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: see `HyperbolicModule`; sizes, channels or groups that do not fit; later, an input of another shape.
    """

    _convolution = staticmethod(F.conv2d)
    _space = 2


class LorentzConv3d(_LorentzConv):
    """Lorentz `torch.nn.Conv3d`: [B, C, D, H, W] -> [B, K, D', H', W'] tangent vectors; see `LorentzConv2d`."""

    _convolution = staticmethod(F.conv3d)
    _space = 3
