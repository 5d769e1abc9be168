"""Pooling: averages are midpoints, maxima are taken of tangent vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.conv import Sizes
from models.hyperbolic.nn.functional import cosh_sinhc, normalise, to_tangent
from models.hyperbolic.nn.module import HyperbolicModule, full_precision

MaxPool2d = nn.MaxPool2d
"""The maximum of each coordinate of the tangent vectors: torch's own layer, since they are ordinary
tensors."""

AdaptiveMaxPool2d = nn.AdaptiveMaxPool2d
"""As `MaxPool2d`."""


class AvgPool2d(HyperbolicModule):
    """Hyperbolic `torch.nn.AvgPool2d`: the midpoint of each window, [B, C, H, W] -> [B, C, H', W'].

    Args:
        kernel_size, stride, padding, ceil_mode: as in torch.
        count_include_pad: whether padding counts as points at the origin.
        c, model: see `HyperbolicModule`.
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        self.kernel_size = _pair(kernel_size)
        self.stride = self.kernel_size if stride is None else _pair(stride)
        self.padding, self.ceil_mode, self.count_include_pad = _pair(padding), ceil_mode, count_include_pad

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        rate = self.rate()
        t, f = cosh_sinhc(u, rate, dim=1)
        space, padding = u * f, self.padding
        if self.count_include_pad and any(padding):
            # A point at the origin has space part 0 and time part 1.
            around = (padding[1], padding[1], padding[0], padding[0])
            space, t, padding = F.pad(space, around), F.pad(t, around, value=1.0), (0, 0)
        options = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": padding,
            "ceil_mode": self.ceil_mode,
            "divisor_override": 1,
        }
        count = F.avg_pool2d(t.new_ones(1, 1, *t.shape[2:]), **options)
        pooled = normalise(F.avg_pool2d(space, **options), F.avg_pool2d(t, **options), count, dim=1)
        return to_tangent(pooled, rate, dim=1)

    def extra_repr(self) -> str:
        """Window, curvature and model."""
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{window}, {super().extra_repr()}"


class AdaptiveAvgPool2d(HyperbolicModule):
    """Hyperbolic `torch.nn.AdaptiveAvgPool2d`: midpoints on a grid of `output_size`, [B, C, H, W] -> [B, C,
    h, w]."""

    def __init__(
        self, output_size: int | tuple[int, int], c: float | Curvature = 1.0, model: str = "poincare"
    ) -> None:
        super().__init__(c, model)
        self.output_size = output_size

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]."""
        rate = self.rate()
        t, f = cosh_sinhc(u, rate, dim=1)
        space = F.adaptive_avg_pool2d(u * f, self.output_size)
        total = F.adaptive_avg_pool2d(t, self.output_size)
        return to_tangent(normalise(space, total, dim=1), rate, dim=1)

    def extra_repr(self) -> str:
        """Grid, curvature and model."""
        return f"output_size={self.output_size}, {super().extra_repr()}"


def midpoint(u: Tensor, rate: float | Tensor, weights: Tensor | None = None, dim: int = -2) -> Tensor:
    """Weighted midpoint of tangent vectors [..., N, D] over `dim` (not -1) -> [..., D]; weights [..., N] >=
    0."""
    t, f = cosh_sinhc(u, rate)
    w = torch.ones_like(t) if weights is None else weights.unsqueeze(-1)
    return to_tangent(normalise((w * f * u).sum(dim), (w * t).sum(dim), w.sum(dim), dim=-1), rate)
