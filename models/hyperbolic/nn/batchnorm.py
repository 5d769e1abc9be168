"""Batch normalisation about the midpoint or the Frechet mean; running statistics, synchronised between processes.

A point x goes to exp_b(g P log_m(x)): its velocity from the mean m, carried to the learned mean b by parallel
transport P and scaled by g = sqrt(softplus(weight) / (variance + eps)) (Lou et al. 2020 with the midpoint of
van Spengler et al. 2023); see `batch_norm`.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.mean import frechet_mean, frechet_variance
from hyco.models.hyperbolic.nn.batchnorm_fused import batch_norm_fused
from hyco.models.hyperbolic.nn.batchnorm_ops import Statistics, batch_norm
from hyco.models.hyperbolic.nn.functional import Rate, normalise, radial_part, to_space
from hyco.models.hyperbolic.nn.hyperplane_ops import check_max_angle
from hyco.models.hyperbolic.nn.module import Device, HyperbolicModule, accepts_lean, full_precision, placed
from hyco.models.hyperbolic.nn.native import batchnorm as native
from hyco.models.hyperbolic.nn.native.library import usable
from hyco.models.hyperbolic.ops import square_norm, wide
from hyco.models.hyperbolic.transforms import transformed

NORM_ANGLE = 6
"""Default of `max_angle` of batch norms. At 12, the limit of float32, nets at high rates die; see
docs/hyperbolic_training.md.
"""
SMOOTHING, FIRST_MOVEMENT, MOST_MOVEMENT = 0.2, 10.0, 50.0
"""Weight of the newest batch in `running_movement`, its value at the start, and the maximum of its terms."""


class _BatchNorm(HyperbolicModule):
    running_mean: Tensor | None
    running_var: Tensor | None
    running_movement: Tensor | None
    num_batches_tracked: Tensor | None
    _dims: tuple[int, ...]

    @accepts_lean
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        c: float | Curvature = 1.0,
        model: str = "poincare",
        fused: bool = True,
        mean: str = "midpoint",
        max_angle: float = NORM_ANGLE,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(c, model)
        if mean not in ("midpoint", "frechet"):
            raise ValueError(f'mean must be "midpoint" or "frechet"; got {mean!r}')
        self.fused, self.mean, place = fused, mean, placed(device, dtype)
        self.max_angle = check_max_angle(max_angle)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        # softplus(weight) is the variance the output has; it starts at 1, the learned mean at the origin.
        self.weight = nn.Parameter(torch.empty((), **place)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **place)) if affine else None
        self.register_buffer(
            "running_mean", torch.zeros(num_features, **place) if track_running_stats else None
        )
        self.register_buffer("running_var", torch.ones((), **place) if track_running_stats else None)
        # How far the batches' means move: their squared distance from the running mean over that of mere noise.
        self.register_buffer("running_movement", torch.empty((), **place) if track_running_stats else None)
        count = torch.tensor(0, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set variance to 1 and the mean to the origin, and the running statistics likewise."""
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1.0).expm1_().log_()
            self.bias.zero_()
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1.0)
            if self.running_movement is not None:
                self.running_movement.fill_(FIRST_MOVEMENT)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Checkpoints from before `running_movement` load: means that do not move, until batches show otherwise."""
        if self.running_movement is not None and f"{prefix}running_mean" in state_dict:
            still = torch.ones((), dtype=self.running_movement.dtype)
            state_dict.setdefault(f"{prefix}running_movement", still)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @full_precision
    def forward(self, u: Tensor) -> Tensor:
        """Same shape: [B, C, ...] tangent vectors with their coordinates in dimension 1.

        In training, and without running statistics, the batch's own mean and variance are used; with torch.distributed
        initialised, those of the batches of all processes.
        """
        if u.dim() not in self._dims or u.shape[1] != self.num_features:
            wanted = f"[B, {self.num_features}{', ...' if max(self._dims) > 2 else ''}]"
            raise ValueError(f"expected a tensor of shape {wanted}, got {list(u.shape)}")
        together = (
            self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        )
        if not (u.numel() or together):  # no points have no mean, and must not end the running ones
            return u.clone()
        rate, c = self.rate(), self.curvature()
        # [B, C, N]: positions last, so that all sums over coordinates are small matrix products.
        x = (u.flatten(2) if u.dim() > 2 else u.T.unsqueeze(0)).contiguous()
        bias = x.new_zeros(self.num_features) if self.bias is None else self.bias
        wanted = c * (x.new_ones(()) if self.weight is None else F.softplus(self.weight))
        given = None
        if not self.training and self.running_mean is not None and self.running_var is not None:
            given = Statistics(to_space(wide(self.running_mean), rate), c * self.running_var)
        fused = self.fused
        if given is None and self.mean == "frechet":
            given, fused = self._frechet(x, rate, together), False
        # A compiler builds its own backward pass from the plain arithmetic.
        plain = not fused or torch.compiler.is_compiling() or transformed() or u.is_meta
        kernel = batch_norm if plain else batch_norm_fused
        out, found = kernel(x, bias, wanted, c * self.eps, rate, given, together, self.max_angle)
        if self.training and self.running_mean is not None:
            self._track(found, c, rate, u.shape[0], u.dim() == 2)
        return out.view_as(u) if u.dim() > 2 else out.squeeze(0).T

    def _frechet(self, x: Tensor, rate: Rate, together: bool) -> Statistics:
        """Statistics of [B, C, N] about the Frechet mean, which carry their gradient."""
        if together and dist.get_world_size() > 1:
            raise ValueError(
                'mean="frechet" is not computed across processes: use mean="midpoint", '
                "or leave torch.distributed uninitialised"
            )
        u = wide(x.transpose(1, 2).flatten(0, 1))
        points = u * (rate * radial_part(rate * rate * square_norm(u), self.max_angle))
        mean = frechet_mean(points, 1.0)
        return Statistics(mean, frechet_variance(points, 1.0, mean))

    @torch.no_grad()
    def _track(self, found: Statistics, c: Rate, rate: Rate, size: int, flat: bool) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        mean, spread, counts = found
        # Processes may have different numbers of samples, but must move alike. Samples without positions, [B, C], are
        # the points of one batch entry.
        count = size if counts is None else counts[0 if flat else 1]
        self.num_batches_tracked.add_(1)
        movement = self.running_movement
        in_order = self.running_mean.is_contiguous()
        if movement is not None and in_order and usable(self.running_mean, self.running_var, movement):
            running = self.running_mean, self.running_var, movement
            if self.momentum is None:
                least, weight = 0.0, 1 / float(self.num_batches_tracked)
            else:
                least, weight = self.momentum, 0.0
            constants = least, weight, SMOOTHING, MOST_MOVEMENT
            native.track(mean.double(), spread, running, c, rate, float(count), *constants)
            return
        # The weighted midpoint of the old mean and the new one.
        old = self.running_mean.to(mean.dtype)
        n = torch.linalg.vector_norm(old).clamp(min=1e-15)
        space, time = old * ((n * rate).sinh() / n), (n * rate).cosh()
        way, later = mean - space, (1 + mean.dot(mean)).sqrt() - time
        if self.momentum is None:
            share = 1 / self.num_batches_tracked.to(mean.dtype)
        else:
            share = self._share(way.dot(way) - later * later, spread.to(mean.dtype), count, self.momentum)
        space = normalise(space + share * way, time + share * later)
        n = torch.linalg.vector_norm(space).clamp(min=1e-15)
        self.running_mean.copy_(space * (n.asinh() / n / rate))
        news = spread.to(self.running_var.dtype) / c - self.running_var
        self.running_var.add_(share * news)

    def _share(self, apart: Tensor, spread: Tensor, count: Tensor | int, least: float) -> Tensor | float:
        """Weight of the newest batch: the gain of a Kalman filter, 1 - noise / E[apart], and at least `least`.

        Args:
            apart: squared angle between the two means (its chord).
            spread: mean squared angle of the points from their mean.
            count: samples in the batch, of all processes. The mean of so many has the variance
                spread / ((1 + spread) count): that of Euclidean space for near points; of far ones only directions
                count.
            least: momentum; 0 stops the statistics.
        """
        if least == 0:
            return 0.0
        assert self.running_movement is not None
        noise = spread / ((1 + spread) * count)
        movement = (apart / noise.clamp(min=1e-30)).clamp(0, MOST_MOVEMENT).to(self.running_movement.dtype)
        self.running_movement.add_(SMOOTHING * (movement - self.running_movement))
        return (1 - 1 / self.running_movement.to(apart.dtype)).clamp(min=least)

    def extra_repr(self) -> str:
        """Size, constants, curvature and model."""
        own = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, mean={self.mean}"
        return f"{own}, {super().extra_repr()}"


class BatchNorm1d(_BatchNorm):
    """Hyperbolic `torch.nn.BatchNorm1d`: [B, C] or [B, C, L], one point per batch entry and position.

    Args:
        num_features: coordinates of a point.
        eps: added to the variance, which is a mean squared distance.
        momentum: least weight of the newest batch in the running statistics. It is larger while the means of batches
            are further from the running mean than their noise. 0 keeps them; None: the average of all batches.
        affine: learn the mean (`bias`, a tangent vector at the origin) and the variance (softplus of `weight`).
        track_running_stats: update running statistics and use them in eval mode.
        c, model: see `HyperbolicModule`.
        fused: hand-written backward, fast and differentiable once; False: plain autograd.
        mean: "midpoint", in closed form, or "frechet", the point of least variance (Lou et al. 2020), by Newton's
            method. Where the statistics are the batch's own, "frechet" is plain autograd whatever `fused` says,
            and is refused across processes. Running means are averaged by midpoints in both.
        max_angle: points that go in are moved to this angle sqrt(c) d(0, x) where they lie beyond; see `NORM_ANGLE`.
        device, dtype: as in torch; float32 or float64.

    Raises:
        ValueError: another mean, a max_angle out of range, or "frechet" in training with torch.distributed initialised
            for several processes.
    """

    _dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Hyperbolic `torch.nn.BatchNorm2d`: [B, C, H, W], one point per pixel; arguments of `BatchNorm1d`."""

    _dims = (4,)
