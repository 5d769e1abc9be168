"""The hyperboloid: a point is its space part x in R^D, its time part is x_t = sqrt(1/c + |x|^2), curvature
is -c.

c is a float, a 0-dim tensor or a tensor that broadcasts with the batch shape x.shape[:-1] (the factors of a
product). Every function has finite gradients everywhere: at the origin, at coincident, collinear and
antipodal points. Half-precision input is promoted to float32. Formulas: Nickel and Kiela 2018; cones: Ganea
et al. 2018, Desai et al. 2023 (MERU).
"""

import math

import torch
from torch import Tensor

from models.hyperbolic.ops import (
    Curvature,
    asinhc,
    keep,
    promote,
    root,
    safe_atan2,
    safe_norm,
    safe_sqrt,
    sinhc,
    square_norm,
    unit,
)

MAX_RADIUS = math.asinh(2.0**15)
"""Largest sqrt(c)|v| that `exp0` lifts; further out float32 has no digits left for distances."""


def time(x: Tensor, c: Curvature) -> Tensor:
    """Time part sqrt(1/c + |x|^2): [..., D] -> [..., 1]."""
    x = promote(x)
    return (1 / keep(c) + square_norm(x)).sqrt()


def inner(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Lorentz inner product <x, y> = x.y - x_t y_t, at most -1/c: [..., D] x [..., D] -> [...]."""
    x, y = promote(x), promote(y)
    return (x * y).sum(-1) - (time(x, c) * time(y, c)).squeeze(-1)


def distance(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Geodesic distance of paired points: [..., D] x [..., D] -> [...].

    d = (2/sqrt c) asinh(sqrt(q)/2) with q = |x-y|^2 - (x_t-y_t)^2 (unit hyperboloid). Written without
    cancellation: for x.y > 0, q = 2 (|x-y|^2 + |x ^ y|^2) / (1 + x_t y_t + x.y), which follows from
    Lagrange's identity; otherwise q = 2 ((|x|^2 + |y|^2 + |x|^2 |y|^2) / (1 + x_t y_t) - x.y). Both are sums
    of terms of one sign.
    """
    x, y, root_c = promote(x), promote(y), root(c)
    x, y = x * keep(root_c), y * keep(root_c)
    xx, yy, xy = square_norm(x), square_norm(y), (x * y).sum(-1, keepdim=True)
    times = ((1 + xx) * (1 + yy)).sqrt()
    gap = x - y
    radial = unit(x)
    across = gap - (gap * radial).sum(-1, keepdim=True) * radial
    same_side = xy > 0
    together = (square_norm(gap) + xx * square_norm(across)) / (1 + times + torch.where(same_side, xy, 0.0))
    opposite = (xx + yy + xx * yy) / (1 + times) - xy
    q = 2 * torch.where(same_side, together, opposite)
    return 2 * torch.asinh(safe_sqrt(q) / 2).squeeze(-1) / root_c


def _wide(x: Tensor) -> Tensor:
    """Float64 where the device has it: near pairs lose all digits in a float32 matrix product, and TF32 is
    kept out."""
    return x if x.device.type == "mps" else x.double()


def pairwise_inner(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Lorentz inner products of all pairs by one matrix product: [..., B, D] x [..., K, D] -> [..., B, K];
    c: [...]."""
    dtype = torch.promote_types(promote(x).dtype, promote(y).dtype)
    return _gram(_wide(promote(x)), _wide(promote(y)), _wide(c) if isinstance(c, Tensor) else c).to(dtype)


def _gram(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    x_t, y_t = time(x, keep(c)), time(y, keep(c))
    return torch.cat([x, x_t], -1) @ torch.cat([y, -y_t], -1).transpose(-1, -2)


def pairwise_distance(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Geodesic distances of all pairs by one matrix product: [..., B, D] x [..., K, D] -> [..., B, K]; c:
    [...].

    The product runs in float64 (negligible beside an encoder), so float32 points give distances right to
    about 1e-7 near the origin, where a float32 product is 15-230 % wrong at a distance of 1e-3. The error of
    cosh(d) is at most a few times 2.2e-16 x_t y_t c; use `distance` on pairs that are close together and far
    out (sqrt(c) d < 1e-4, r > 8).
    """
    dtype = torch.promote_types(promote(x).dtype, promote(y).dtype)
    wide_c = _wide(c) if isinstance(c, Tensor) else c
    root_c = root(wide_c)
    scale = keep(keep(root_c))
    q = -2 * (_gram(_wide(promote(x)) * scale, _wide(promote(y)) * scale, 1.0) + 1)
    return (2 * torch.asinh(safe_sqrt(q) / 2) / scale).to(dtype)


def exp0(v: Tensor, c: Curvature, max_radius: float = MAX_RADIUS) -> Tensor:
    """Lift of a tangent vector at the origin, sinh(u) v / u with u = sqrt(c)|v|: [..., D] -> [..., D].

    Beyond u = max_radius the direction is kept and the radius stays at max_radius.
    """
    v = promote(v)
    s = keep(c) * square_norm(v)
    inside = s.clamp(max=max_radius**2)
    return v * sinhc(inside) * (s / max_radius**2).clamp(min=1).rsqrt()


def log0(x: Tensor, c: Curvature) -> Tensor:
    """Tangent vector at the origin whose lift is x, asinh(u) x / u with u = sqrt(c)|x|: [..., D] -> [...,
    D]."""
    x = promote(x)
    return x * asinhc(keep(c) * square_norm(x))


def half_aperture(x: Tensor, c: Curvature, k: float = 0.1) -> Tensor:
    """Half-aperture asin(2k / (sqrt(c)|x|)) of the entailment cone at x, pi/2 where it would exceed it:
    [..., D] -> [...]."""
    r = (keep(root(c)) * safe_norm(promote(x))).squeeze(-1)
    edge = torch.full_like(r, 2 * k)
    return torch.atan2(edge, ((r - edge) * (r + edge)).clamp(min=1e-30).sqrt())


def exterior_angle(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Pi minus the angle at x of the triangle O x y, in [0, pi]: [..., D] x [..., D] -> [...].

    atan2(|y_perp|, y_r x_t - y_t |x|) with y = y_r x/|x| + y_perp on the unit hyperboloid; 0 means that y
    lies straight behind x. Coincident points give 0; at x = 0, where no angle exists, the answer is pi/2.
    """
    x, y = promote(x), promote(y)
    x, y = x * keep(root(c)), y * keep(root(c))
    radial, n = unit(x), safe_norm(x)
    gap = y - x
    step = (gap * radial).sum(-1, keepdim=True)
    across = safe_norm(gap - step * radial)
    x_t, y_t, y_r = time(x, 1.0), time(y, 1.0), n + step
    # y_r x_t - y_t |x| for y_r > 0, times its conjugate: the difference of two large numbers is taken before
    # squaring.
    ahead = y_r > 0
    bottom = torch.where(ahead, y_r * x_t + y_t * n, 1.0)
    forward = torch.where(ahead, (step * (y_r + n) - (across * n) ** 2) / bottom, y_r * x_t - y_t * n)
    return safe_atan2(across, forward).squeeze(-1)
