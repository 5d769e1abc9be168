"""References of models/hyperbolic in mpmath, 50 digits, written from the definitions without any safe form."""

import math
import random

import mpmath as mp
import torch

mp.mp.dps = 50


def vec(x):
    """One tensor row as exact mpmath numbers."""
    return [mp.mpf(float(v)) for v in x]


def dot(x, y):
    return mp.fsum(a * b for a, b in zip(x, y, strict=True))


def norm(x):
    return mp.sqrt(dot(x, x))


def mul(s, x):
    return [s * a for a in x]


def plus(*vs):
    return [mp.fsum(t) for t in zip(*vs, strict=True)]


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


# ---- hyperboloid, by space parts


def time(x, c):
    return mp.sqrt(1 / c + dot(x, x))


def inner(x, y, c):
    return dot(x, y) - time(x, c) * time(y, c)


def distance(x, y, c):
    return mp.acosh(max(mp.mpf(1), -c * inner(x, y, c))) / mp.sqrt(c)


def exp0(v, c):
    u = mp.sqrt(c) * norm(v)
    return v if u == 0 else mul(mp.sinh(u) / u, v)


def log0(x, c):
    u = mp.sqrt(c) * norm(x)
    return x if u == 0 else mul(mp.asinh(u) / u, x)


def v_time(x, v, c):
    return dot(x, v) / time(x, c)


def exp(x, v, c):
    u = mp.sqrt(c * (dot(v, v) - v_time(x, v, c) ** 2))
    return x if u == 0 else plus(mul(mp.cosh(u), x), mul(mp.sinh(u) / u, v))


def log(x, y, c):
    a = -c * inner(x, y, c)
    return mul(mp.acosh(a) / mp.sqrt(a * a - 1) if a > 1 else 1, minus(y, mul(a, x)))


def transport(x, y, v, c):
    yv = dot(y, v) - time(y, c) * v_time(x, v, c)
    return plus(v, mul(yv / (1 / c - inner(x, y, c)), plus(x, y)))


def add(x, y, c):
    s = mp.sqrt(c)
    return plus(y, mul(s * time(y, c) + c * dot(x, y) / (1 + s * time(x, c)), x))


def half_aperture(x, c):
    r = 2 * mp.mpf(0.1) / (mp.sqrt(c) * norm(x))
    return mp.pi / 2 if r >= 1 else mp.asin(r)


def exterior_angle(x, y, c):
    """By the law of cosines in the triangle O x y, as MERU states it."""
    xy = c * inner(x, y, c)
    top = time(y, c) + time(x, c) * xy
    return mp.acos(max(-1, min(1, top / (norm(x) * mp.sqrt(xy * xy - 1)))))


def hyperplane_distance(x, z, offset, c):
    """asinh of the Lorentz inner product with the unit normal (cosh u z^, sinh u)."""
    s, n = mp.sqrt(c), norm(z)
    a = dot(x, z) / n * mp.cosh(s * offset) - time(x, c) * mp.sinh(s * offset)
    return mp.asinh(s * a) / s


def tangent_norm(x, v, c):
    return mp.sqrt(dot(v, v) - v_time(x, v, c) ** 2)


def project_tangent(x, g, c):
    return plus(g, mul(c * dot(x, g), x))


def gyration(x, y, z, c):
    return add(mul(-1, add(x, y, c)), add(x, add(y, z, c), c), c)


def quarter_scale(x, c):
    return exp0(mul(mp.mpf("0.25"), log0(x, c)), c)


def shear(x):
    """The matrix [[1, 0, ...], [1, 1, 0, ...], ..., [0, ..., 1, 1]] times x."""
    return plus(x, [mp.mpf(0), *x[:-1]])


def sheared(x, c):
    return exp0(shear(log0(x, c)), c)


def quarter_geodesic(x, y, c):
    return exp(x, mul(mp.mpf("0.25"), log(x, y, c)), c)


def midpoint(x, y, c):
    """Of two points with the weights 1 and 2."""
    space, at = plus(x, y, y), time(x, c) + 2 * time(y, c)
    return mul(1 / mp.sqrt(c * (at * at - dot(space, space))), space)


# ---- Poincare ball


def ball(x, c):
    return mul(1 / (1 + mp.sqrt(c) * time(x, c)), x)


def conformal(x, c):
    return 2 / (1 - c * dot(x, x))


