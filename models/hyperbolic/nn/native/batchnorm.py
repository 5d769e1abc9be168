"""The two passes of `batchnorm_fused` by C++ kernels; keeps x and three numbers per point."""

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hyco.models.hyperbolic.nn.batchnorm_ops import LOST, all_reduce, summed_points
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE, Rate
from hyco.models.hyperbolic.nn.native.library import address, kernels

EPS = torch.finfo(torch.float32).eps


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "square", "along")),
        *((name, ctypes.c_int64) for name in ("count", "width", "positions")),
        *((name, ctypes.c_double) for name in ("rate", "max_angle", "max_turn", "gain")),
    ]


class _Ends(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_double)
        for name in ("mean_t", "bias_t", "mean_less", "between", "lift", "length", "free")
    ]


class _Kept(NamedTuple):
    """Values that the backward pass needs besides x."""

    square: Tensor  # squared lengths of the points [B, 1, N]
    along: Tensor  # their products with the space parts of mean and learned mean [B, 2, N]
    sums: Tensor  # of the points' space parts, time parts - 1, and their number [C + 2]; empty with given statistics
    pair: Tensor  # space parts of mean and learned mean [2, C]


def _batch(x: Tensor, square: Tensor, along: Tensor, rate: float, max_angle: float, gain: float) -> _Batch:
    return _Batch(*map(address, (x, square, along)), *x.shape, rate, max_angle, MAX_ANGLE, gain)


def _ends(sums: Tensor, bias: Tensor, pair: Tensor, rate: float) -> tuple[_Ends, float]:
    """Numbers of the means, whose space parts are set in pair (the mean's unless sums are empty); number of points."""
    ends, count = _Ends(), float(sums[-1]) if len(sums) else 0.0
    pointers = address(bias), address(pair), ctypes.addressof(ends)
    kernels().norm_ends(address(sums), count, *pointers, len(bias), rate, MAX_ANGLE)
    return ends, count


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]] | None:
    """As `batchnorm_fused._forward`; the mean is float64."""
    native, (batch, width, positions), rate = kernels(), x.shape, float(rate)
    square, along = x.new_empty(batch, 1, positions), x.new_empty(batch, 2, positions)
    pair, counts, bias = x.new_empty(2, width, dtype=torch.float64), None, bias.contiguous()
    sums, of = pair.new_empty(width + 1), _batch(x, square, along, rate, max_angle, 0)
    native.norm_sums(ctypes.addressof(of), address(square), address(sums))
    if mean is None:
        # In float32, as processes without kernels do.
        sums, counts = summed_points([sums.float() if together else sums], square, together)
        sums = sums.double()
        less = float(sums[-2] / sums[-1])
    else:
        pair[0] = mean
        less, sums = float(sums[-1]) / max(1, square.numel()), sums.new_empty(0)
    ends, _ = _ends(sums, bias, pair, rate)
    pointers = address(pair), ctypes.addressof(ends)
    halves = native.norm_angles(ctypes.addressof(of), address(along), *pointers)
    if spread is None:
        halves = x.new_tensor([halves, square.numel()], dtype=torch.float32 if together else torch.float64)
        halves = all_reduce(halves) if together else halves
        spread = 4 * halves[0].double() / halves[1]
    else:
        spread = spread.double()
    of.gain = math.sqrt(float(wanted) / (float(spread) + float(slack)))
    if not (
        EPS * (less * ends.mean_t + ends.mean_less) <= LOST * float(spread) and EPS * of.gain <= 4 * LOST
    ):
        return None
    out = torch.empty_like(x)
    native.norm_results(ctypes.addressof(of), *pointers, address(out))
    return out, pair[0].clone(), spread, counts, _Kept(square, along, sums, pair)


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
    """As `batchnorm_near.backward`, from the values of `forward`."""
    native, p, width = kernels(), _Kept(*(t.contiguous() for t in kept)), x.shape[1]
    number, x, grad, bias = float(rate), x.contiguous(), grad.contiguous(), bias.contiguous()
    variance = float(spread) + float(slack)
    gain = math.sqrt(float(wanted) / variance)
    of = _batch(x, p.square, p.along, number, max_angle, gain)
    ends, count = _ends(p.sums, bias, p.pair, number)
    this, points, means = ctypes.addressof(of), address(grad), (address(p.pair), ctypes.addressof(ends))
    products, factors = x.new_empty(len(x), 3, x.shape[2]), x.new_empty(len(x), 5, x.shape[2])
    by_gain = native.norm_gain_slope(this, points, *means, address(products))
    by_wanted, by_slack = by_gain / (2 * float(wanted)), by_gain / (-2 * variance)
    by_spread = x.new_tensor(by_slack)
    if not is_given and together:
        by_spread = all_reduce(by_spread)
    per_square, by_pair = 0.0 if is_given else float(by_spread) / count, torch.empty_like(p.pair)
    by_rate = native.norm_mean_slopes(
        this, points, *means, address(products), per_square, address(factors), address(by_pair)
    )
    by_sums = None
    if not is_given:
        by_mean = all_reduce(by_pair[0].float()).double() if together else by_pair[0]
        by_sums = p.pair.new_empty(width + 1)
        native.norm_sum_slopes(address(p.sums), count, *means, address(by_mean), address(by_sums), width)
    by_x, by_bias = torch.empty_like(x), torch.empty_like(bias)
    by_rate += native.norm_bias_slopes(
        address(bias), means[1], address(by_pair[1]), address(by_bias), width, number
    )
    by_rate += native.norm_slopes(this, points, means[0], address(factors), address(by_sums), address(by_x))
    of_slack = slack.new_tensor(by_slack) if isinstance(slack, Tensor) else None
    of_rate = rate.new_tensor(by_rate) if isinstance(rate, Tensor) else None
    of_given = (by_pair[0].clone(), by_spread) if is_given else (None, None)
    return by_x, by_bias, wanted.new_tensor(by_wanted), of_slack, of_rate, *of_given


def track(
    mean: Tensor,
    spread: Tensor,
    running: tuple[Tensor, Tensor, Tensor],
    c: Rate,
    rate: Rate,
    count: float,
    least: float,
    weight: float,
    smoothing: float,
    most: float,
) -> None:
    """Move the running mean, variance and movement of a layer; see `norm_track`."""
    numbers = map(float, (spread, c, rate, count, least, weight, smoothing, most))
    kernels().norm_track(*map(address, (mean, *running)), len(mean), *numbers)
    increment_version(running)
