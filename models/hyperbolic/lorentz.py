"""The hyperboloid: a point is its space part x in R^D, its time part is x_t = sqrt(1/c + |x|^2), curvature is -c.

c is a float, a 0-dim tensor or a tensor that broadcasts with the batch shape x.shape[:-1] (the factors of a
product). Every function has finite gradients everywhere: at the origin, at coincident, collinear and
antipodal points, up to sqrt(c)|x| = 1e18 in float32 (radius 42). Further out, where squares are no float32, the
answer is NaN, never a number; `exp0` and `project` bring every finite vector back inside, along its ray.
Half-precision input is promoted to float32. Formulas: Nickel and Kiela 2018; cones: Ganea
et al. 2018, Desai et al. 2023 (MERU).
"""

import math

import torch
from torch import Tensor

from hyco.models.hyperbolic.chord import across, ahead, beyond_one, chord
from hyco.models.hyperbolic.ops import (
    CurvatureLike,
    asinhc,
    expand_c,
    has_direction,
    one_minus_exp,
    promote,
    safe_atan2,
    safe_norm,
    safe_sqrt,
    sinhc,
    sqrt_c,
    square_fits,
    square_norm,
    unit,
    wide,
)
from hyco.models.hyperbolic.poincare import rotate
from hyco.models.hyperbolic.transforms import recorded

PAIRS_AT_ONCE, CHARTED_AT_ONCE = 1 << 23, 1 << 12
"""Pairs, and points, of a block of distances without a graph."""

MAX_RADIUS = math.asinh(2.0**15)
"""Largest sqrt(c)|v| that `exp0` lifts; further out float32 has no digits left for distances."""


def time(x: Tensor, c: CurvatureLike) -> Tensor:
    """Time part sqrt(1/c + |x|^2): [..., D] -> [..., 1]."""
    x = promote(x)
    return (1 / expand_c(c) + square_norm(x)).sqrt()


