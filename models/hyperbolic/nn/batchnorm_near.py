"""The arithmetic of `batch_norm`, with a hand-written backward pass, for points that lie close together.

Activation memory: x and four numbers per point. Each tensor of the size of x is read only a few times.

Values per point are computed again in the backward pass. Work per point costs as much as work per coordinate. So
operations are few, in place where possible, and free of torch.where, which CPUs process one element at a time.
Values per batch (the means) are left to autograd.

Written with angles u rather than their squares, whose roots autograd could not differentiate at zero. Every
derivative that vanishes with an angle u has the factor (u coth u - 1) / u^2: the difference has an error of the
rounding unit, and the quotient of that over u^2, but it is always multiplied by the square of a vector of length u.
Below a few rounding units u^2 is clamped, for the same reason.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyco.models.hyperbolic.nn.batchnorm_ops import (
    TINY,
    Ends,
    Place,
    Statistics,
    all_reduce,
    average,
    boosted,
    place,
    sum_points,
)
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate, normalise, to_space
from hyco.models.hyperbolic.ops import wide


class _Seen(NamedTuple):
    """Numbers of each point, [B, 1, N]: its space part is f times the tangent vector."""

    along: Tensor  # part of the tangent vector along p's direction
    n: Tensor  # its length
    sinh: Tensor  # of its angle
    t: Tensor  # time part
    f: Tensor
    x_r: Tensor  # part of the space part along p's direction
    y_r: Tensor  # this and the time part as seen from p
    y_t: Tensor


def _see(d_r: Tensor, d2: Tensor, rate: Rate, p: Place, max_angle: float) -> _Seen:
    """Numbers of points, by their tangent vectors' difference from p's: d_r along p's direction, d2 squared across."""
    along, one = d_r + p.length, d_r.new_ones(())
    n = torch.addcmul(d2, along, along).clamp_(min=TINY).sqrt_()
    sinh = (n * rate).clamp_(max=max_angle).sinh_()
    t, f = torch.addcmul(one, sinh, sinh).sqrt_(), sinh / n
    x_r = f * along
    y_r = (x_r * p.time).sub_(t * p.space)
    y_t = (f * f).mul_(d2).addcmul_(y_r, y_r).add_(1).sqrt_()
    return _Seen(along, n, sinh, t, f, x_r, y_r, y_t)


