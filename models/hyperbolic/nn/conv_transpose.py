"""Transposed convolution: a hyperbolic convolution over the input spread out with points at the origin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.conv import Sizes, check_channels, sizes
from hyco.models.hyperbolic.nn.flatten import beta_ratio
from hyco.models.hyperbolic.nn.hyperplane_ops import (
    FEATURE_ANGLE,
    check_max_angle,
    hyperplane_outputs,
    hyperplane_outputs_plain,
    planes,
)
from hyco.models.hyperbolic.nn.module import Device, HyperbolicModule, accepts_lean, full_precision, placed
from hyco.models.hyperbolic.ops import square_norm


class ConvTranspose2d(HyperbolicModule):
    """Hyperbolic `torch.nn.ConvTranspose2d`: [B, C, H, W] -> [B, K, H', W'] tangent vectors.

    Equal to a stride-1 `Conv2d` with the kernel turned by 180 degrees over the input with stride - 1 points
    at the origin between its pixels, so a hyperplane is shared by all output positions although they see
    different taps.

    `weight` is [out, in / groups, kh, kw], that of the equal `Conv2d` turned by 180 degrees (torch's own
    transposed convolution has [in, out / groups, kh, kw]).

    Args:
        in_channels: coordinates of an input point.
        out_channels: coordinates of an output point.
        kernel_size, stride, padding, output_padding, groups, bias, dilation: as in torch.
        c, model: see `HyperbolicModule`.
        fused: hand-written backward; False: plain autograd, with the same results.
        max_angle: points of patches beyond this angle sqrt(c) d(0, x) are moved to it; see `FEATURE_ANGLE`.
        device, dtype: as in torch; float32 or float64.
    """

    @accepts_lean
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        fused: bool = True,
        max_angle: float = FEATURE_ANGLE,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        check_channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = sizes("kernel_size", kernel_size, 2, 1), sizes("stride", stride, 2, 1)
        self.padding, self.dilation = sizes("padding", padding, 2, 0), sizes("dilation", dilation, 2, 1)
        self.output_padding, self.fused = sizes("output_padding", output_padding, 2, 0), fused
        self.max_angle = check_max_angle(max_angle)
        place = placed(device, dtype)
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size, **place)
        )
        self.bias = nn.Parameter(torch.empty(out_channels, **place)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std (2 fan_in K)^-1/2 (HNN++), zero bias."""
        nn.init.normal_(self.weight, std=(2 * self.weight.numel()) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W']."""
        if u.dim() != 4 or u.shape[1] != self.in_channels:
            raise ValueError(f"expected a tensor of shape [B, {self.in_channels}, H, W], got {list(u.shape)}")
        g, rate = self.groups, self.rate()
        gain = beta_ratio(self.weight[0].numel(), self.in_channels)
        scales, powers, shifts = planes(self.weight, self.bias, rate, gain)
        directions = self.weight * scales.view(-1, 1, 1, 1)
        options = {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "dilation": self.dilation,
            "groups": g,
        }
        # torch wants [in, out / groups, kh, kw]: swap the two inside each group.
        turned = directions.unflatten(0, (g, -1)).transpose(1, 2).flatten(0, 1)
        m = F.conv_transpose2d(u, turned, **options)
        box = torch.ones(g, 1, *self.kernel_size, dtype=u.dtype, device=u.device)
        # One group needs no dimension of its own. Under dynamic shapes inductor fails to order the strides of a view
        # of a convolution's output.
        if g == 1:
            square, dims, each = square_norm(u, 1), (1,), (-1, 1, 1)
            s = F.conv_transpose2d(square, box, **options)
        else:
            m, dims, each = m.unflatten(1, (g, -1)), (1, 2), (g, -1, 1, 1)
            square = square_norm(u.unflatten(1, (g, -1)), 2).squeeze(2)
            s = F.conv_transpose2d(square, box, **options).unsqueeze(2)
        s = (rate * rate * gain * gain) * s
        shifts = None if shifts is None else shifts.view(each)
        outputs = hyperplane_outputs if self.fused else hyperplane_outputs_plain
        out = outputs(m, s, None, shifts, powers.view(each), rate, dims, self.max_angle)
        return out if g == 1 else out.flatten(1, 2)

    def extra_repr(self) -> str:
        """Sizes, geometry, curvature and model."""
        sizes = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        more = f"padding={self.padding}, output_padding={self.output_padding}, groups={self.groups}"
        return f"{sizes}, {more}, {super().extra_repr()}"
