"""Attention between points: the hand-written backward against autograd, and float32 against float64."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn import attention_ops
from hyco.models.hyperbolic.nn.native import library

B, N, E, H = 2, 16, 64, 4


def run(layer, inputs, mask=None):
    """Output, slopes in the inputs and slopes in the parameters, of a fixed weighting of the outputs."""
    inputs = [u.clone().requires_grad_() for u in inputs]
    out = layer(*inputs, mask=mask)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.double).sin().view_as(out).to(out.dtype)
    slopes = torch.autograd.grad((out * weights).sum(), [*inputs, *layer.parameters()])
    return out, torch.cat([s.flatten() for s in slopes[: len(inputs)]]), slopes[len(inputs) :]


def off(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def shaken(layer):
    """Weights and offsets as after some training."""
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name != "c.log_c":
                value.add_(0.3 * torch.randn_like(value) / value.shape[-1] ** 0.5)
    return layer


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.7, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_hand_written_backward_equals_autograd(size, masked):
    torch.manual_seed(0)
    layer = shaken(hnn.MultiheadAttention(12, 3, c=Curvature(0.7, learnable=True))).double()
    plain = copy.deepcopy(layer)
    plain.fused = False
    inputs = [size * torch.randn(2, n, 12, dtype=torch.double) for n in (5, 7, 7)]
    mask = torch.rand(2, 1, 5, 7) > 0.4 if masked else None
    if mask is not None:
        mask[0, 0, 2] = False  # a row that may look nowhere averages all values
    ours, theirs = run(layer, inputs, mask), run(plain, inputs, mask)
    for got, want in zip((*ours[:2], *ours[2]), (*theirs[:2], *theirs[2]), strict=True):
        # At an angle of 12, float64 itself has fewer digits.
        assert (got - want).norm() <= (1e-10 if size < 4 else 1e-4) * (1e-3 + want.norm())


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.7, 4.0])
@pytest.mark.parametrize(("bias", "masked"), [(True, True), (False, False)])
def test_projections_of_the_same_points_equal_autograd(size, bias, masked):
    """Self-attention makes its three projections in one product."""
    torch.manual_seed(0)
    layer = shaken(hnn.MultiheadAttention(15, 3, bias=bias, c=Curvature(0.7, learnable=True))).double()
    with torch.no_grad():
        layer.key.weight[4] = 0  # a hyperplane without a direction
    plain = copy.deepcopy(layer)
    plain.fused = False
    for part in (plain.query, plain.key, plain.value, plain.out):
        part.fused = False
    inputs = [size * torch.randn(2, 7, 15, dtype=torch.double)]
    mask = torch.rand(7, 7) > 0.4 if masked else None
    ours, theirs = run(layer, inputs, mask), run(plain, inputs, mask)
    for got, want in zip((*ours[:2], *ours[2]), (*theirs[:2], *theirs[2]), strict=True):
        assert (got - want).norm() <= (1e-10 if size < 4 else 1e-4) * (1e-3 + want.norm())


@pytest.mark.parametrize("block", [1, 2 * 35, 3 * 35, 7 * 35])
def test_blocks_of_pairs_change_nothing(block, monkeypatch):
    """A head at a time; some heads of a batch item; a batch item; two of three items."""
    torch.manual_seed(0)
    layer = shaken(hnn.MultiheadAttention(12, 3)).double()
    inputs = [torch.randn(3, n, 12, dtype=torch.double) for n in (5, 7, 7)]
    mask = torch.rand(3, 3, 5, 7) > 0.4
    want = run(layer, inputs, mask)
    monkeypatch.setattr(attention_ops, "BLOCK", block)
    got = run(layer, inputs, mask)
    for a, b in zip((*got[:2], *got[2]), (*want[:2], *want[2]), strict=True):
        assert off(a, b.double()) < 1e-12


def test_near_points_are_multiplied_in_float32(monkeypatch):
    """Far ones, and those of a user who allows less precise products, in float64."""
    torch.manual_seed(0)
    monkeypatch.setattr(library, "library", lambda: None)  # the kernels take near points alone
    layer, seen = hnn.MultiheadAttention(12, 3), []
    mirror = attention_ops._mirror
    monkeypatch.setattr(attention_ops, "_mirror", lambda k: seen.append(k.dtype) or mirror(k))
    u = 0.5 * F.normalize(torch.randn(2, 5, 12), dim=-1)
    layer(u)
    far = shaken(hnn.MultiheadAttention(12, 3, max_angle=12))
    far(16 * u)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        layer(u)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [torch.float32, torch.float64, torch.float64]


@pytest.mark.parametrize("name", ["query", "value", "out"])
def test_hooks_and_replaced_projections_are_called(name):
    torch.manual_seed(0)
    layer, calls, u = hnn.MultiheadAttention(12, 3), [], torch.randn(2, 5, 12)
    want = layer(u)
    part = layer.get_submodule(name)
    handle = part.register_forward_hook(lambda *given: calls.append(name))
    assert torch.allclose(layer(u), want, atol=1e-5) and calls == [name]
    handle.remove()
    setattr(layer, name, torch.nn.Sequential(part))
    assert torch.allclose(layer(u), want, atol=1e-5)


def test_gradcheck_and_once_only():
    torch.manual_seed(0)
    layer = shaken(hnn.MultiheadAttention(4, 2, c=Curvature(0.7, learnable=True))).double()
    u = [torch.randn(1, n, 4, dtype=torch.double).requires_grad_() for n in (3, 2, 2)]
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(*tensors):
        given = dict(zip(names, tensors[3:], strict=True))
        return torch.func.functional_call(layer, given, tensors[:3])

    assert torch.autograd.gradcheck(call, (*u, *values), atol=1e-6, check_undefined_grad=False)
    with pytest.raises(RuntimeError, match="fused=False"):
        torch.autograd.grad(layer(*u).sum(), u[0], create_graph=True)


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kernels", [True, False])
def test_float32_is_float64_to_1e_4(c, trained, kernels, monkeypatch):
    """Layer-normalised features with the default initialisation were off by 3 to 10 %."""
    if not kernels:
        monkeypatch.setattr(library, "library", lambda: None)
    for norm, spread in itertools.product(("layer norm", 1e-3, 0.1, 1.0, 3.0), (None, 1.0, 0.1)):
        torch.manual_seed(0)
        u = torch.randn(B, N, E)
        u = u if spread is None else torch.randn(B, 1, E) + spread * u
        u = F.layer_norm(u, (E,)) if norm == "layer norm" else norm * F.normalize(u, dim=-1)
        layer = hnn.MultiheadAttention(E, H, c=c)
        layer = shaken(layer) if trained else layer
        (out, slope, _), (want_out, want, _) = (
            run(layer, [u]),
            run(copy.deepcopy(layer).double(), [u.double()]),
        )
        assert off(out, want_out) < 1e-5 and off(slope, want) < 1e-4, (norm, spread, off(slope, want))


@pytest.mark.parametrize("c", [0.1, 1.0, 3.0])
def test_points_that_nearly_coincide(c):
    """The outputs keep their digits; a gradient follows differences that the float32 projections have rounded."""
    for norm, spread in itertools.product((1e-3, 0.1, 1.0, 8.0), (0.0, 1e-4, 1e-2)):
        torch.manual_seed(0)
        u = norm * F.normalize(torch.randn(B, 1, E) + spread * torch.randn(B, N, E), dim=-1)
        layer = hnn.MultiheadAttention(E, H, c=c)
        (out, slope, rest), (want, wide, _) = (
            run(layer, [u]),
            run(copy.deepcopy(layer).double(), [u.double()]),
        )
        assert all(t.isfinite().all() for t in (out, slope, *rest))
        assert off(out, want) < 1e-4, (norm, spread)
        if spread == 1e-2:
            assert off(slope, wide) < 1e-4, (norm, off(slope, wide))


@pytest.mark.parametrize("width", [1, 16, 33])
def test_angles_of_pairs(width):
    """Rows of equal pairs have shares of 1: their slopes are angle / sinh(angle), the slope in the scale angle^2."""
    if library.library() is None:
        pytest.skip("no C++ compiler")
    values = torch.cat(
        [torch.tensor([-1e-6, 0, 1e-30, 1e-7, 3.9, 4, 4.1]), torch.logspace(-3, 3.5, 200), torch.rand(50) * 8]
    )
    beyond = values.clamp(min=0).double()
    share, scale = values[:, None].repeat(1, width).contiguous(), torch.ones(1)
    slope, by_scale = torch.ones_like(share), torch.empty(len(values))
    pointers = (library.address(t) for t in (share, slope, by_scale, scale, None))
    library.kernels().share_slopes(*pointers, 0, 1, 1, len(values), width, 0, 0, 0, 0)
    square = torch.log1p(beyond + (beyond * (beyond + 2)).sqrt()).square()
    ratio = torch.where(beyond > 0, (square / (beyond * (beyond + 2)).clamp(min=1e-60)).sqrt(), 1.0)
    assert torch.equal(share, torch.ones_like(share))
    torch.testing.assert_close(by_scale.double(), width * square, rtol=5e-7, atol=1e-12)
    torch.testing.assert_close(slope.double(), ratio[:, None].expand_as(share), rtol=5e-7, atol=0)


def test_angles_of_near_and_far_pairs_in_one_row():
    if library.library() is None:
        pytest.skip("no C++ compiler")
    share, scale = torch.tensor([0.0, 2.0, 100.0, 3.0]), torch.full((1,), 0.1)
    slope, by_scale, beyond = torch.ones_like(share), torch.empty(1), share.double()
    pointers = (library.address(t) for t in (share, slope, by_scale, scale, None))
    library.kernels().share_slopes(*pointers, 0, 1, 1, 1, 4, 0, 0, 0, 0)
    square = torch.acosh(1 + beyond).square()
    ratio = torch.where(beyond > 0, (square / (beyond * (beyond + 2)).clamp(min=1)).sqrt(), 1.0)
    torch.testing.assert_close(share.double(), (-0.05 * square).exp(), rtol=2e-6, atol=0)
    torch.testing.assert_close(slope.double(), share.double() * ratio, rtol=1e-6, atol=0)