def mobius_add(x, y, c):
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    top = plus(mul(1 + 2 * c * xy + c * yy, x), mul(1 - c * xx, y))
    return mul(1 / (1 + 2 * c * xy + c * c * xx * yy), top)


def mobius_gyration(x, y, z, c):
    total = mobius_add(x, y, c)
    return mobius_add(mul(-1, total), mobius_add(x, mobius_add(y, z, c), c), c)


def ball_distance(x, y, c):
    return 2 / mp.sqrt(c) * mp.atanh(mp.sqrt(c) * norm(mobius_add(mul(-1, x), y, c)))


def ball_exp0(v, c):
    u = mp.sqrt(c) * norm(v)
    return v if u == 0 else mul(mp.tanh(u) / u, v)


def ball_log0(x, c):
    u = mp.sqrt(c) * norm(x)
    return x if u == 0 else mul(mp.atanh(u) / u, x)


def ball_exp(x, v, c):
    return mobius_add(x, ball_exp0(mul(conformal(x, c) / 2, v), c), c)


def ball_log(x, y, c):
    return mul(2 / conformal(x, c), ball_log0(mobius_add(mul(-1, x), y, c), c))


def mobius_gyration_of_vector(x, y, v, c):
    """Gyration is linear in z: apply it to a point, scaled so that it lies inside the ball."""
    small = mp.mpf(10) ** -25 / (1 + norm(v))
    return mul(1 / small, mobius_gyration(x, y, mul(small, v), c))


def ball_transport(x, y, v, c):
    return mul(conformal(x, c) / conformal(y, c), mobius_gyration_of_vector(y, mul(-1, x), v, c))


def ball_inner(x, u, v, c):
    return conformal(x, c) ** 2 * dot(u, v)


def ball_project_tangent(x, g, c):
    return mul(1 / conformal(x, c) ** 2, g)


def ball_quarter_scale(x, c):
    return ball_exp0(mul(mp.mpf("0.25"), ball_log0(x, c)), c)


def ball_sheared(x, c):
    return ball_exp0(shear(ball_log0(x, c)), c)


def ball_quarter_geodesic(x, y, c):
    return ball_exp(x, mul(mp.mpf("0.25"), ball_log(x, y, c)), c)


def ball_midpoint(x, y, c):
    return ball(midpoint(to_lorentz(x, c), to_lorentz(y, c), c), c)


def tensor(values, dtype=torch.float64):
    """Back to a tensor."""
    return torch.tensor(
        [float(v) for v in values] if isinstance(values, list) else float(values), dtype=dtype
    )


def flat(value):
    return value if isinstance(value, list) else [value]


def excess(got, function, tensors, c, eps, digits, size=0.0):
    """Error of `got` against function(*tensors, c) in units of what is allowed.

    Allowed are `digits` of the size of the result (or of `size`, if larger), or ten times what it moves (the
    largest of four random trials) when every input vector moves by eps of its length, which is what rounding
    the inputs does. Infinite where `got` is not finite.
    """
    if not got.isfinite().all():
        return math.inf
    vectors, draw = [vec(t) for t in tensors], random.Random(7)
    want, moved = flat(function(*vectors, c)), mp.mpf(0)
    for _ in range(4):
        near = [plus(v, [eps * norm(v) * draw.uniform(-1, 1) for _ in v]) for v in vectors]
        moved = max(moved, norm(minus(flat(function(*near, c)), want)))
    off = norm(minus(vec(got.reshape(-1)), want))
    return float(off / (digits * max(size, norm(want)) + 10 * moved)) if off else 0.0


def difference(x, y, c):
    return mobius_add(mul(-1, x), y, c)


def to_lorentz(x, c):
    return mul(conformal(x, c), x)


def quarter_plane_distance(x, z, c):
    return hyperplane_distance(x, z, mp.mpf("0.25"), c)


def ball_quarter_plane_distance(x, z, c):
    return quarter_plane_distance(to_lorentz(x, c), z, c)


# ---- Klein ball


def klein(x, c):
    return mul(1 / (mp.sqrt(c) * time(x, c)), x)


def klein_to_lorentz(x, c):
    return mul(1 / mp.sqrt(1 - c * dot(x, x)), x)


def klein_to_ball(x, c):
    return ball(klein_to_lorentz(x, c), c)


def ball_to_klein(x, c):
    return klein(to_lorentz(x, c), c)


def klein_midpoint(x, y, c):
    return klein(midpoint(klein_to_lorentz(x, c), klein_to_lorentz(y, c), c), c)
