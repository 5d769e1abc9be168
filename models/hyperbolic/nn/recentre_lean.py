"""`recentre` with a backward pass of its own: x and four numbers a point are kept, and each tensor of the size of x is
gone through a few times only.

What happens once a coordinate is differentiated by hand, what happens once a point by autograd, from a second
computation on the way back: in float64 these numbers need no care but at zero, where roots are held. Functions that
vanish with an angle meet the square of a vector of its length, so what is held does not show.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from models.hyperbolic.nn.functional import MAX_ANGLE, Rate, normalise, to_space
from models.hyperbolic.nn.recentre import (
    Ends,
    Place,
    Statistics,
    all_reduce,
    average,
    boosted,
    place,
    sum_points,
    wide,
)

TINY = 1e-30
"""Least squared angle: sinh of its root is the root itself."""


def recentre_lean(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    given: Statistics | None = None,
    together: bool = False,
) -> tuple[Tensor, Statistics]:
    """`recentre`, differentiable once, with gradients in all tensors but the statistics."""
    out, mean, spread = _Recentre.apply(x, bias, wanted, slack, rate, *(given or (None, None)), together)
    return out, Statistics(mean, spread)


class _Seen(NamedTuple):
    """Numbers of each point, [B, 1, N]: its space part is f times the tangent vector."""

    f: Tensor
    x_r: Tensor  # part of the space part along p's direction
    t: Tensor  # time part
    y_r: Tensor  # the same two as seen from p
    y_t: Tensor


def _see(d_r: Tensor, d2: Tensor, rate: Rate, p: Place) -> _Seen:
    """From the tangent vector's difference from p's: the part along p's direction and the square of that across."""
    along = d_r + p.length
    n = torch.addcmul(d2, along, along).clamp(min=TINY).sqrt()
    sinh = (n * rate).clamp(max=MAX_ANGLE).sinh()
    t, f = (sinh * sinh + 1).sqrt(), sinh / n
    x_r = f * along
    y_r = x_r * p.time - t * p.space
    y_t = torch.addcmul(y_r * y_r + 1, f * f, d2).sqrt()
    return _Seen(f, x_r, t, y_r, y_t)


