"""Convolutions without im2col.

The textbook layer concatenates the points under the kernel into one point and applies a fully connected
layer to it. Beta-concatenation is linear in tangent vectors, so the products with the hyperplanes are an
ordinary convolution and the squared norm of the patch is a box sum of squared norms; only the response
behind them is hyperbolic. Padding adds points at the origin.
"""

from collections.abc import Callable, Iterable
from typing import SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.conv_fused import Geometry, convolve_fused, window_sum
from hyco.models.hyperbolic.nn.flatten import beta_ratio
from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.nn.hyperplane_ops import (
    FEATURE_ANGLE,
    check_max_angle,
    hyperplane_outputs,
    hyperplane_outputs_plain,
    planes,
)
from hyco.models.hyperbolic.nn.linear import init_planes_
from hyco.models.hyperbolic.nn.module import Device, HyperbolicModule, accepts_lean, full_precision, placed
from hyco.models.hyperbolic.ops import square_norm
from hyco.models.hyperbolic.transforms import transformed

Sizes = int | tuple[int, ...]


def sizes(name: str, value: Sizes, dims: int, least: int) -> tuple[int, ...]:
    """An argument of a window as one number per dimension; ValueError unless all are at least `least`."""
    each = tuple(value) if isinstance(value, Iterable) else (value,) * dims
    if len(each) != dims or not all(isinstance(k, SupportsIndex) and k >= least for k in each):
        hint = '; "same" is dilation * (kernel_size - 1) // 2' if value == "same" else ""
        raise ValueError(f"{name} takes {dims} integers, or one, of at least {least}; got {value!r}{hint}")
    return each


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise ValueError where the channels cannot be divided into the groups."""
    if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{in_channels} and {out_channels} channels are not positive multiples of {groups} groups; "
            "groups divides both"
        )


def convolve(
    convolution: Callable[..., Tensor],
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: Rate,
    groups: int = 1,
    fused: bool = True,
    max_angle: float = FEATURE_ANGLE,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Hyperbolic convolution by torch's `convolution`: [B, C, *space], [K, C/groups, *kernel] -> [B, K, *space'].

    With groups, each group of output coordinates sees only its own coordinates of every input point.
    """
    fan_in = weight[0].numel()
    gain, windows = (
        beta_ratio(fan_in, u.shape[1]),
        Geometry(tuple(weight.shape[2:]), stride, padding, dilation),
    )
    # Compilers and torch's transforms differentiate the layer's parts one by one.
    if fused and not (torch.compiler.is_compiling() or transformed() or u.is_meta):
        return convolve_fused(u, weight, bias, rate, gain, windows, groups, max_angle)
    scales, powers, shifts = planes(weight, bias, rate, gain)
    # A kernel is smaller than its images: scaling it before the convolution saves a pass over them.
    directions = weight * scales.view(-1, *(1,) * (weight.dim() - 1))
    space = (1,) * (u.dim() - 2)
    # Sums over the channels of each group first: the box sum then costs 1/C of the convolution.
    square = square_norm(u.unflatten(1, (groups, -1)), 2).squeeze(2) if groups > 1 else square_norm(u, 1)
    s = (rate * rate * gain * gain) * window_sum(square, windows)
    m = convolution(u, directions, None, stride, padding, dilation, groups)
    outputs = hyperplane_outputs if fused else hyperplane_outputs_plain
    if groups == 1:
        powers, shifts = powers.view(-1, *space), None if shifts is None else shifts.view(-1, *space)
        return outputs(m, s, None, shifts, powers, rate, (1,), max_angle)
    m, powers = m.unflatten(1, (groups, -1)), powers.view(groups, -1, *space)
    shifts = None if shifts is None else shifts.view(groups, -1, *space)
    return outputs(m, s.unsqueeze(2), None, shifts, powers, rate, (1, 2), max_angle).flatten(1, 2)