def _unsee(
    p: Place,
    seen: _Seen,
    d2: Tensor,
    rate: Rate,
    max_angle: float,
    f: Tensor,
    x_r: Tensor,
    t: Tensor,
    y_r: Tensor,
    y_t: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by d_r, d2 and rate (0-dim) from those by the result of `_see`, which are overwritten."""
    y_t.div_(seen.y_t)
    y_r.addcmul_(y_t, seen.y_r)
    f.addcmul_(y_t.mul_(seen.f), d2)
    by_d2 = y_t.mul_(seen.f).mul_(0.5)
    x_r.add_(y_r * p.time)
    t.sub_(y_r.mul_(p.space))
    f.addcmul_(x_r, seen.along)
    by_d_r = x_r.mul_(seen.f)
    # sinh(q) / n and cosh(q) with q = rate n; beyond the cap q stays.
    f.div_(seen.n)
    by_angle = t.mul_(seen.sinh).addcmul_(f, seen.t).mul_((max_angle - seen.n * rate).sign_().clamp_(min=0))
    by_n = (by_angle * rate).sub_(f.mul_(seen.f)).div_(seen.n)
    return by_d_r.addcmul_(by_n, seen.along), by_d2.add_(by_n, alpha=0.5), torch.sum(by_angle.mul_(seen.n))


class _Turned(NamedTuple):
    """Numbers of each point, [B, 1, N], of its way from the mean to the learned mean."""

    cosh: Tensor  # of the angle from the mean
    half: Tensor  # half of the angle
    sinh: Tensor  # of the angle


def _from_mean(seen: _Seen, across: Tensor, ends: Ends) -> _Turned:
    cosh = (seen.y_t * ends.mean_t).addcmul_(seen.f, across[:, :1], value=-1).sub_(seen.y_r * ends.mean_r)
    half2 = (cosh - 1).mul_(0.5).clamp_(min=TINY)
    sinh_half, cosh_half = half2.sqrt(), (half2 + 1).sqrt_()
    half = half2.div_(cosh_half + 1).add_(sinh_half).log1p_()
    return _Turned(cosh, half, sinh_half.mul_(cosh_half).mul_(2))


class _Out(NamedTuple):
    """Numbers of each point, [B, 1, N]: the point goes to k x + of_mean mean + of_bias learned mean."""

    turn: Tensor  # angle from the learned mean
    sinh: Tensor
    cosh: Tensor
    k: Tensor
    z: Tensor
    of_way: Tensor  # its whole component along p's direction
    of_mean: Tensor
    of_bias: Tensor
    w_t: Tensor  # time part
    w2: Tensor  # square of the length of its space part
    shrink: Tensor  # the tangent vector is shrink times the space part


def _weigh(seen: _Seen, across: Tensor, ends: Ends, turned: _Turned, gain: Tensor, rate: Rate) -> _Out:
    one = gain.new_ones(())
    turn = (turned.half * (2 * gain)).clamp_(max=MAX_ANGLE)
    sinh = turn.sinh()
    cosh, k = torch.addcmul(one, sinh, sinh).sqrt_(), sinh / turned.sinh
    from_bias = (seen.t * ends.bias_t).addcmul_(seen.f, across[:, 1:], value=-1).sub_(seen.x_r * ends.bias_r)
    z = (turned.cosh * ends.between).sub_(from_bias).mul_(1 / (1 + ends.between))
    of_mean, of_bias = (z - turned.cosh).mul_(k), torch.addcmul(cosh, k, z)
    of_way = (k * seen.x_r).add_(of_mean * ends.whole_r).add_(of_bias * ends.bias_r)
    w_t = (k * seen.t).add_(of_mean * ends.whole_t).add_(of_bias * ends.bias_t)
    w2 = torch.addcmul(-one, w_t, w_t).clamp_(min=TINY)
    w = w2.sqrt()
    shrink = (w2 / (w_t + 1)).add_(w).log1p_().div_(w).mul_(1 / rate)
    return _Out(turn, sinh, cosh, k, z, of_way, of_mean, of_bias, w_t, w2, shrink)


def forward(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    mean: Tensor | None,
    spread: Tensor | None,
    together: bool,
    max_angle: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Result, mean, spread and counts of the statistics, values for `backward`; arguments as of `batch_norm`."""
    given = None if mean is None or spread is None else Statistics(mean, spread)
    p = place(x, rate, given, together, max_angle)
    d, d_r = _apart(x, p)
    d2 = (d * d).sum(1, keepdim=True)
    seen = _see(wide(d_r), wide(d2), rate, p, max_angle)
    sums, counts = (None, None) if given else sum_points(d, seen.f, seen.y_r, seen.y_t, p, together)
    ends = Ends.of(_mean(sums, given, p), to_space(wide(bias), rate), p)
    across = torch.bmm(ends.across.to(x.dtype).expand(len(x), -1, -1), d)
    wide_across = wide(across)
    turned = _from_mean(seen, wide_across, ends)
    spread = wide(given.spread) if given else 4 * average(turned.half.square(), together)
    gain = (wanted / (spread + slack)).sqrt()
    o = _weigh(seen, wide_across, ends, turned, gain, rate)
    factors = torch.cat([o.of_way, o.of_mean, o.of_bias], 1).mul_(o.shrink)
    d.mul_((o.shrink * o.k).mul_(seen.f).to(x.dtype))
    out = d.baddbmm_(_vectors(p, ends, x).transpose(1, 2), factors.to(x.dtype))
    kept = (
        d_r,
        d2,
        across,
        x.new_empty(0) if sums is None else sums,
        x.new_empty(0) if mean is None else mean,
    )
    return out, ends.whole, spread, counts, (*kept, *p)


def backward(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    spread: Tensor,
    kept: list[Tensor],
    is_given: bool,
    together: bool,
    max_angle: float,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients by x, bias, wanted, slack, rate, and by the statistics where they were given."""
    d_r, d2, across, sums, mean = kept[:5]
    p, given = Place(*kept[5:]), Statistics(mean, spread) if is_given else None
    d, _ = _apart(x, p)
    with torch.enable_grad():  # once per batch
        bias, slack, rate, wanted = (_leaf(v) for v in (bias, slack, rate, wanted))
        sums, given = _leaf(sums), given and Statistics(_leaf(given.mean), _leaf(given.spread))
        mean = _mean(sums, given, p)
        end_mean, spread = _leaf(mean), _leaf(wide(spread))
        ends = Ends.of(end_mean, to_space(wide(bias), rate), p)
        gain = (wanted / (spread + slack)).sqrt()
    once, e, g, rate_ = _Slopes(), Ends(*(v.detach() for v in ends)), gain.detach(), _number(rate)
    d2, across, least = wide(d2), wide(across), 8 * torch.finfo(gain.dtype).eps
    seen = _see(wide(d_r), d2, rate_, p, max_angle)
    turned = _from_mean(seen, across, e)
    o = _weigh(seen, across, e, turned, g, rate_)

    # out = shrink (k f d + factors . vectors)
    vectors = _vectors(p, ends, x)
    by_vectors = torch.bmm(vectors, grad)
    own = (o.shrink * o.k).mul_(seen.f)
    rows = torch.cat([o.of_mean, o.of_bias], 1).mul_(o.shrink)
    by_ends = wide(torch.bmm(rows.to(x.dtype), grad.transpose(1, 2)).sum(0))
    by_own = wide((d * grad).sum(1, keepdim=True))
    by_way, by_mean, by_bias = wide(by_vectors).split(1, 1)
    by_shrink = (by_own * o.k).mul_(seen.f).addcmul_(by_way, o.of_way)
    by_shrink.addcmul_(by_mean, o.of_mean).addcmul_(by_bias, o.of_bias)
    by_rate = -torch.sum(by_shrink * o.shrink) / rate_
    by_w_t = (o.shrink * o.w_t).neg_().add_(1 / rate_).mul_(by_shrink).div_(o.w2.clamp_(min=least))
    by_way, by_mean, by_bias = by_way * o.shrink, by_mean * o.shrink, by_bias * o.shrink
    by_mean.add_(by_way * e.whole_r).add_(by_w_t * e.whole_t)
    by_bias.add_(by_way * e.bias_r).add_(by_w_t * e.bias_t)
    by_whole_r, by_whole_t = _total(by_way, o.of_mean), _total(by_w_t, o.of_mean)
    by_bias_r, by_bias_t = _total(by_way, o.of_bias), _total(by_w_t, o.of_bias)
    by_f = by_own.mul_(o.shrink)
    by_k = (by_f * seen.f).addcmul_(by_way, seen.x_r).addcmul_(by_w_t, seen.t)
    by_k.addcmul_(by_mean, o.z - turned.cosh).addcmul_(by_bias, o.z)
    by_f.mul_(o.k)
    by_x_r, by_t = by_way.mul_(o.k), by_w_t.mul_(o.k)

    # z = (cosh between - from_bias) / (1 + between)
    by_z = (by_mean + by_bias).mul_(o.k).mul_(1 / (1 + e.between))
    by_cosh = (by_mean.mul_(o.k)).neg_().add_(by_z * e.between)
    by_between = torch.sum(by_z * (turned.cosh - o.z))
    by_t.sub_(by_z * e.bias_t)
    by_f.addcmul_(by_z, across[:, 1:])
    by_x_r.add_(by_z * e.bias_r)
    by_bias_t, by_bias_r = by_bias_t - _total(by_z, seen.t), by_bias_r + _total(by_z, seen.x_r)
    by_across_bias = by_z.mul_(seen.f)

    # k = sinh(turn) / sinh(angle) and cosh(turn), turn = gain angle, by the cosh of the angle.
    moves, angle = (MAX_ANGLE - o.turn).sign_().clamp_(min=0), turned.half.mul_(2)
    coth = (o.turn * o.cosh).div_(o.sinh).sub_(1).mul_(moves)  # turn coth(turn) - 1
    by_k.mul_(o.k)
    by_log_turn = by_k.clone().add_(coth * by_k)
    by_log_turn.mul_(moves).addcmul_((by_bias * moves).mul_(o.turn), o.sinh)
    once.run((gain,), (by_log_turn.sum() / g,), (wanted, slack, rate, spread))
    coth.sub_((angle * turned.cosh).div_(turned.sinh).sub_(moves)).div_(
        (angle * turned.sinh).clamp_(min=least)
    )
    by_turned = coth.mul_(by_k).addcmul_(by_bias.mul_(g), o.k.mul_(moves))
    if given is None:  # the spread is the mean of the squared angles
        by_spread = all_reduce(once[spread]) if together else once[spread]
        by_turned.add_((angle / turned.sinh).mul_(2 * by_spread / sums[-1].detach()))
    # Where rounding has put the cosh below 1 the angle is clamped to zero.
    by_cosh.addcmul_(by_turned, (turned.cosh - 1).sign_().add_(1).clamp_(max=1))

    # cosh = y_t mean_t - y_r mean_r - f across
    by_mean_t, by_mean_r = _total(by_cosh, seen.y_t), -_total(by_cosh, seen.y_r)
    by_f.addcmul_(by_cosh, across[:, :1], value=-1)
    by_y_t, by_y_r = by_cosh * e.mean_t, by_cosh * -e.mean_r
    rows = torch.cat([by_cosh.mul_(seen.f).neg_(), by_across_bias], 1)
    by_ends = by_ends + wide(torch.bmm(rows.to(x.dtype), d.transpose(1, 2)).sum(0))
    parts = (ends.mean_r, ends.mean_t, ends.whole_r, ends.whole_t, ends.bias_r, ends.bias_t, ends.between)
    slopes = (by_mean_r, by_mean_t, by_whole_r, by_whole_t, by_bias_r, by_bias_t, by_between)
    once.run((*parts, ends.across), (*slopes, by_ends), (bias, rate, end_mean))

    rows, vectors = [wide(by_vectors[:, :1]).mul_(own).neg_(), rows], vectors[0]
    by_end = once[end_mean]
    if given is None:
        # The sums: of f d and y_r p.way, and of y_t.
        by_end = all_reduce(by_end) if together else by_end
        once.run((mean,), (by_end,), (sums,))
        by_sum = once[sums][:-2]
        along = p.way.dot(by_sum)
        by_sum = torch.addcmul(by_sum, along, p.way, value=-1).to(x.dtype)[None]
        by_f.add_(torch.bmm(by_sum.expand(len(x), -1, -1), d))
        by_y_r.add_(along)
        by_y_t.add_(once[sums][-2])
        rows, vectors = [*rows, seen.f], torch.cat([vectors, by_sum])
    else:
        once.run((mean,), (by_end,), (given.mean,))
        once.add(given.spread, once[spread])
    by_d_r, by_d2, by_angle = _unsee(p, seen, d2, rate_, max_angle, by_f, by_x_r, by_t, by_y_r, by_y_t)
    once.add(rate, by_rate + by_angle)
    # The gradient across p's direction loses its part along it and gains that of d_r.
    rows[0].add_(by_d_r)
    d_x = d.mul_(by_d2.mul_(2).to(x.dtype)).addcmul_(grad, own.to(x.dtype))
    d_x.baddbmm_(vectors.expand(len(x), -1, -1).transpose(1, 2), torch.cat(rows, 1).to(x.dtype))
    of_given = (once.get(given.mean), once.get(given.spread)) if given else (None, None)
    return d_x, once.get(bias), once.get(wanted), once.get(slack), once.get(rate), *of_given


class _Slopes:
    """Sums of the gradients of the leaves over several computations."""

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}

    def run(self, outputs: tuple[Tensor, ...], slopes: tuple[Tensor, ...], leaves: tuple[Any, ...]) -> None:
        """Add the gradients of the leaves (leaves that are numbers are skipped) from those of the outputs."""
        leaves = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        found = torch.autograd.grad(outputs, leaves, slopes, retain_graph=True, allow_unused=True)
        for leaf, slope in zip(leaves, found, strict=True):
            if slope is not None:
                self.add(leaf, slope)

    def add(self, leaf: Any, slope: Tensor) -> None:
        """Add to the gradient of a leaf."""
        self.held[id(leaf)] = self.held[id(leaf)] + slope if id(leaf) in self.held else slope

    def get(self, leaf: Any) -> Tensor | None:
        """The gradient of a leaf, if it is one and has any."""
        return (
            self.held[id(leaf)].to(leaf.dtype) if isinstance(leaf, Tensor) and id(leaf) in self.held else None
        )

    def __getitem__(self, leaf: Tensor) -> Tensor:
        return self.held[id(leaf)]


def _number(value: Rate) -> Rate:
    return wide(value.detach()) if isinstance(value, Tensor) else value


def _total(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_() if isinstance(value, Tensor) else value


def _apart(x: Tensor, p: Place) -> tuple[Tensor, Tensor]:
    """Differences of the tangent vectors from p's across its direction, [B, C, N], and along it, [B, 1, N]."""
    d, rows = x - p.at[:, None], p.way.to(x.dtype).expand(len(x), 1, -1)
    d_r = torch.bmm(rows, d)
    return d.baddbmm_(rows.transpose(1, 2), d_r, alpha=-1), d_r


def _mean(sums: Tensor | None, given: Statistics | None, p: Place) -> Tensor:
    """The mean as seen from p: given, or from the sums of `sum_points`."""
    if given:
        return boosted(wide(given.mean), p)
    assert sums is not None
    return normalise(sums[:-2], sums[-2], sums[-1])


def _vectors(p: Place, ends: Ends, x: Tensor) -> Tensor:
    """p's direction, and the components of mean and learned mean across it: [B, 3, C]."""
    return torch.cat([p.way[None], ends.across.detach()]).to(x.dtype).expand(len(x), -1, -1)
