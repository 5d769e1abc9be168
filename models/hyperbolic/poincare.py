"""The Poincare ball: points x in R^D with c|x|^2 < 1, curvature -c, conformal factor lambda_x = 2 / (1 - c|x|^2).

c as in `lorentz`. Gradients are finite at the origin and at coincident points. Near the boundary the coordinates
themselves run out of digits (a float32 point at distance 15 from the origin is 1 - |x| = 6e-7 from the sphere):
compute on the hyperboloid and convert results. Formulas: Ungar 2008, Ganea et al. 2018.

A point on or outside the boundary (c|x|^2 >= 1 as rounded) gives NaN in every function but `project`, which pulls
it inside; so do the maps of `isometry` and the midpoints of `mean` on both balls. `add`, `difference`, `exp`, `exp0`,
`geodesic`, `scale` and `matvec` return points within the margin of `project`.
"""

import math

import torch
from torch import Tensor

from hyco.models.hyperbolic.ops import (
    CurvatureLike,
    asinhc,
    atanhc,
    ball_square,
    expand_c,
    promote,
    safe_sqrt,
    sqrt_c,
    square_fits,
    square_norm,
    tanhc,
    unit,
)


def _inside(x: Tensor, c: CurvatureLike) -> Tensor:
    return 1 - ball_square(x, c)


def conformal(x: Tensor, c: CurvatureLike) -> Tensor:
    """Conformal factor 2 / (1 - c|x|^2): [..., D] -> [..., 1]."""
    return 2 / _inside(promote(x), c)


def project(x: Tensor, c: CurvatureLike, margin: float | None = None) -> Tensor:
    """Pull points outside the ball back to sqrt(c)|x| = 1 - margin: [..., D] -> [..., D].

    The default margin is 1e-6 in float32 and 1e-14 in float64.
    """
    x = square_fits(promote(x))
    margin = margin if margin is not None else _margin(x)
    s = expand_c(c) * square_norm(x)
    return x * (s / (1 - margin) ** 2).clamp(min=1).rsqrt()


def _margin(x: Tensor) -> float:
    return 1e-14 if x.dtype == torch.float64 else 1e-6


