"""Pooling: averages are midpoints, maxima are taken of tangent vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.conv import Sizes, sizes
from hyco.models.hyperbolic.nn.functional import cosh_sinhc, normalise, to_tangent
from hyco.models.hyperbolic.nn.module import HyperbolicModule, full_precision

MaxPool2d = nn.MaxPool2d
"""The maximum of each coordinate of the tangent vectors: torch's own layer, since they are ordinary
tensors."""

AdaptiveMaxPool2d = nn.AdaptiveMaxPool2d
"""As `MaxPool2d`."""


class AvgPool2d(HyperbolicModule):
    """Hyperbolic `torch.nn.AvgPool2d`: the midpoint of each window, [B, C, H, W] -> [B, C, H', W'].

    Args:
        kernel_size, stride, padding, ceil_mode: as in torch.
        count_include_pad: whether padding counts as points at the origin (positions added by ceil_mode never do).
        c, model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        c: float | Curvature = 1.0,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        self.kernel_size = sizes("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, 2, 1)
        self.padding = sizes("padding", padding, 2, 0)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        _check_images(u)
        rate = self.rate()
        t, f = cosh_sinhc(u, rate, dim=1)
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        ones = t.new_ones(1, 1, *t.shape[2:])
        space, total, count = (F.avg_pool2d(x, *window, divisor_override=1) for x in (u * f, t, ones))
        if self.count_include_pad and any(self.padding):
            # A point at the origin has space part 0 and time part 1; torch's mean of ones gives their number.
            padded = (count / F.avg_pool2d(ones, *window)).round() - count
            total, count = total + padded, count + padded
        return to_tangent(normalise(space, total, count, dim=1), rate, dim=1)

    def extra_repr(self) -> str:
        """Window, curvature and model."""
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{window}, {super().extra_repr()}"


class AdaptiveAvgPool2d(HyperbolicModule):
    """Hyperbolic `torch.nn.AdaptiveAvgPool2d`: midpoints on a grid of `output_size`, [B, C, H, W] -> [B, C, h, w]."""

    def __init__(
        self, output_size: int | tuple[int, int], c: float | Curvature = 1.0, model: str = "poincare"
    ) -> None:
        super().__init__(c, model)
        self.output_size = output_size

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]."""
        _check_images(u)
        rate = self.rate()
        t, f = cosh_sinhc(u, rate, dim=1)
        space = F.adaptive_avg_pool2d(u * f, self.output_size)
        total = F.adaptive_avg_pool2d(t, self.output_size)
        return to_tangent(normalise(space, total, dim=1), rate, dim=1)

    def extra_repr(self) -> str:
        """Grid, curvature and model."""
        return f"output_size={self.output_size}, {super().extra_repr()}"


def _check_images(u: Tensor) -> None:
    if u.dim() != 4:
        raise ValueError(
            f"expected a tensor of shape [B, C, H, W], got {list(u.shape)}; u.unsqueeze(0) adds a batch dimension"
        )


def midpoint(u: Tensor, rate: float | Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Weighted midpoint of tangent vectors [..., N, D] over `dim` (not -1) -> [..., D]; weights [..., N] >= 0."""
    t, f = cosh_sinhc(u, rate)
    w = torch.ones_like(t) if weights is None else weights.unsqueeze(-1)
    return to_tangent(normalise((w * f * u).sum(dim), (w * t).sum(dim), w.sum(dim), dim=-1), rate)
