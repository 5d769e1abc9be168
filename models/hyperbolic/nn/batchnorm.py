"""Batch normalisation about the midpoint, with running statistics, and synchronised between processes.

With the mean m and the learned mean b on the unit hyperboloid, a point x goes to exp_b(g P log_m(x)): its
velocity from m, carried to b by parallel transport P and scaled by g = sqrt(softplus(weight) / (variance +
eps)) (Lou et al. 2020 with the midpoint of van Spengler et al. 2023). All three steps are sums of x, m and b
whose factors depend on <m, x> and <b, x> alone, so the cost is two dot products and one combination a point.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from models.hyperbolic.curvature import Curvature
from models.hyperbolic.nn.functional import MAX_ANGLE, Rate, cosh_sinhc, norm_and_shrink, to_space, to_tangent
from models.hyperbolic.nn.module import HyperbolicModule, full_precision
from models.hyperbolic.ops import asinhc, asinhc_slope, safe_norm, sinhc, square_norm


def normalise(space: Tensor, total: Tensor, least: float | Tensor = 1.0, dim: int = 0) -> Tensor:
    """Unit-hyperboloid space part of the centroid, from summed space parts, summed time parts and summed
    weights.

    The Lorentz norm of a weighted sum is at least the sum of the weights, which bounds the rounding of T -
    |S|; in float32 it shows from an angle of about 7 on (`mean.midpoint` has no such limit, at twice the
    cost).
    """
    n = safe_norm(space, dim)
    return space * torch.maximum((total - n) * (total + n), torch.as_tensor(least**2).to(n)).rsqrt()


class _Combine(Function):
    """The tangent vector of x a + pair^T factors on the unit hyperboloid: [B, C, N], [B, 1, N], [2, C], [B,
    2, N].

    Keeps x and its result, which the layers before and behind keep as well, and no tensor of their size
    between.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, a, pair, factors, rate):
        many = pair.T.expand(x.shape[0], -1, -1)
        space = torch.baddbmm(x * a, many, factors)
        n = square_norm(space, 1)
        value = asinhc(n)
        return space.mul_(value / rate), n, value

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, rate = inputs
        ctx.rate = None if isinstance(rate, Tensor) else rate
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output, rate if isinstance(rate, Tensor) else None)

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, a, pair, factors, out, n, value, rate = ctx.saved_tensors
        rate = ctx.rate if rate is None else rate
        if torch.is_grad_enabled():  # a second derivative is wanted: n and value must depend on out
            n, value = norm_and_shrink(out, rate, 1)
        along = (grad * out).sum(1, keepdim=True)
        d_rate = -along.sum() / rate if ctx.needs_input_grad[4] else None
        # As in `to_tangent`: the space part is out rate / value.
        outer = along * (2 * rate) * asinhc_slope(n, value) / (value * value)
        d = torch.addcmul(grad * (value / rate), out, outer)
        d_a = (d * x).sum(1, keepdim=True)
        d_factors = torch.bmm(pair.expand(x.shape[0], -1, -1), d)
        d_pair = torch.bmm(factors, d.transpose(1, 2)).sum(0)
        return d * a, d_a, d_pair, d_factors, d_rate


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
        # [B, C, N]: positions last, so that all sums over coordinates are small matrix products.
        x = u.flatten(2) if u.dim() > 2 else u.T.unsqueeze(0)
        t, f = cosh_sinhc(x, rate, dim=1)
        fixed = not self.training and self.running_mean is not None
        if fixed:
            assert self.running_mean is not None
            mean, variance = to_space(self.running_mean, rate), self.running_var
        else:
            mean, variance = self._batch_mean(x, t, f), None
        bias = to_space(self.bias, rate) if self.bias is not None else torch.zeros_like(mean)
        pair = torch.stack([mean, bias])
        pair_t = (1 + pair.square().sum(1, keepdim=True)).sqrt()
        # cosh of the angles from the mean and the learned mean, [B, 2, N].
        many = pair.expand(x.shape[0], -1, -1)
        cosh, to_bias = (t * pair_t - f * torch.bmm(many, x)).split(1, 1)
        q = (2 * (cosh - 1)).clamp(min=0)
        angle2 = q * asinhc(q / 4).square()
        if variance is None:
            variance = self._average(angle2) / self.curvature()
        if not fixed and self.training and self.running_mean is not None:
            self._track(mean.detach(), variance.detach(), rate)
        gain2 = (F.softplus(self.weight) if self.weight is not None else 1.0) / (variance + self.eps)
        wanted2 = gain2 * angle2
        out2 = wanted2.clamp(max=MAX_ANGLE**2)
        out_sinhc = sinhc(out2)
        # sinh(gain angle) / sinh(angle); where the cap holds, sinh(MAX_ANGLE) / sinh(angle).
        k = (gain2 / (wanted2 / MAX_ANGLE**2).clamp(min=1)) ** 0.5 * out_sinhc / sinhc(angle2)
        out_cosh = (1 + out2 * out_sinhc.square()).sqrt()
        between = pair_t[0] * pair_t[1] - (mean * bias).sum()
        j = k * (cosh * between - to_bias) / (1 + between)
        factors = torch.cat([j - k * cosh, j + out_cosh], 1)
        out = _Combine.apply(x, k * f, pair, factors, rate)[0]
        return out.view_as(u) if u.dim() > 2 else out.squeeze(0).T

    def _batch_mean(self, x: Tensor, t: Tensor, f: Tensor) -> Tensor:
        """Midpoint of all points, from (sum t, sum s, N) in one exchange between processes."""
        count = t.new_tensor([float(t.numel())])
        sums = torch.cat([torch.bmm(x, f.transpose(1, 2)).sum((0, 2)), t.sum().view(1), count])
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
