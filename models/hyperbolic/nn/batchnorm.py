"""Batch normalisation about the midpoint, with running statistics, and synchronised between processes.

With the mean m and the learned mean b on the unit hyperboloid, a point x goes to exp_b(g P log_m(x)): its
velocity from m, carried to b by parallel transport P and scaled by g = sqrt(softplus(weight) / (variance +
eps)) (Lou et al. 2020 with the midpoint of van Spengler et al. 2023). All three steps are sums of x, m and b
whose factors depend on <m, x> and <b, x> alone, so the cost is two dot products and one combination a point.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.functional import MAX_ANGLE, Rate, cosh_sinhc, to_space, to_tangent
from models.hyperbolic.nn.module import HyperbolicModule, full_precision
from models.hyperbolic.ops import asinhc, safe_norm, sinhc


def normalise(space: Tensor, total: Tensor, least: float | Tensor = 1.0, dim: int = 0) -> Tensor:
    """Unit-hyperboloid space part of the centroid, from summed space parts, summed time parts and summed
    weights.

    The Lorentz norm of a weighted sum is at least the sum of the weights, which bounds the rounding of T -
    |S|; in float32 it shows from an angle of about 7 on (`mean.midpoint` has no such limit, at twice the
    cost).
    """
    n = safe_norm(space, dim)
    return space * torch.maximum((total - n) * (total + n), torch.as_tensor(least**2).to(n)).rsqrt()


class _BatchNorm(HyperbolicModule):
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    _dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
    ) -> None:
        super().__init__(c, model)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        # softplus(weight) is the variance the output has; it starts at 1, the learned mean at the origin.
        self.weight = nn.Parameter(torch.empty(())) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(()) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Variance 1, mean at the origin, running statistics likewise."""
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1.0).expm1_().log_()
            self.bias.zero_()
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1.0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.zero_()

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [B, C, ...] tangent vectors with their coordinates in dimension 1.

        In training, and where no running statistics are kept, the batch's own mean and variance are used;
        with torch.distributed initialised, those of the batches of all processes.
        """
        if u.dim() not in self._dims or u.shape[1] != self.num_features:
            wanted = f"[B, {self.num_features}{', ...' if max(self._dims) > 2 else ''}]"
            raise ValueError(f"expected a tensor of shape {wanted}, got {list(u.shape)}")
        rate = self.rate()
        t, f = cosh_sinhc(u, rate, dim=1)
        stats = None
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean, variance = to_space(self.running_mean, rate), self.running_var
        else:
            mean = self._batch_mean(u, t, f)
            variance = None
            stats = mean
        shape = (1, -1) + (1,) * (u.dim() - 2)
        mean_t = (1 + mean.square().sum()).sqrt()
        # cosh of the angle from the mean; q = 4 sinh^2 of half of it.
        cosh = t * mean_t - f * (u * mean.view(shape)).sum(1, keepdim=True)
        q = (2 * (cosh - 1)).clamp(min=0)
        angle2 = q * asinhc(q / 4).square()
        if variance is None:
            variance = self._average(angle2) / self.curvature()
        if stats is not None and self.training and self.running_mean is not None:
            self._track(stats.detach(), variance.detach(), rate)
        spread = variance + self.eps
        gain2 = (F.softplus(self.weight) if self.weight is not None else 1.0) / spread
        out2 = (gain2 * angle2).clamp(max=MAX_ANGLE**2)
        out_sinhc = sinhc(out2)
        # sinh(gain angle) / sinh(angle); where the cap holds, sinh(MAX_ANGLE) / sinh(angle).
        scale = (gain2 / (gain2 * angle2 / MAX_ANGLE**2).clamp(min=1)) ** 0.5
        k = scale * out_sinhc / sinhc(angle2)
        out_cosh = (1 + out2 * out_sinhc.square()).sqrt()
        bias = to_space(self.bias, rate) if self.bias is not None else torch.zeros_like(mean)
        bias_t = (1 + bias.square().sum()).sqrt()
        to_bias = t * bias_t - f * (u * bias.view(shape)).sum(1, keepdim=True)
        between = mean_t * bias_t - (mean * bias).sum()
        j = k * (cosh * between - to_bias) / (1 + between)
        space = u * (k * f) + (j - k * cosh) * mean.view(shape) + (j + out_cosh) * bias.view(shape)
        return to_tangent(space, rate, dim=1)

    def _batch_mean(self, u: Tensor, t: Tensor, f: Tensor) -> Tensor:
        others = [d for d in range(u.dim()) if d != 1]
        sums = torch.cat([(u * f).sum(others), t.sum().view(1), t.new_tensor([float(t.numel())])])
        if self.training and dist.is_available() and dist.is_initialized():
            sums = _all_reduce(sums)
        return normalise(sums[:-2], sums[-2], sums[-1])

    def _average(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return x.mean()
        sums = _all_reduce(torch.stack([x.sum(), x.new_tensor(float(x.numel()))]))
        return sums[0] / sums[1]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, rate: Rate) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        old = to_space(self.running_mean, rate)
        # The weighted midpoint of the old mean and the new one.
        space = (1 - share) * old + share * mean
        total = (1 - share) * (1 + old.square().sum()).sqrt() + share * (1 + mean.square().sum()).sqrt()
        self.running_mean.copy_(to_tangent(normalise(space, total), rate))
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def extra_repr(self) -> str:
        """Size, constants, curvature and model."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, {super().extra_repr()}"


def _all_reduce(x: Tensor) -> Tensor:
    """Sum over processes, with its gradient."""
    from torch.distributed.nn.functional import (
        all_reduce,
    )  # it does not import where distributed is not built

    return all_reduce(x)


class BatchNorm1d(_BatchNorm):
    """Hyperbolic `torch.nn.BatchNorm1d`: [B, C] or [B, C, L], one point per batch entry and position.

    Args:
        num_features: coordinates of a point.
        eps: added to the variance, which is a mean squared distance.
        momentum: weight of the newest batch in the running statistics; None: the average of all batches.
        affine: learn the mean (`bias`, a tangent vector at the origin) and the variance (softplus of
        `weight`). track_running_stats: keep running statistics and use them in eval mode. c, model: see
        `HyperbolicModule`.
    """

    _dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Hyperbolic `torch.nn.BatchNorm2d`: [B, C, H, W], one point per pixel; arguments of `BatchNorm1d`."""

    _dims = (4,)
