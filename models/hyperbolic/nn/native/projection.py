"""The two passes of `projection_ops.project` by C++ kernels, between matrix products of torch."""

import torch
from torch import Tensor

from hyco.models.hyperbolic.nn.functional import Rate
from hyco.models.hyperbolic.nn.hyperplane_ops import MAX_EXPONENT, MAX_OFFSET
from hyco.models.hyperbolic.nn.native.library import address, kernels
from hyco.models.hyperbolic.onednn import product


def outputs(
    u: Tensor, weight: Tensor, bias: Tensor | None, rate: Rate, groups: int, max_angle: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[R, I], [G O, I], [G O] or None -> outputs [R, G, O], angles [R, G O], squared norms and asinhc [R, G, 1]."""
    native, rate, u = kernels(), float(rate), u.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    (rows, inputs), count = u.shape, len(weight)
    columns, angle = u.new_empty(3, count), product(u, weight)
    native.planes(address(weight), address(bias), address(columns), count, inputs, rate, MAX_OFFSET)
    out = u.new_empty(rows, groups, count // groups)
    norm, value = u.new_empty(2, rows, groups, 1).unbind(0)
    pointers = map(address, (u, angle, *columns.unbind(0), out, norm, value))
    native.project(*pointers, rows, inputs, groups, count // groups, rate, max_angle, MAX_EXPONENT)
    return out, angle, norm, value


def slopes(
    grad: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    angle: Tensor,
    norm: Tensor,
    value: Tensor,
    rate: Rate,
    max_angle: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Slopes in u, weight, bias and rate."""
    native, rate, u, grad = kernels(), float(rate), u.contiguous(), grad.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    (rows, groups, width), (count, inputs) = out.shape, weight.shape
    columns, by_columns = u.new_empty(3, count), u.new_empty(2, count)
    native.planes(address(weight), address(bias), address(columns), count, inputs, rate, MAX_OFFSET)
    d, by_time = torch.empty_like(angle), u.new_empty(rows)
    pointers = map(address, (grad, u, angle, out, norm, *columns.unbind(0), d, by_time, by_columns))
    by_rate = native.project_slopes(*pointers, rows, inputs, groups, width, rate, max_angle)
    by_u, by_weight = product(d, weight.t()), product(d.t(), u.t())
    by_rate += native.unlift(address(u), address(by_time), address(by_u), rows, inputs, rate, max_angle)
    by_bias = None if bias is None else torch.empty_like(bias)
    pointers = map(address, (weight, bias, by_columns, by_weight, by_bias))
    by_rate += native.plane_slopes(*pointers, count, inputs, rate, MAX_OFFSET)
    return by_u, by_weight, by_bias, u.new_tensor(by_rate)
