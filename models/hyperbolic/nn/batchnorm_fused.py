"""`batch_norm` with a hand-written backward pass: a third of the operations; of its size it stores only x.

The sums below lose digits for points that lie close together compared with their angle from the origin, or that are
stretched a lot. Where the statistics show this, `batchnorm_near` takes over, which is also fused and takes 2.5 times
as long.

Written with angles u rather than their squares, whose roots autograd could not differentiate at zero. Work per point
costs as much in torch as work per coordinate, so on a CPU C++ kernels do it where they can be had
(native/batchnorm.py). Here operations are few, in place where possible, and free of torch.where,
which CPUs process one element at a time.

Every derivative that vanishes with an angle u has the factor (u coth u - 1) / u^2. The difference has an error of
the rounding unit, and the quotient of that over u^2; but it is always multiplied by the square of a vector of length
u, so the gradient has an error of a rounding unit. Below a few rounding units u^2 is clamped, for the same reason.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from hyco.models.hyperbolic.nn import batchnorm_near
from hyco.models.hyperbolic.nn.batchnorm_ops import LOST, TINY, Statistics, all_reduce, average, summed_points
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate
from hyco.models.hyperbolic.nn.native import batchnorm as native
from hyco.models.hyperbolic.nn.native.library import usable


def batch_norm_fused(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    given: Statistics | None = None,
    together: bool = False,
    max_angle: float = MAX_ANGLE,
) -> tuple[Tensor, Statistics]:
    """`batch_norm`, differentiable once, with gradients in all tensors but the returned statistics."""
    mean, spread = (given.mean, given.spread) if given else (None, None)
    out, *found = _BatchNorm.apply(x, bias, wanted, slack, rate, mean, spread, together, max_angle)
    return out, Statistics(*found)


class _Kept(NamedTuple):
    """Values that the backward pass needs besides x; [B, 1, N] unless noted otherwise."""

    r: Tensor  # angle of the input
    t: Tensor  # its time part
    f: Tensor  # its space part is f x
    along: Tensor  # x . mean and x . bias, [B, 2, N]
    cosh: Tensor  # of the angles from mean and bias, [B, 2, N]
    half: Tensor  # half the angle from the mean
    sinh_in: Tensor  # sinh(angle) / 2
    turn: Tensor  # angle from the learned mean in the output
    sinh_out: Tensor
    cosh_out: Tensor
    k: Tensor
    mixed: Tensor  # z - cosh and z, [B, 2, N]
    factors: Tensor  # of mean and bias in w, [B, 2, N]
    w_t: Tensor  # time part of w
    w_n: Tensor  # length of its space part
    shrink: Tensor  # the tangent vector is shrink w
    sums: Tensor  # of `sum_points`; empty with given statistics
    pair: Tensor  # mean and bias, [2, C]
    pair_t: Tensor  # their time parts, [2, 1]
    mix: Tensor  # mixed = mix cosh, [2, 2]
    gain: Tensor  # turn = gain angle, 0-dim
    lift: Tensor  # the learned mean's space part is lift times the tangent vector, 0-dim


class _BatchNorm(Function):
    @staticmethod
    def forward(ctx: Any, x, bias, wanted, slack, rate, mean, spread, together, max_angle):  # pyright: ignore[reportIncompatibleMethodOverride]
        options = mean, spread, together, max_angle
        # A process without points computes like the others.
        ctx.native = usable(x if x.numel() else None, bias, wanted) and bias.shape == x.shape[1:2]
        found = (native.forward if ctx.native else _forward)(x, bias, wanted, slack, rate, *options)
        ctx.near, ctx.together, ctx.given, ctx.max_angle = (
            found is None,
            together,
            mean is not None,
            max_angle,
        )
        if found is None:
            found = batchnorm_near.forward(x, bias, wanted, slack, rate, *options)
        out, mean, spread, counts, kept = found
        ctx.mark_non_differentiable(mean, spread, *([] if counts is None else [counts]))
        ctx.set_materialize_grads(False)
        numbers = (v if isinstance(v, Tensor) else None for v in (rate, slack))
        ctx.rate, ctx.slack = (None if isinstance(v, Tensor) else v for v in (rate, slack))
        ctx.save_for_backward(x, bias, wanted, *numbers, spread, *kept)
        return out, mean, spread, counts

    @staticmethod
    def backward(ctx: Any, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this layer is differentiable once; build it with fused=False for second derivatives"
            )
        x, bias, wanted, rate, slack, spread, *kept = ctx.saved_tensors
        rate, slack = ctx.rate if rate is None else rate, ctx.slack if slack is None else slack
        if ctx.near or ctx.native:
            backward = batchnorm_near.backward if ctx.near else native.backward
            options = ctx.given, ctx.together, ctx.max_angle
            return *backward(x, bias, wanted, slack, rate, spread, kept, *options, grad), None, None
        return _backward(ctx, x, wanted, slack, rate, spread, _Kept(*kept), grad)


def _forward(
    x: Tensor,
    bias: Tensor,
    wanted: Tensor,
    slack: Rate,
    rate: Rate,
    mean: Tensor | None,
    spread: Tensor | None,
    together: bool,
    max_angle: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, _Kept] | None:
    """Result, mean, spread, counts, and values for backward; None where float32 has lost too many digits."""
    batch, one = x.shape[0], x.new_ones(())
    # New memory pages take half of the time of a large operation on a CPU: squares and result use one buffer.
    buffer = x * x
    r = buffer.sum(1, keepdim=True).clamp_(min=TINY).sqrt_().mul_(rate)
    sinh = r.clamp(max=max_angle).sinh_()
    # Time parts less 1, without which their sums would have no digit of small angles.
    square = sinh * sinh
    t, f = (square + 1).sqrt_(), sinh.mul_(rate).div_(r)
    less = square.div_(t + 1)
    sums, counts = (x.new_empty(0), None) if mean is not None else _sum_points(x, less, f, together)
    mean = _mean(sums) if mean is None else mean.to(x.dtype, copy=True)
    n = torch.linalg.vector_norm(bias).clamp_(min=TINY**0.5)
    lift = (n * rate).clamp_(max=MAX_ANGLE).sinh_().div_(n)
    pair = torch.stack([mean, bias * lift])
    pair_t = pair.square().sum(1, keepdim=True).add_(1).sqrt_()
    many = pair.expand(batch, -1, -1)
    along = torch.bmm(many, x)
    cosh = (t * pair_t).addcmul_(f, along, value=-1)

    mean_less = pair[0].dot(pair[0]) / (1 + pair_t[0, 0])
    half2 = (less * pair_t[0, 0]).add_(mean_less).addcmul_(f, along[:, :1], value=-1)
    half2 = half2.mul_(0.5).clamp_(min=TINY)
    sinh_half, cosh_half = half2.sqrt(), (half2 + 1).sqrt_()
    half = half2.div_(cosh_half + 1).add_(sinh_half).log1p_()
    spread = 4 * average(half.square(), together) if spread is None else spread.to(x.dtype, copy=True)
    average_less = sums[-2] / sums[-1] if len(sums) else less.mean()
    gain = (wanted / (spread + slack)).sqrt()
    if _lost(average_less * pair_t[0, 0] + mean_less, spread, gain):
        return None
    turn = (half * (2 * gain)).clamp_(max=MAX_ANGLE)
    sinh_out, sinh_in = turn.sinh(), sinh_half.mul_(cosh_half)
    cosh_out, k = torch.addcmul(one, sinh_out, sinh_out).sqrt_(), (sinh_out / sinh_in).mul_(0.5)

    between = pair_t.prod() - pair[0].dot(pair[1])
    mix = (torch.stack([-one, -one, between, -one]) / (1 + between)).view(2, 2)
    mixed = torch.bmm(mix.expand(batch, -1, -1), cosh)
    factors = mixed * k
    factors[:, 1:].add_(cosh_out)
    w_t = torch.bmm(pair_t.T.expand(batch, -1, -1), factors).addcmul_(k, t)
    w_n2 = torch.addcmul(-one, w_t, w_t).clamp_(min=TINY)
    w_n = w_n2.sqrt()
    shrink = w_n2.div_(w_t + 1).add_(w_n).log1p_().div_(w_n).div_(rate)
    out = torch.mul(x, (k * f).mul_(shrink), out=buffer)
    out.baddbmm_(many.transpose(1, 2), factors * shrink)
    kept = _Kept(r, t, f, along, cosh, half, sinh_in, turn, sinh_out, cosh_out, k, mixed, factors, w_t, w_n,
                 shrink, sums, pair, pair_t, mix, gain, lift)  # fmt: skip
    return out, mean, spread, counts, kept


def _backward(
    ctx: Any, x: Tensor, wanted: Tensor, slack: Rate, rate: Rate, spread: Tensor, p: _Kept, grad: Tensor
) -> tuple[Tensor | None, ...]:
    batch, least = x.shape[0], 8 * torch.finfo(x.dtype).eps
    k_f = p.k * p.f
    # Beyond the caps the input's time part and the output's angle are constant.
    free, moves = (ctx.max_angle - p.r).sign_().clamp_(min=0), (MAX_ANGLE - p.turn).sign_()

    # The combination: out = shrink (k f x + factors . pair).
    buffer = x * grad
    to_x, to_pair = buffer.sum(1, keepdim=True), torch.bmm(p.pair.expand(batch, -1, -1), grad)
    d_shrink = (to_x * k_f).add_(_dot(to_pair, p.factors))
    d_k_f = to_x.mul_(p.shrink)
    d_w_t = (p.shrink * p.w_t).mul_(-rate).add_(1).mul_(d_shrink)
    d_w_t.div_((p.w_n * p.w_n).clamp_(min=least)).mul_(1 / rate)
    d_factors = to_pair.mul_(p.shrink).addcmul_(d_w_t, p.pair_t)
    d_cosh_out = d_factors[:, 1:]

    # k = sinh(turn) / sinh(angle) and cosh(turn) with turn = gain angle, by the logarithms of both.
    d_log_k = _dot(d_factors, p.mixed).addcmul_(d_w_t, p.t).mul_(p.k).addcmul_(d_k_f, k_f)
    d_log_turn = (p.turn * p.cosh_out).div_(p.sinh_out).sub_(1).mul_(d_log_k)
    d_log_gain = torch.addcmul(d_log_turn, d_cosh_out, p.sinh_out * p.turn).add_(d_log_k).mul_(moves).sum()
    d_wanted = d_log_gain / (2 * p.gain * p.gain * (spread + slack))
    d_slack = d_log_gain / (-2 * (spread + slack))
    # The same by the cosine of the angle, whose slope in the logarithm of the angle is angle sinh(angle), and
    # which rounding may have put below 1: there the angle is clamped to zero.
    ratio, held = p.half / p.sinh_in, (p.cosh[:, :1] - 1).sign_().add_(1).clamp_(max=1)
    d_from_mean = d_log_turn.div_((p.turn * p.turn).clamp_(min=least)).mul_(ratio).mul_(p.gain)
    d_from_mean.addcmul_(d_cosh_out, p.k).mul_(moves).mul_(p.gain)
    growth = (ratio * p.cosh[:, :1]).sub_(moves).div_((p.half * p.sinh_in).mul_(4).clamp_(min=least))
    d_from_mean.addcmul_(d_log_k, growth, value=-1)
    if not ctx.given:  # the spread is the mean of the squared angles
        d_spread = all_reduce(d_slack) if ctx.together else d_slack
        d_from_mean.addcmul_(ratio, 2 * d_spread / p.sums[-1])

    # The cosines: t pair_t - f along.
    d_mixed = d_factors.mul_(p.k)
    first, second = d_mixed.split(1, 1)
    d_between = ((first + second) * (p.cosh[:, :1] + p.cosh[:, 1:])).sum() * p.mix[0, 0] ** 2
    d_cosh = torch.bmm(p.mix.T.expand(batch, -1, -1), d_mixed)
    d_cosh[:, :1].addcmul_(d_from_mean, held)
    d_t = torch.bmm(p.pair_t.T.expand(batch, -1, -1), d_cosh).addcmul_(d_w_t, p.k)
    d_f = (d_k_f * p.k).sub_(_dot(d_cosh, p.along))
    d_pair_t = torch.bmm(d_cosh, p.t.transpose(1, 2)) + torch.bmm(p.factors, d_w_t.transpose(1, 2))
    d_pair_t = d_pair_t.sum(0) + d_between * p.pair_t.flip(0)
    rows, vectors = d_cosh.mul_(p.f), -p.pair
    d_pair = torch.bmm(p.factors * p.shrink, grad.transpose(1, 2)) - torch.bmm(rows, x.transpose(1, 2))
    d_pair = d_pair.sum(0) + d_pair_t * p.pair / p.pair_t - d_between * p.pair.flip(0)

    # The mean, by its sums; f d_sum is one more term in the gradient of every point.
    if not ctx.given:
        d_mean = all_reduce(d_pair[0]) if ctx.together else d_pair[0]
        d_sum, d_total = _normalise_backward(p.sums, p.pair[0], d_mean)
        d_f += torch.bmm(d_sum.expand(batch, 1, -1), x)
        d_t += d_total
        rows, vectors = torch.cat([rows, p.f], 1), torch.cat([vectors, d_sum.unsqueeze(0)])
    square = (p.r * p.r).clamp_(min=least)
    d_radial = (p.t * free).div_(p.f).mul_(rate).sub_(1).div_(square).mul_(d_f)
    d_n2 = d_radial.mul_(rate).addcmul_(d_t, free).mul_(p.f).mul_(rate)
    d_rate = None
    if ctx.needs_input_grad[4]:
        d_rate = (d_n2 * p.r * p.r).sum() / rate**3
        d_rate = d_rate + ((d_f * p.f).sum() - (d_shrink * p.shrink).sum()) / rate
    d_x = torch.mul(x, d_n2, out=buffer).addcmul_(grad, k_f.mul_(p.shrink))
    d_x.baddbmm_(vectors.T.expand(batch, -1, -1), rows)
    d_bias, slope = _lift_backward(p, rate, d_pair[1])
    d_rate = None if d_rate is None else d_rate + slope
    d_given = (d_pair[0], d_slack) if ctx.given else (None, None)
    return d_x, d_bias, d_wanted, d_slack if ctx.needs_input_grad[3] else None, d_rate, *d_given, None, None


def _lost(size: Tensor, spread: Tensor, gain: Tensor) -> bool:
    """Whether rounding moves the squared angles, or the result's time part, by more than LOST of their mean.

    The cosh of an angle less 1 is a difference of numbers of this size: the product of the time parts, less 1. The
    time part is a sum of numbers of the size of the gain, and enters with a quarter of its error.
    """
    eps = torch.finfo(size.dtype).eps
    return not bool((eps * size <= LOST * spread) & (eps * gain <= 4 * LOST))


def _sum_points(x: Tensor, less: Tensor, f: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
    """Sums of the space parts f x and of the time parts less 1, and the number of points: [C + 2]; see `sum_points`."""
    return summed_points([torch.bmm(x, f.transpose(1, 2)).sum((0, 2)), less.sum().view(1)], less, together)


def _mean(sums: Tensor) -> Tensor:
    """Midpoint [C] of the points of `_sum_points`: `normalise` without its gradient."""
    space, count = sums[:-2], sums[-1]
    total, n = sums[-2] + count, torch.linalg.vector_norm(space)
    return space * torch.maximum((total - n).mul_(total + n), count * count).rsqrt_()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[B, 2, N] x 2 -> [B, 1, N]; a sum over so short a dimension takes three times as long."""
    return (a[:, :1] * b[:, :1]).addcmul_(a[:, 1:], b[:, 1:])


def _lift_backward(p: _Kept, rate: Rate, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by the learned mean's tangent vector [C] and the rate (0-dim), from that by its space part."""
    bias, cosh = p.pair[1] / p.lift, p.pair_t[1, 0]
    n = torch.linalg.vector_norm(bias).clamp_(min=TINY**0.5)
    cosh = cosh * (MAX_ANGLE - n * rate).sign_().clamp_(min=0)
    along = grad.dot(bias)
    return torch.addcmul(grad * p.lift, bias, (rate * cosh - p.lift) * along / (n * n)), along * cosh


def _normalise_backward(sums: Tensor, mean: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by the summed space parts [C] and the summed time parts (0-dim), from that by their mean [C]."""
    # mean = space scale, scale = (total^2 - |space|^2)^-1/2, and total scale is the mean's time part.
    total, least = sums[-2] + sums[-1], sums[-1]
    scale = (1 + mean.dot(mean)).sqrt() / total
    along = grad.dot(mean) * scale * (1 - least * scale).sign_().clamp_(min=0)
    return torch.addcmul(grad * scale, along, mean), -along * total * scale