def _from_mean(seen: _Seen, across: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Cosh of the angle from the mean, and half of the angle."""
    cosh = torch.addcmul(seen.y_t * ends.mean_t, seen.f, across[:, :1], value=-1) - seen.y_r * ends.mean_r
    half2 = (cosh * 0.5 - 0.5).clamp(min=TINY)
    return cosh, (half2.sqrt() + half2 / ((half2 + 1).sqrt() + 1)).log1p()


def _weigh(
    seen: _Seen, across: Tensor, ends: Ends, cosh: Tensor, half: Tensor, gain: Tensor, rate: Rate
) -> tuple[Tensor, Tensor]:
    """Factors of the part across p's direction [B, 1, N], and of the three vectors [B, 3, N], in the result."""
    angle = half * 2
    turn = (angle * gain).clamp(max=MAX_ANGLE)
    sinh_out = turn.sinh()
    k = sinh_out / angle.sinh()
    from_bias = torch.addcmul(seen.t * ends.bias_t, seen.f, across[:, 1:], value=-1) - seen.x_r * ends.bias_r
    z = (cosh * ends.between - from_bias) / (1 + ends.between)
    of_mean, of_bias = k * (z - cosh), k * z + (sinh_out * sinh_out + 1).sqrt()
    of_way = k * seen.x_r + of_mean * ends.whole_r + of_bias * ends.bias_r
    w_t = k * seen.t + of_mean * ends.whole_t + of_bias * ends.bias_t
    w2 = (w_t * w_t - 1).clamp(min=TINY)
    w = w2.sqrt()
    shrink = (w2 / (w_t + 1) + w).log1p() / (w * rate)
    return shrink * k * seen.f, torch.cat([shrink * of_way, shrink * of_mean, shrink * of_bias], 1)


class _Recentre(Function):
    @staticmethod
    def forward(ctx: Any, x, bias, wanted, slack, rate, mean, spread, together):  # pyright: ignore[reportIncompatibleMethodOverride]
        given = None if mean is None else Statistics(mean, spread)
        p = place(x, rate, given, together)
        d, d_r = _apart(x, p)
        d2 = (d * d).sum(1, keepdim=True)
        seen = _see(wide(d_r), wide(d2), rate, p)
        sums = None if given else sum_points(d, seen.f, seen.y_r, seen.y_t, p, together)
        ends = Ends.of(_mean(sums, given, p), to_space(wide(bias), rate), p)
        across = torch.bmm(ends.across.to(x.dtype).expand(len(x), -1, -1), d)
        cosh, half = _from_mean(seen, wide(across), ends)
        spread = wide(given.spread) if given else 4 * average(half * half, together)
        gain = (wanted / (spread + slack)).sqrt()
        own, factors = _weigh(seen, wide(across), ends, cosh, half, gain, rate)
        out = d.mul_(own.to(x.dtype)).baddbmm_(_vectors(p, ends, x).transpose(1, 2), factors.to(x.dtype))
        ctx.p, ctx.together = p, together
        ctx.rate, ctx.slack = (None if isinstance(v, Tensor) else v for v in (rate, slack))
        ctx.mark_non_differentiable(ends.whole, spread)
        tensors = (v if isinstance(v, Tensor) else None for v in (rate, slack))
        ctx.save_for_backward(x, bias, wanted, *tensors, d_r, d2, across, sums, mean, spread)
        return out, ends.whole, spread

    @staticmethod
    def backward(ctx: Any, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this layer is differentiable once; build it with lean=False for second derivatives"
            )
        x, bias, wanted, rate, slack, d_r, d2, across, sums, mean, spread = ctx.saved_tensors
        rate, slack = ctx.rate if rate is None else rate, ctx.slack if slack is None else slack
        p, given = ctx.p, None if mean is None else Statistics(mean, spread)
        d, _ = _apart(x, p)
        with torch.enable_grad():
            # The second computation, in pieces: a leaf wherever a tensor of the size of x comes between.
            d_r, d2, across, spread = (_leaf(wide(v)) for v in (d_r, d2, across, spread))
            bias, wanted, slack, rate = (_leaf(v) for v in (bias, wanted, slack, rate))
            given, sums = given and Statistics(_leaf(given.mean), spread), _leaf(sums)
            mean = _mean(sums, given, p)
            seen, cut_mean = _see(d_r, d2, rate, p), _leaf(mean)
            cut = _Seen(*(_leaf(v) for v in seen))
            ends = Ends.of(cut_mean, to_space(wide(bias), rate), p)
            cosh, half = _from_mean(cut, across, ends)
            gain = (wanted / (spread + slack)).sqrt()
            own, factors = _weigh(cut, across, ends, cosh, half, gain, rate)
        slopes = _Slopes()
        # out = own d + factors . vectors
        vectors, own32 = _vectors(p, ends, x), own.detach().to(x.dtype)
        by_vectors = torch.bmm(vectors, grad)
        by_ends = torch.bmm(factors.detach().to(x.dtype), grad.transpose(1, 2)).sum(0)[1:]
        by_own = (d * grad).sum(1, keepdim=True)
        parts = (bias, wanted, slack, rate, spread, across, cut_mean, *cut)
        slopes.run((own, factors, ends.across), (wide(by_own), wide(by_vectors), wide(by_ends)), parts)
        if given is None:  # spread = 4 sum(half^2) / number
            by_spread = all_reduce(slopes[spread]) if ctx.together else slopes[spread]
            slopes.run((half,), (half.detach() * (8 * by_spread / sums[-1]),), parts)
        # across = ends.across . d
        by_across = torch.bmm(slopes[across].to(x.dtype), d.transpose(1, 2)).sum(0)
        slopes.run((ends.across,), (wide(by_across),), parts)
        rows, vectors = [wide(own32 * -by_vectors[:, :1]), slopes[across]], vectors[0]
        by_mean = slopes[cut_mean]
        if given is None:
            # The sums: of f d and y_r by the way, of y_t.
            by_mean = all_reduce(by_mean) if ctx.together else by_mean
            slopes.run((mean,), (by_mean,), (sums,))
            by_sum, by_time = slopes[sums][:-2], slopes[sums][-2]
            by_way = p.way.dot(by_sum)
            by_sum = torch.addcmul(by_sum, by_way, p.way, value=-1).to(x.dtype)[None]
            slopes.add(cut.f, wide(torch.bmm(by_sum.expand(len(x), -1, -1), d)))
            slopes.add(cut.y_r, by_way)
            slopes.add(cut.y_t, by_time)
            rows, vectors = [*rows, cut.f.detach()], torch.cat([vectors, by_sum])
        else:
            slopes.run((mean,), (by_mean,), (given.mean,))
        slopes.run(seen, tuple(slopes[v] for v in cut), (d_r, d2, rate))
        # What comes back across p's direction has its part along it taken out, and that of d_r put in.
        rows[0] = rows[0] + slopes[d_r]
        d_x = d.mul_((2 * slopes[d2]).to(x.dtype)).addcmul_(grad, own32)
        d_x.baddbmm_(vectors.expand(len(x), -1, -1).transpose(1, 2), torch.cat(rows, 1).to(x.dtype))
        of_given = (slopes[given.mean], slopes[spread]) if given else (None, None)
        return d_x, slopes[bias], slopes[wanted], slopes.get(slack), slopes.get(rate), *of_given, None


class _Slopes:
    """Sums of the gradients of the leaves that several computations give."""

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}

    def run(self, outputs: tuple[Tensor, ...], slopes: tuple[Tensor, ...], leaves: tuple[Any, ...]) -> None:
        """Add the gradients of the leaves (numbers among them are left out) from those of the outputs."""
        leaves = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        found = torch.autograd.grad(outputs, leaves, slopes, retain_graph=True, allow_unused=True)
        for leaf, slope in zip(leaves, found, strict=True):
            if slope is not None:
                self.add(leaf, slope)

    def add(self, leaf: Tensor, slope: Tensor) -> None:
        """Add to what a leaf has."""
        self.held[id(leaf)] = self.held[id(leaf)] + slope if id(leaf) in self.held else slope

    def get(self, leaf: Any) -> Tensor | None:
        """The gradient of a leaf, if any."""
        return self.held.get(id(leaf))

    def __getitem__(self, leaf: Tensor) -> Tensor:
        return self.held[id(leaf)]


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
    """p's direction and what mean and learned mean have across it, [B, 3, C]."""
    return torch.cat([p.way[None], ends.across.detach()]).to(x.dtype).expand(len(x), -1, -1)
