"""The arithmetic of batch normalisation by autograd: the reference implementation of `batch_norm_fused`.

With the mean m and the learned mean b on the unit hyperboloid, a point x goes to w = exp_b(g P log_m(x)). Log,
parallel transport P and exp all give sums of x, m and b, whose factors depend only on the two numbers cosh d(m, x)
and cosh d(b, x): with k = sinh(g d(m, x)) / sinh d(m, x) and q = cosh d(m, b),

    w = k x + k (z - cosh d(m, x)) m + (k z + cosh(g d(m, x))) b,   z = (q cosh d(m, x) - cosh d(b, x)) / (1 + q).

Points that lie close together lose all digits of float32 in these sums. So coordinates are taken about a place p
among them (any will do; the result does not depend on it, and no gradient runs through it). Differences of tangent
vectors from p's are exact; they are split into the part along p's direction and the part across it. The part across
is the only tensor of the size of the points. The rest is a few numbers per point, computed in float64, which is
expensive only for tensors of the size of the points. Boosted by -p, points have the coordinates y along p (y_r), the
same part across, and y_t; the midpoint is taken there.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate, normalise, radial_part, to_space
from hyco.models.hyperbolic.ops import asinhc, cosh, sinh, sinhc, square_norm, wide

TINY = 1e-30
"""Smallest squared angle: sinh of its root is the root itself."""

LOST = 5e-7
"""Relative error of the squared angles from the mean, as estimated, beyond which `batchnorm_near` is used."""


class Statistics(NamedTuple):
    """Mean [C] and spread (0-dim), the mean squared angle from the mean.

    The mean is a space part on the unit hyperboloid, in the precision that `wide` gives it.
    """

    mean: Tensor
    spread: Tensor
    counts: Tensor | None = (
        None  # numbers of points and of batch entries of all processes, where they were summed
    )


class Place(NamedTuple):
    """Origin of the coordinates: a tangent vector, and its point on the unit hyperboloid."""

    at: Tensor  # the tangent vector [C]
    way: Tensor  # its direction [C], wide; 0 where it has none
    length: Tensor  # its length, 0-dim like the rest, and wide
    time: Tensor  # time part of its point
    space: Tensor  # length of its point's space part


def batch_norm(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    given: Statistics | None = None,
    together: bool = False,
    max_angle: float = MAX_ANGLE,
) -> tuple[Tensor, Statistics]:
    """Normalise tangent vectors [B, C, N], one point per (b, n); also returns the statistics that were used.

    Args:
        x: tangent vectors at the origin.
        bias: the mean of the result, [C], a tangent vector too.
        wanted: the mean squared angle of the result (0-dim).
        slack: added to the mean squared angle of the points before it is divided by (`eps` of the layer).
        rate: angle per unit of tangent length.
        given: statistics to use instead of the points' own.
        together: take the points' own statistics over all processes of torch.distributed.
        max_angle: points beyond this angle count as the point at it on their ray.
    """
    p, counts = place(x, rate, given, together, max_angle), None
    rows = p.way.to(x.dtype).expand(x.shape[0], 1, -1)
    d = x - p.at[:, None]
    d_r = torch.bmm(rows, d)
    d = torch.baddbmm(d, rows.transpose(1, 2), d_r, alpha=-1)
    # Radial quantities as smooth functions of squares, so that second derivatives exist at the origin too.
    d_r, d2 = wide(d_r), wide(square_norm(d, 1))
    along = d_r + p.length
    s = (along * along + d2) * (rate * rate)
    radial = radial_part(s, max_angle)
    f, t = rate * radial, (1 + s * radial * radial).sqrt()
    y_r = f * along * p.time - t * p.space
    y_t = (1 + f * f * d2 + y_r * y_r).sqrt()
    if given:
        mean = boosted(wide(given.mean), p)
    else:
        sums, counts = sum_points(d, f, y_r, y_t, p, together)
        mean = normalise(sums[:-2], sums[-2], sums[-1])
    ends = Ends.of(mean, to_space(wide(bias), rate), p)
    across = torch.bmm(ends.across.to(x.dtype).expand(x.shape[0], -1, -1), d) * f
    from_mean = y_t * ends.mean_t - across[:, :1] - y_r * ends.mean_r
    from_bias = t * ends.bias_t - across[:, 1:] - f * along * ends.bias_r
    # sinh^2(angle / 2) gives the squared angle without acosh, which has no slope at 1.
    half2 = (from_mean / 2 - 0.5).clamp(min=0)
    angle2 = 4 * half2 * asinhc(half2).square()
    spread = wide(given.spread) if given else average(angle2, together)
    gain2 = wanted / (spread + slack)
    wanted2 = gain2 * angle2
    out2 = wanted2.clamp(max=MAX_ANGLE**2)
    # Where the cap holds, k is the quotient of sinh(MAX_ANGLE) and sinh(angle).
    k = (gain2 / (wanted2 / MAX_ANGLE**2).clamp(min=1)).sqrt() * sinhc(out2) / sinhc(angle2)
    z = (from_mean * ends.between - from_bias) / (1 + ends.between)
    of_mean, of_bias = k * (z - from_mean), k * z + (1 + out2 * sinhc(out2).square()).sqrt()
    of_way = k * f * along + of_mean * ends.whole_r + of_bias * ends.bias_r
    # The length of w from its time part: no further pass over the coordinates.
    w_t = k * t + of_mean * ends.whole_t + of_bias * ends.bias_t
    shrink = asinhc((w_t * w_t - 1).clamp(min=0)) / rate
    factors = (shrink * torch.cat([of_way, of_mean, of_bias], 1)).to(x.dtype)
    vectors = torch.cat([p.way[None], ends.across]).to(x.dtype).expand(x.shape[0], -1, -1)
    out = torch.baddbmm(d * (shrink * k * f).to(x.dtype), vectors.transpose(1, 2), factors)
    return out, Statistics(ends.whole, spread, counts)


@torch.no_grad()
def place(x: Tensor, rate: Rate, given: Statistics | None, together: bool, max_angle: float) -> Place:
    """The mean of the tangent vectors, or the given mean's, drawn back to max_angle."""
    if given:
        mean = wide(given.mean)
        at = (mean * (asinhc(mean.dot(mean)) / rate)).to(x.dtype)
    else:
        at = x.sum((0, 2)) / max(1, x[:, 0].numel())  # one process may have no points
        at = _summed(at) / dist.get_world_size() if together else at
    at = at * (max_angle / (torch.linalg.vector_norm(at) * rate).clamp(min=max_angle))
    length = torch.linalg.vector_norm(wide(at))
    angle = length * rate
    return Place(at, wide(at) / length.clamp(min=1e-30), length, cosh(angle), sinh(angle))


