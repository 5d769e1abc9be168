"""The fused convolution, and the residual sum and slopes that it shares, against plain autograd in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn import conv
from hyco.models.hyperbolic.nn.conv_fused import Geometry, window_spread, window_sum
from hyco.models.hyperbolic.nn.functional import cheap_asinhc_slope, cheap_radial_slope, radial_and_time
from hyco.models.hyperbolic.ops import asinhc

# channels in and out, kernel, stride, padding, dilation, groups, bias, shape of the input
LAYERS = {
    "same": (8, 8, 3, 1, 1, 1, 1, True, (2, 8, 7, 9)),
    "stride": (8, 16, 3, 2, 1, 1, 1, True, (2, 8, 8, 7)),
    "no padding, no bias": (3, 8, 3, 1, 0, 1, 1, False, (2, 3, 7, 7)),
    "all uneven, groups": (6, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2, True, (3, 6, 7, 9)),
    "one tap, stride": (8, 8, 1, 2, 0, 1, 1, True, (2, 8, 7, 7)),
    "padding beyond the kernel": (8, 8, 3, 2, 4, 1, 1, True, (2, 8, 5, 5)),
    "stride beyond the kernel": (4, 8, 2, 3, 1, 1, 4, True, (2, 4, 8, 9)),
    "one position": (16, 16, 3, 1, 1, 1, 1, True, (2, 16, 1, 1)),
    "no images": (4, 4, 3, 1, 1, 1, 1, True, (0, 4, 5, 5)),
}


def off(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm().clamp(min=1e-300))


def same_in_float64(
    layer: nn.Module, inputs: list[Tensor], curvature: float, rest: float, last: bool = False
) -> None:
    """Output and all gradients of `layer` against its plain form in float64."""
    plain = copy.deepcopy(layer).double()
    plain.fused = False  # pyright: ignore[reportArgumentType]
    mine = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    got, want = layer(*mine), plain(*wide)
    assert not last or got.is_contiguous(memory_format=torch.channels_last)
    slope = torch.randn_like(want)
    got.backward(slope.to(got.dtype))
    want.backward(slope)
    assert off(got, want) < rest
    for a, b in zip(mine, wide, strict=True):
        assert a.grad is not None and b.grad is not None
        assert off(a.grad, b.grad) < rest
    for (name, a), b in zip(layer.named_parameters(), plain.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert off(a.grad, b.grad) < (curvature if "log_c" in name else rest), name


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", [1e-6, 0.3, 30.0])
@pytest.mark.parametrize(
    ("dtype", "rest", "curvature"), [(torch.float64, 1e-12, 1e-11), (torch.float32, 2e-5, 2e-3)]
)
def test_equals_plain_autograd(name, scale, dtype, rest, curvature):
    *sizes, bias, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = hnn.Conv2d(*sizes, bias=bias, c=Curvature(0.3, learnable=True), init="normal").to(dtype)
    with torch.no_grad():
        layer.weight.mul_(5)[0] = 0  # one hyperplane without a direction
        if layer.bias is not None:
            layer.bias.normal_()
    u = scale * torch.randn(shape, dtype=dtype)
    u[:1] = 0
    # The curvature's gradient of near points is a difference that leaves nothing of its terms.
    same_in_float64(layer, [u], curvature if scale > 1e-3 else float("inf"), rest)


def test_close_points_far_out():
    torch.manual_seed(0)
    layer = hnn.Conv2d(8, 8, 3, padding=1, c=1.0, init="normal", max_angle=6)
    u = 1.2 * torch.randn(8, 1, 1) + 1e-3 * torch.randn(2, 8, 7, 7)
    same_in_float64(layer, [u], 0, 2e-5)


def test_channels_last_stays():
    torch.manual_seed(0)
    layer = hnn.Conv2d(8, 16, 3, 2, 1, c=0.5, init="normal")
    u = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    same_in_float64(layer, [u], 0, 2e-5, last=True)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "weight bias", "input weight bias"])
def test_frozen_parts_get_no_gradient_and_change_no_other(frozen):
    torch.manual_seed(0)
    c = Curvature(0.5, learnable=True)
    layer = hnn.Conv2d(4, 6, 3, padding=1, c=c, init="normal").double()
    assert layer.bias is not None
    u = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    wanted = [x.requires_grad_() for x in (u, layer.weight, layer.bias, c.log_c)]
    whole = torch.autograd.grad(layer(u).square().sum(), wanted)
    parts = dict(zip(("input", "weight", "bias", "c"), wanted, strict=True))
    for part in frozen.split():
        parts[part].requires_grad_(False)
    left = [x for x in wanted if x.requires_grad]
    for x, slope in zip(left, torch.autograd.grad(layer(u).square().sum(), left), strict=True):
        want = next(w for y, w in zip(wanted, whole, strict=True) if y is x)
        assert torch.allclose(slope, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_window_spread_is_the_adjoint_of_window_sum(name):
    _, _, kernel, stride, padding, dilation, _, _, shape = LAYERS[name]
    windows = Geometry(*(conv.sizes("", n, 2, 0) for n in (kernel, stride, padding, dilation)))
    x = torch.randn(shape[0], 3, *shape[2:], dtype=torch.float64, requires_grad=True)
    out = window_sum(x, windows)
    want = nn.functional.conv2d(
        x, x.new_ones(3, 1, *windows.kernel), None, windows.stride, windows.padding, windows.dilation, 3
    )
    assert torch.allclose(out, want, rtol=1e-12)
    slope = torch.randn_like(out)
    (want,) = torch.autograd.grad(out, x, slope)
    assert torch.allclose(window_spread(slope, windows, shape[2:]), want, rtol=1e-12)


def test_kernel_too_large_says_which_padding_is_enough():
    with pytest.raises(
        ValueError, match=r"kernel of 3 with dilation 2 .* 3 positions of dimension 3.*padding=2"
    ):
        hnn.Conv2d(2, 2, 3, dilation=2, padding=(2, 0), c=1.0)(torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.3, 3.0, 40.0])
@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_residual_sum_equals_plain_autograd(scale, opposite, dtype):
    if opposite and scale > 1:
        pytest.skip("a sum of far, nearly opposite points is ill-conditioned in both")
    torch.manual_seed(0)
    layer = hnn.ResidualAdd(c=Curvature(0.3, learnable=True)).to(dtype)
    x = scale * torch.randn(4, 5, 3, 7, dtype=dtype)
    y = scale * torch.randn_like(x) if not opposite else scale * 1e-2 * torch.randn_like(x) - x
    x[0, :, 0] = y[0, :, 1] = 0
    x[1, :, 0] = y[1, :, 0] = 0
    exact = dtype == torch.float64
    # The curvature's gradient of near or opposite points is a difference that leaves little of its terms.
    curvature = 1e-7 if exact else 1e-2 if opposite else 5e-5
    curvature = float("inf") if scale < 1e-3 else curvature
    same_in_float64(layer, [x, y], curvature, 1e-11 if exact else 5e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cheap_slopes_are_off_by_a_rounding_unit_over_s(dtype):
    s = torch.logspace(-12, 2.5, 200, dtype=dtype)
    radial, time = radial_and_time(s, 6)
    for cheap, want in (
        (cheap_radial_slope(s, radial, time, 6), cheap_radial_slope(s, radial, time, 6, exact=True)),
        (cheap_asinhc_slope(s, asinhc(s)), cheap_asinhc_slope(s, asinhc(s), exact=True)),
    ):
        least = 8 * torch.finfo(dtype).eps / s
        assert ((cheap - want).abs() <= least * (1 + want.abs() * s) + 1e-5 * want.abs()).all()