class _Window(HyperbolicModule):
    """Channels, geometry and parameters of a convolution; the constructor of a subclass resets them."""

    _convolution: Callable[..., Tensor]
    _space: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        groups: int,
        bias: bool,
        c: float | Curvature,
        model: str,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(c, model)
        check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = sizes("kernel_size", kernel_size, self._space, 1)
        self.stride = sizes("stride", stride, self._space, 1)
        self.padding = sizes("padding", padding, self._space, 0)
        self.dilation = sizes("dilation", dilation, self._space, 1)
        place = placed(device, dtype)
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size, **place)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, **place)) if bias else None

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, in_channels, *space] -> [B, out_channels, *space']."""
        if u.dim() != len(self.kernel_size) + 2 or u.shape[1] != self.in_channels:
            wanted = f"[B, {self.in_channels}, {len(self.kernel_size)} spatial sizes]"
            raise ValueError(f"expected a tensor of shape {wanted}, got {list(u.shape)}")
        return self._respond(u, stride=self.stride, padding=self.padding, dilation=self.dilation)

    def _respond(self, u: Tensor, **geometry) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, geometry, curvature and model."""
        sizes = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        more = f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        return f"{sizes}, {more}, bias={self.bias is not None}, {super().extra_repr()}"


class _Conv(_Window):
    @accepts_lean
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
        model: str = "poincare",
        init: str = "identity",
        fused: bool = True,
        max_angle: float = FEATURE_ANGLE,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if init not in ("identity", "normal", "hypll"):
            raise ValueError(f'init must be "identity", "normal" or "hypll"; got {init!r}')
        geometry = kernel_size, stride, padding, dilation
        super().__init__(in_channels, out_channels, *geometry, groups, bias, c, model, device, dtype)
        self.init, self.fused = init, fused
        self.max_angle = check_max_angle(max_angle)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the weights by `init`, and the bias with zeros.

        - "identity": the centre tap is the identity map where it fits, so that norms stay the same at any depth
        - "normal": HNN++, std (2 fan_in K)^-1/2, under which norms fall at every layer
        - "hypll": as "normal", but half an identity matrix over (channel, tap) in the rare case that fan_in <= K
        """
        flat = self.weight.flatten(1)
        if self.init == "hypll":
            init_planes_(flat)
        elif self.init == "normal" or self.in_channels > self.out_channels:
            nn.init.normal_(flat, std=(2 * flat.numel()) ** -0.5)
        else:
            self.weight.zero_()
            centre = tuple(k // 2 for k in self.kernel_size)
            tap = self.weight[(slice(None), slice(None), *centre)]
            rows, columns = self.out_channels // self.groups, self.in_channels // self.groups
            eye = torch.eye(rows, columns).repeat(self.groups, 1) / (
                2 * beta_ratio(flat.shape[1], self.in_channels)
            )
            tap.copy_(eye)
            # A zero row has no direction, so outputs beyond the input's channels start at random.
            empty = flat.view(self.groups, rows, -1)[:, columns:]
            nn.init.normal_(empty, std=(2 * flat.numel()) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _respond(self, u: Tensor, **geometry) -> Tensor:
        options = {"groups": self.groups, "fused": self.fused, "max_angle": self.max_angle}
        return convolve(
            type(self)._convolution, u, self.weight, self.bias, self.rate(), **options, **geometry
        )


class Conv1d(_Conv):
    """Hyperbolic `torch.nn.Conv1d` on tangent vectors, the points' coordinates being the channels; see `Conv2d`."""

    _convolution = staticmethod(F.conv1d)
    _space = 1


class Conv2d(_Conv):
    """Hyperbolic `torch.nn.Conv2d`: [B, C, H, W] -> [B, K, H', W'] tangent vectors, coordinates in dimension 1.

    Args:
        in_channels: coordinates of an input point.
        out_channels: coordinates of an output point.
        kernel_size, stride, dilation, groups, bias: as in torch.
        padding: numbers, as in torch; adds points at the origin.
        c, model: see `HyperbolicModule`.
        init: "identity" (default), "normal" or "hypll"; see `reset_parameters`.
        fused: hand-written backward that stores only the input and the convolution's output; False: plain autograd.
        max_angle: points of patches beyond this angle sqrt(c) d(0, x) are moved to it; see `FEATURE_ANGLE`.
        device, dtype: as in torch; float32 or float64.
    """

    _convolution = staticmethod(F.conv2d)
    _space = 2


class Conv3d(_Conv):
    """Hyperbolic `torch.nn.Conv3d`: [B, C, D, H, W] -> [B, K, D', H', W'] tangent vectors; see `Conv2d`."""

    _convolution = staticmethod(F.conv3d)
    _space = 3