def boosted(x: Tensor, p: Place) -> Tensor:
    """Space part [C] of a point as seen from p."""
    return x + p.way * (p.space * (p.way.dot(x) * p.space / (1 + p.time) - (1 + x.dot(x)).sqrt()))


class Ends(NamedTuple):
    """The mean and the learned mean as seen from p: along p's direction, time parts, and across that direction.

    `whole` is the mean itself, not seen from p.
    """

    mean_r: Tensor
    mean_t: Tensor
    whole: Tensor  # [C]
    whole_r: Tensor
    whole_t: Tensor
    bias_r: Tensor
    bias_t: Tensor
    between: Tensor  # cosh of the distance from mean to learned mean
    across: Tensor  # [2, C]

    @classmethod
    def of(cls, mean: Tensor, bias: Tensor, p: Place) -> "Ends":
        """From the mean as seen from p and the learned mean, space parts [C]."""
        pair = torch.stack([mean, bias])
        mean_r, bias_r = (pair @ p.way).unbind()
        mean_t, bias_t = (1 + pair.square().sum(1)).sqrt().unbind()
        across = torch.addcmul(pair, torch.stack([mean_r, bias_r])[:, None], p.way, value=-1)
        whole_r, whole_t = mean_r * p.time + mean_t * p.space, mean_t * p.time + mean_r * p.space
        between = whole_t * bias_t - whole_r * bias_r - across[0].dot(across[1])
        whole = across[0] + whole_r * p.way
        return cls(mean_r, mean_t, whole, whole_r, whole_t, bias_r, bias_t, between, across)


def sum_points(
    d: Tensor, f: Tensor, y_r: Tensor, y_t: Tensor, p: Place, together: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of the space parts seen from p and of the time parts, and the number of points: [C + 2].

    With `together` by one all-reduce, which also gives `Statistics.counts`; else these are None.
    """
    across = wide(torch.bmm(d, f.to(d.dtype).transpose(1, 2)).sum((0, 2)))
    return summed_points([across + p.way * y_r.sum(), y_t.sum().view(1)], y_t, together)


def summed_points(sums: list[Tensor], point: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
    """Sums and the number of points, the entries of `point` [B, 1, N], and the counts: see `sum_points`."""
    if not together:
        return torch.cat([*sums, sums[0].new_full((1,), point.numel())]), None
    total = all_reduce(torch.cat([*sums, sums[0].new_tensor([point.numel(), len(point)])]))
    return total[:-1], total[-2:].detach()


def average(x: Tensor, together: bool) -> Tensor:
    """Mean over the points of one number per point, 0-dim."""
    if not together:
        return x.mean()
    sums = all_reduce(torch.stack([x.sum(), x.new_full((), x.numel())]))
    return sums[0] / sums[1]


def all_reduce(x: Tensor) -> Tensor:
    """Sum over processes, with its gradient."""
    return _AllReduce.apply(x)


class _AllReduce(torch.autograd.Function):
    # torch.distributed.nn.functional has one too; it is deprecated.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