def inner(x: Tensor, u: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Riemannian inner product lambda_x^2 u.v of tangent vectors at x: [..., D] x 3 -> [...]."""
    return (conformal(x, c) ** 2).squeeze(-1) * (promote(u) * promote(v)).sum(-1)


def distance(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Geodesic distance (2/sqrt c) asinh(sqrt(c)|x-y| / sqrt((1-c|x|^2)(1-c|y|^2))) of pairs: [..., D] x 2 -> [...]."""
    return 2 * torch.asinh(safe_sqrt(_half_sinh(x, y, c))).squeeze(-1) / sqrt_c(c)


def _half_sinh(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """sinh^2 of half the distance on the unit ball, c|x-y|^2 / ((1-c|x|^2)(1-c|y|^2)): [..., D] x 2 -> [..., 1]."""
    x, y = promote(x), promote(y)
    return expand_c(c) * square_norm(x - y) / (_inside(x, c) * _inside(y, c))


def pairwise_distance(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Geodesic distances of all pairs: [..., B, D] x [..., K, D] -> [..., B, K]; c: [...]."""
    wide = expand_c(c)
    return distance(x.unsqueeze(-2), y.unsqueeze(-3), expand_c(wide) if isinstance(wide, Tensor) else wide)


def add(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Mobius sum of x and y, the image of y under the translation that takes 0 to x: [..., D] x 2 -> [..., D].

    Regrouped by x + y, so that for opposite points only their sum remains and the denominator is always positive.
    """
    x, y, k = promote(x), promote(y), expand_c(c)
    total = x + y
    inside, square = _inside(x, c), k * square_norm(total)
    both = inside * _inside(y, c)
    bottom = both + square
    # c|x (+) y|^2 = 1 - both / bottom: near the boundary, where rounding could end outside, the sum stops.
    shrink = ((1 - _margin(total)) * (1 - both / bottom).clamp(min=0.5).rsqrt()).clamp(max=1)
    return (inside * total + square * x) * (shrink / bottom)


def difference(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """(-x) + y: [..., D] x 2 -> [..., D]."""
    return add(-promote(x), y, c)


def exp0(v: Tensor, c: CurvatureLike, max_radius: float | None = None) -> Tensor:
    """Exponential map at the origin, tanh(u) v / u with u = sqrt(c)|v|: [..., D] -> [..., D]. d(0, exp0(v)) = 2|v|.

    Beyond u = max_radius (default: the margin of `project`, 7.25 in float32 and 16.5 in float64) the result has the
    direction of v and the radius max_radius: further out tanh rounds to 1, a point on the boundary, at an infinite
    distance from all others.
    """
    v = square_fits(promote(v))
    s = expand_c(c) * square_norm(v)
    most = (math.atanh(1 - _margin(v)) if max_radius is None else max_radius) ** 2
    return v * tanhc(s.clamp(max=most)) * (s / most).clamp(min=1).rsqrt()


def log0(x: Tensor, c: CurvatureLike) -> Tensor:
    """Inverse of `exp0`, atanh(u) x / u with u = sqrt(c)|x|: [..., D] -> [..., D]."""
    x = promote(x)
    return x * atanhc(ball_square(x, c))


def exp(x: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Endpoint of the geodesic from x with velocity v: [..., D] x 2 -> [..., D]."""
    return add(x, exp0(v / _inside(promote(x), c), c), c)


def log(x: Tensor, y: Tensor, c: CurvatureLike) -> Tensor:
    """Velocity at x of the geodesic that reaches y at time 1: [..., D] x 2 -> [..., D]."""
    s = _half_sinh(x, y, c)
    return difference(x, y, c) * asinhc(s) * (1 + s).sqrt() * _inside(promote(x), c)


def gyration(x: Tensor, y: Tensor, z: Tensor, c: CurvatureLike) -> Tensor:
    """Gyration gyr[x, y] z, a rotation of z, in closed form: [..., D] x 3 -> [..., D].

    z is a point or a tangent vector. Regrouped by x + y as `add` is: exact at y = -x, with a denominator that is always
    positive.
    """
    x, y, z = promote(x), promote(y), promote(z)
    return rotate(x, y, x + y, _inside(x, c), _inside(y, c), z, expand_c(c))


def rotate(
    x: Tensor, y: Tensor, total: Tensor, inside_x: Tensor, inside_y: Tensor, z: Tensor, k: CurvatureLike
) -> Tensor:
    """Gyration gyr[x, y] z from total = x + y, inside_x = 1 - k|x|^2 and inside_y = 1 - k|y|^2.

    The hyperboloid knows the three exactly.
    """
    square = k * square_norm(total)
    along, yz = (total * z).sum(-1, keepdim=True), (y * z).sum(-1, keepdim=True)
    turn = (along * inside_y + yz * square) * x - (along - yz * inside_x) * total
    return z + 2 * k * turn / (inside_x * inside_y + square)


def transport(x: Tensor, y: Tensor, v: Tensor, c: CurvatureLike) -> Tensor:
    """Parallel transport of v from x to y, gyr[y, -x] v lambda_x / lambda_y: [..., D] x 3 -> [..., D]."""
    return gyration(y, -promote(x), v, c) * _inside(promote(y), c) / _inside(promote(x), c)


def scale(t: float | Tensor, x: Tensor, c: CurvatureLike) -> Tensor:
    """Mobius scalar product: the point t times as far from the origin; a tensor t broadcasts: [..., D] -> [..., D]."""
    return exp0(t * log0(x, c), c)


def matvec(m: Tensor, x: Tensor, c: CurvatureLike) -> Tensor:
    """Mobius matrix product exp_0(M log_0 x): [E, D] x [..., D] -> [..., E] (Ganea et al. 2018, lemma 4)."""
    return exp0(log0(x, c) @ m.transpose(-1, -2), c)


def geodesic(x: Tensor, y: Tensor, t: float | Tensor, c: CurvatureLike) -> Tensor:
    """Point at fraction t of the geodesic from x to y; a tensor t broadcasts: [..., D] x 2 -> [..., D]."""
    return exp(x, t * log(x, y, c), c)


def hyperplane_distance(x: Tensor, z: Tensor, offset: Tensor | None, c: CurvatureLike) -> Tensor:
    """Signed distances to K hyperplanes: x [..., D], z [K, D], offset [K] or None -> [..., K]; c a float or 0-dim.

    asinh(sqrt(c) lambda_x x.z^ cosh(u) - (lambda_x - 1) sinh(u)) / sqrt(c) with u = sqrt(c) offset; the
    offset is the distance of the plane from the origin (Shimizu et al. 2021, eq. 6, whose r is half of it).
    """
    x, root_c = promote(x), sqrt_c(c)
    factor = conformal(x, c)
    a = root_c * factor * (x @ unit(promote(z)).transpose(-1, -2))
    if offset is not None:
        u = root_c * promote(offset)
        a = a * torch.cosh(u) - (factor - 1) * torch.sinh(u)
    return torch.asinh(a) / root_c


def project_tangent(x: Tensor, g: Tensor, c: CurvatureLike) -> Tensor:
    """Riemannian gradient g / lambda_x^2 from the Euclidean derivative g: [..., D] x 2 -> [..., D]."""
    return promote(g) * (_inside(promote(x), c) / 2) ** 2
