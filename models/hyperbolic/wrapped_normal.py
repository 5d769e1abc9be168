"""The wrapped normal distribution on the hyperboloid (Nagano et al. 2019)."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import _standard_normal

from hyco.models.hyperbolic.lorentz import add, exp0, log0
from hyco.models.hyperbolic.ops import CurvatureLike, log_sinhc, promote, square_norm


class WrappedNormal(Distribution):
    """exp_loc of a normal tangent vector, carried from the origin to loc: points [..., D] by their space parts.

    A sample is loc (+) exp_0(v), v normal with mean 0 and standard deviations `scale`, which is exp_loc of v carried to
    loc by parallel transport (Nagano et al. 2019, algorithm 1). The density with respect to the hyperbolic volume is
    that of v, divided by (sinh(r) / r)^(D - 1), r = sqrt(c)|v| (algorithm 2, eq. 6). Reparametrised: `rsample` is
    differentiable in loc, scale and c.

    Args:
        loc: points [..., D]; also the Frechet mean.
        scale: standard deviations in units of distance, broadcasting with loc.
        c: c > 0 for curvature -c: a float, a 0-dim tensor or a tensor that broadcasts with the batch shape.
        validate_args: as in torch.

    Raises:
        ValueError: loc without a dimension, scale not positive, c not positive, NaN.
    """

    # torch declares properties, and sets them as here in each distribution of its own.
    arg_constraints: ClassVar = {  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support: ClassVar = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor | float, c: CurvatureLike = 1.0, validate_args: bool | None = None
    ) -> None:
        if not loc.dim():
            raise ValueError("loc is a point, a tensor of shape [..., D]; got a number")
        if not (bool((c > 0).all()) if isinstance(c, Tensor) else 0 < c < math.inf):
            raise ValueError(f"c must be positive (the curvature is -c); got {c}")
        loc = promote(loc)
        self.loc, self.scale = torch.broadcast_tensors(
            loc, torch.as_tensor(scale, dtype=loc.dtype, device=loc.device)
        )
        self.c = c
        # torch.compile switches the checks of torch.distributions off for the whole process (see findings/).
        if validate_args is not False and not bool((self.scale > 0).all()):
            raise ValueError(f"scale must be positive; got {float(self.scale.min()):g}")
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WrappedNormal":
        """The same distributions with a larger batch shape; a tensor c must broadcast with it."""
        shape = torch.Size(batch_shape) + self.event_shape
        return WrappedNormal(self.loc.expand(shape), self.scale.expand(shape), self.c, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Points of shape sample_shape + [..., D]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        v = _standard_normal(shape, self.loc.dtype, self.loc.device) * self.scale
        return add(self.loc.expand(shape), exp0(v, self.c), self.c)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the hyperbolic volume: points [..., D] -> [...]."""
        if self._validate_args:
            self._validate_sample(value)
        v = log0(add(-self.loc, value, self.c), self.c)
        normal = -(v / self.scale).square() / 2 - self.scale.log() - math.log(2 * math.pi) / 2
        c = self.c.unsqueeze(-1) if isinstance(self.c, Tensor) else self.c
        stretch = log_sinhc(c * square_norm(v)).squeeze(-1)
        return normal.sum(-1) - (self.loc.shape[-1] - 1) * stretch