def inner(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Lorentz inner product <x, y> = x.y - x_t y_t, at most -1/c: [..., D] x [..., D] -> [...].

    Computed as -(1 + q/2) / c, with q from `chord`.
    """
    return -(1 + chord(x, y, c).squeeze(-1) / 2) / c


def distance(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Geodesic distance (2/sqrt c) asinh(sqrt(q)/2) of paired points, q from `chord`: [..., D] x 2 -> [...]."""
    return 2 * torch.asinh(safe_sqrt(chord(x, y, c)) / 2).squeeze(-1) / sqrt_c(c)


def pairwise_inner(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Lorentz inner products of all pairs by one matrix product: [..., B, D] x [..., K, D] -> [..., B, K]; c: [...]."""
    dtype = torch.promote_types(promote(x).dtype, promote(y).dtype)
    x, y, c = wide(promote(x)), wide(promote(y)), expand_c(wide(c) if isinstance(c, Tensor) else c)
    product = torch.cat([x, time(x, c)], -1) @ torch.cat([y, -time(y, c)], -1).transpose(-1, -2)
    return product.to(dtype)


def pairwise_distance(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Geodesic distances of all pairs by one matrix product: [..., B, D] x [..., K, D] -> [..., B, K]; c: [...].

    The product runs in float64, which is cheap compared with an encoder: a float32 product is 15-230 % wrong at a
    distance of 1e-3. The absolute error of the squared chord 4 sinh^2(sqrt(c) d / 2) is at most a few times
    2.2e-16 c |x| |y|; use `distance` for pairs that are close together and far from the origin. Where no gradient is
    asked for, only the result is a matrix of all pairs.
    """
    one_space = not (isinstance(c, Tensor) and c.dim())
    graph = torch.is_grad_enabled() and any(
        isinstance(one, Tensor) and one.requires_grad for one in (x, y, c)
    )
    if one_space and x.dim() == y.dim() == 2 and not graph and not recorded():
        return _pairwise_in_blocks(x, y, c)
    dtype = torch.promote_types(promote(x).dtype, promote(y).dtype)
    wide_c = wide(c) if isinstance(c, Tensor) else c
    spread = expand_c(expand_c(wide_c))
    x, y = wide(promote(x)), wide(promote(y))
    u = beyond_one(spread * square_norm(x))
    v = beyond_one(spread * square_norm(y)).transpose(-1, -2)
    # h = u + v + u v - x.y = q / 2 on the unit hyperboloid; what follows keeps its digits in any precision.
    h = torch.addcmul(u, 1 + u, v) - (spread * x) @ y.transpose(-1, -2)
    h = h.to(dtype).clamp(min=0)
    # 2 asinh(sqrt(h / 2)), an eighth of its time. Not sqrt(h (h + 2)), which overflows float32.
    distance = torch.log1p(h + safe_sqrt(h) * (h + 2).sqrt())
    return distance / sqrt_c(spread.to(dtype) if isinstance(spread, Tensor) else spread)


def _pairwise_in_blocks(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """`pairwise_distance` of [B, D] and [K, D] without a graph: a product for each block of queries, then in place."""
    dtype = torch.promote_types(promote(x).dtype, promote(y).dtype)
    c = wide(c) if isinstance(c, Tensor) else c
    left, right = _chart(x, c, query=True), _chart(y, c, query=False).T
    out = torch.empty(len(x), len(y), dtype=dtype, device=x.device)
    rows = max(1, min(len(x), PAIRS_AT_ONCE // max(1, len(y))))
    product, factor = (torch.empty(rows, len(y), dtype=kind, device=x.device) for kind in (left.dtype, dtype))
    for queries, h in zip(left.split(rows), out.split(rows), strict=True):
        one, other = product[: len(h)], factor[: len(h)]
        h.copy_(torch.mm(queries, right, out=one)).clamp_(min=0)
        torch.sqrt(torch.add(h, 2, out=other), out=other)
        other.mul_(h.sqrt())
        h.add_(other).log1p_().div_(sqrt_c(c))
    return out


def _chart(points: Tensor, c: CurvatureLike, query: bool) -> Tensor:
    """[-c x, u, 1] of queries and [y, 1 + v, v] of keys, whose product is h of `pairwise_distance`: [N, D + 2]."""
    dim, like = points.shape[1], wide(points[:0])
    chart = like.new_empty(len(points), dim + 2)
    for rows, part in zip(chart.split(CHARTED_AT_ONCE), points.split(CHARTED_AT_ONCE), strict=True):
        space, beyond, rest = rows.split([dim, 1, 1], dim=1)
        space.copy_(part)
        u = beyond_one(c * square_norm(space))
        beyond.copy_(u if query else 1 + u)
        rest.copy_(u.new_ones(()) if query else u)
        if query:
            space.mul_(-c)
    return chart


def exp0(v: Tensor, c: CurvatureLike, max_radius: float = MAX_RADIUS) -> Tensor:
    """Lift of a tangent vector at the origin, sinh(u) v / u with u = sqrt(c)|v|: [..., D] -> [..., D].

    Beyond u = max_radius the result has the direction of v and the radius max_radius.
    """
    v = square_fits(promote(v))
    s = expand_c(c) * square_norm(v)
    inside = s.clamp(max=max_radius**2)
    return v * sinhc(inside) * (s / max_radius**2).clamp(min=1).rsqrt()


def project(x: Tensor, c: CurvatureLike) -> Tensor:
    """Pull points beyond MAX_RADIUS, sqrt(c)|x| = 2^15, back to it along their ray: [..., D] -> [..., D]."""
    x = square_fits(promote(x))
    return x * (expand_c(c) * square_norm(x) / 2.0**30).clamp(min=1).rsqrt()


def log0(x: Tensor, c: CurvatureLike) -> Tensor:
    """Tangent vector at the origin whose lift is x, asinh(u) x / u with u = sqrt(c)|x|: [..., D] -> [..., D]."""
    x = promote(x)
    return x * asinhc(expand_c(c) * square_norm(x))


def half_aperture(x: Tensor, c: CurvatureLike, k: float = 0.1) -> Tensor:
    """Half-aperture asin(2k / (sqrt(c)|x|)) of the entailment cone at x, at most pi/2: [..., D] -> [...]."""
    r = (expand_c(sqrt_c(c)) * safe_norm(promote(x))).squeeze(-1)
    edge = torch.full_like(r, 2 * k)
    return torch.atan2(edge, (r - edge).clamp(min=1e-30).sqrt() * (r + edge).clamp(min=1e-30).sqrt())


def exterior_angle(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Pi minus the angle at x of the triangle O x y, in [0, pi]: [..., D] x [..., D] -> [...].

    atan2(|y_perp|, y_r x_t - y_t |x|) with y = y_r x/|x| + y_perp on the unit hyperboloid; 0 means that y
    lies straight behind x. Coincident points give 0; at x = 0, where no angle exists, the result is pi/2.
    """
    x, y = promote(x), promote(y)
    x, y = x * expand_c(sqrt_c(c)), y * expand_c(sqrt_c(c))
    aside = across(x, y)
    return safe_atan2(safe_norm(aside), ahead(x, y, aside)).squeeze(-1)


def tangent_norm(x: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Length of a tangent vector v at x, both by their space parts: [..., D] x [..., D] -> [..., 1].

    A tangent vector is orthogonal to its point, so its time part is x.v / x_t and need not be stored.
    """
    return safe_sqrt(_tangent_square(promote(x), promote(v), c))


def _tangent_square(x: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    radial = unit(x)
    outward = (v * radial).sum(-1, keepdim=True)
    return square_norm(v - outward * radial) + outward**2 / (1 + expand_c(c) * square_norm(x))


def exp(x: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Endpoint of the geodesic from x with velocity v, cosh(u) x + sinh(u) v / u: [..., D] x 2 -> [..., D].

    v and the result are space parts; u is the length of v times sqrt(c).
    """
    x, v = promote(x), promote(v)
    s = expand_c(c) * _tangent_square(x, v, c)
    half = sinhc(s / 4)
    return x * (1 + s * half * half / 2) + v * sinhc(s)


def log(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Velocity (space part) at x of the geodesic that reaches y at time 1: [..., D] x 2 -> [..., D].

    The inverse of `exp`.
    """
    x, y = promote(x), promote(y)
    q = chord(x, y, c)
    part, half_cosh = asinhc(q / 4), (1 + q / 4).sqrt()
    return (y - x) * (part / half_cosh) - x * (part * (q / 2 / half_cosh))


def transport(x: Tensor, y: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Parallel transport of v from x to y along their geodesic, all by space parts: [..., D] x 3 -> [..., D]."""
    x, y, v, root_c = promote(x), promote(y), promote(v), expand_c(sqrt_c(c))
    x, y = x * root_c, y * root_c
    # <y, v> = y.v_perp + v_r (y_r x_t - y_t |x|) / x_t: both terms vanish as y approaches x.
    aside, outward = across(x, y), (v * unit(x)).sum(-1, keepdim=True)
    x_t, xx = time(x, 1.0), square_norm(x)
    along = (aside * v).sum(-1, keepdim=True) + outward * ahead(x, y, aside) / x_t
    plain = (y * v).sum(-1, keepdim=True) - time(y, 1.0) * (x * v).sum(-1, keepdim=True) / x_t
    along = torch.where(has_direction(xx), along, plain)
    return v + (x + y) * along / (2 + chord(x, y, 1.0) / 2)


def add(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Gyrovector sum, y boosted by x: y + x (y_t' + c x.y / (1 + x_t')), with t' = sqrt(c) t: [..., D] x 2 -> [..., D].

    The isometry that takes the origin to x; the Mobius sum of the same points on the ball (Ungar 2008).
    """
    root_c = expand_c(sqrt_c(c))
    x, y = promote(x) * root_c, promote(y) * root_c
    xy = (x * y).sum(-1, keepdim=True)
    together = y + x * (time(y, 1.0) + xy / (1 + time(x, 1.0)))
    # Where y points back towards x the sum above cancels; its parts along and across x do not.
    aside = across(x, -y)
    apart = -aside - ahead(x, -y, aside) * unit(x)
    return torch.where(xy < 0, apart, together) / root_c


def gyration(x: Tensor, y: Tensor, z: Tensor, c: CurvatureLike) -> Tensor:
    """Gyration gyr[x, y] z = -(x + y) + (x + (y + z)), a rotation of z: [..., D] x 3 -> [..., D].

    It measures by how much gyrovector addition fails to be associative. Closed form, linear in z; the same rotation as
    for the same points x, y on the ball.
    """
    root_c = expand_c(sqrt_c(c))
    x, y, z = promote(x) * root_c, promote(y) * root_c, promote(z)
    x_t, y_t = time(x, 1.0), time(y, 1.0)
    a, b = 1 + x_t, 1 + y_t
    ball_x, ball_y = x / a, y / b
    # ball_x + ball_y, written with x + y and x_t - y_t so that opposite points do not lose digits.
    later = ((x - y) * (x + y)).sum(-1, keepdim=True) / (x_t + y_t)
    total = torch.where(a > b, (x + y + ball_y * later) / a, (x + y - ball_x * later) / b)
    return rotate(ball_x, ball_y, total, 2 / a, 2 / b, z, 1.0)


def scale(t: float | Tensor, x: Tensor, c: CurvatureLike) -> Tensor:
    """Gyrovector product, the point t times as far from the origin; a tensor t broadcasts: [..., D] -> [..., D]."""
    return exp0(t * log0(x, c), c, max_radius=math.inf)


def matvec(m: Tensor, x: Tensor, c: CurvatureLike) -> Tensor:
    """Mobius matrix product exp_0(M log_0 x): [E, D] x [..., D] -> [..., E] (Ganea et al. 2018, lemma 4)."""
    return exp0(log0(x, c) @ m.transpose(-1, -2), c, max_radius=math.inf)


def geodesic(x: Tensor, y: Tensor, t: float | Tensor, c: CurvatureLike) -> Tensor:
    """Point at fraction t of the geodesic from x to y (t = 0 is x, 1 is y): [..., D] x 2 -> [..., D].

    A tensor t broadcasts. (sinh((1 - t) u) x + sinh(t u) y) / sinh(u) with u = sqrt(c) d(x, y): equal to
    exp_x(t log_x y) without its cancellation far from the origin.
    """
    x, y = promote(x), promote(y)
    q = chord(x, y, c)
    part = asinhc(q / 4)
    s = q * part * part  # in this order, so that no gradient has q as its only factor
    return _sinh_ratio(1 - t, s) * x + _sinh_ratio(t, s) * y


def _sinh_ratio(t: float | Tensor, s: Tensor) -> Tensor:
    """sinh(t u) / sinh(u) as a function of s = u^2, without overflow.

    Beyond u = 1 it is computed by exponentials of the difference.
    """
    far, near = s > 1, s.clamp(max=1)
    u = torch.where(far, s, 1.0).sqrt()
    apart = torch.exp((t - 1) * u) * one_minus_exp(2 * t * u) / one_minus_exp(2 * u)
    return torch.where(far, apart, t * sinhc(t * t * near) / sinhc(near))


def hyperplane_distance(x: Tensor, z: Tensor, offset: Tensor | None, c: CurvatureLike) -> Tensor:
    """Signed distances to K hyperplanes: x [..., D], z [K, D], offset [K] or None -> [..., K]; c a float or 0-dim.

    The plane has the direction z_k and passes at the distance offset_k from the origin (Shimizu et al. 2021,
    eq. 6, whose r is half of it). The length of z_k has no effect.
    """
    x, root_c = promote(x), sqrt_c(c)
    a = root_c * (x @ unit(promote(z)).transpose(-1, -2))
    if offset is not None:
        u = root_c * promote(offset)
        a = a * torch.cosh(u) - root_c * time(x, c) * torch.sinh(u)
    return torch.asinh(a) / root_c


def project_tangent(x: Tensor, g: Tensor, c: CurvatureLike) -> Tensor:
    """Riemannian gradient, a tangent vector at x, from the derivative g in the space chart: [..., D] x 2 -> [..., D].

    The inverse metric in this chart is I + c x x^T.
    """
    x, g = promote(x), promote(g)
    return g + expand_c(c) * x * (x * g).sum(-1, keepdim=True)
