"""The arithmetic of batch normalisation, by autograd; `recentre_lean` is its twin with a hand-written backward.

With the mean m and the learned mean b on the unit hyperboloid, a point x goes to w = exp_b(g P log_m(x)). Log,
parallel transport P and exp all give sums of x, m and b, whose factors depend on the two numbers cosh d(m, x) and
cosh d(b, x) alone: with k = sinh(g d(m, x)) / sinh d(m, x) and q = cosh d(m, b),

    w = k x + k (z - cosh d(m, x)) m + (k z + cosh(g d(m, x))) b,   z = (q cosh d(m, x) - cosh d(b, x)) / (1 + q).

The cost is two dot products and one combination a point; all else happens once a point, not once a coordinate.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from models.hyperbolic.nn.functional import MAX_ANGLE, Rate, cosh_sinhc, normalise, to_space
from models.hyperbolic.ops import asinhc, sinhc


class Statistics(NamedTuple):
    """Mean [C] (space part on the unit hyperboloid) and spread (0-dim), the mean squared angle from it."""

    mean: Tensor
    spread: Tensor


def recentre(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    given: Statistics | None = None,
    together: bool = False,
) -> tuple[Tensor, Statistics]:
    """Normalise tangent vectors [B, C, N], one point per (b, n); also returns the statistics that were used.

    Args:
        x: tangent vectors at the origin.
        bias: the mean to give them, [C], a tangent vector too.
        wanted: the mean squared angle to give them (0-dim); slack is added to the one they have.
        rate: angle per unit of tangent length.
        given: statistics to use instead of the points' own.
        together: the points' own statistics are those of all processes of torch.distributed.
    """
    t, f = cosh_sinhc(x, rate, 1)
    mean = given.mean if given else _mean(x, t, f, together)
    bias = to_space(bias, rate)
    pair = torch.stack([mean, bias])
    pair_t = (1 + pair.square().sum(1, keepdim=True)).sqrt()
    many = pair.expand(x.shape[0], -1, -1)
    cosh = t * pair_t - f * torch.bmm(many, x)
    from_mean, from_bias = cosh.split(1, 1)
    # sinh^2(angle / 2) gives the squared angle without acosh, which has no slope at 1.
    half2 = (from_mean / 2 - 0.5).clamp(min=0)
    angle2 = 4 * half2 * asinhc(half2).square()
    spread = given.spread if given else average(angle2, together)
    gain2 = wanted / (spread + slack)
    wanted2 = gain2 * angle2
    out2 = wanted2.clamp(max=MAX_ANGLE**2)
    # Where the cap holds, k is the quotient of sinh(MAX_ANGLE) and sinh(angle).
    k = (gain2 / (wanted2 / MAX_ANGLE**2).clamp(min=1)).sqrt() * sinhc(out2) / sinhc(angle2)
    between = pair_t[0] * pair_t[1] - (mean * bias).sum()
    z = (from_mean * between - from_bias) / (1 + between)
    factors = torch.cat([k * (z - from_mean), k * z + (1 + out2 * sinhc(out2).square()).sqrt()], 1)
    # The length of w from its time part: no further pass over the coordinates.
    w_t = k * t + (factors * pair_t).sum(1, keepdim=True)
    shrink = asinhc((w_t * w_t - 1).clamp(min=0)) / rate
    out = torch.baddbmm(x * (shrink * k * f), many.transpose(1, 2), shrink * factors)
    return out, Statistics(mean, spread)


def _mean(x: Tensor, t: Tensor, f: Tensor, together: bool) -> Tensor:
    sums = sum_points(x, t, f, together)
    return normalise(sums[:-2], sums[-2], sums[-1])


def sum_points(x: Tensor, t: Tensor, f: Tensor, together: bool) -> Tensor:
    """[C + 2]: sum of the space parts f x, of the time parts t, and their number; one exchange between
    processes."""
    count = t.new_full((1,), t.numel())
    sums = torch.cat([torch.bmm(x, f.transpose(1, 2)).sum((0, 2)), t.sum().view(1), count])
    return all_reduce(sums) if together else sums


def average(x: Tensor, together: bool) -> Tensor:
    """Mean of a number a point, 0-dim."""
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
