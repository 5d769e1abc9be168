"""The C++ kernels of convolutions, batch norms and residual sums: the numbers of plain torch and of float64."""

import contextlib
import copy
import ctypes
import os
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn import batchnorm_near
from hyco.models.hyperbolic.nn.batchnorm_fused import batch_norm_fused
from hyco.models.hyperbolic.nn.batchnorm_ops import Statistics, batch_norm
from hyco.models.hyperbolic.nn.native import batchnorm, convolution, library, residual
from hyco.models.hyperbolic.nn.residual import residual_add


@pytest.fixture(autouse=True)
def found():
    """Skip where the kernels cannot be had; a first test builds them."""
    if library.library() is None:
        pytest.skip("no C++ compiler for this processor")


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels' forward passes that ran, in order."""
    names: list[str] = []

    def counted(name: str, inner: Callable) -> Callable:
        return lambda *arguments: names.append(name) or inner(*arguments)

    for module, function in ((convolution, "respond"), (batchnorm, "forward"), (residual, "outputs")):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, function, counted(name, getattr(module, function)))
    return names


def run(layer: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Output, running statistics, slopes in the inputs and in the parameters."""
    layer = copy.deepcopy(layer)
    inputs = [u.detach().clone(memory_format=torch.preserve_format).requires_grad_() for u in inputs]
    out = layer(*inputs)
    weights = torch.linspace(-9, 9, out.numel(), dtype=torch.double).sin().view(out.shape).to(out.dtype)
    slopes = torch.autograd.grad((out * weights).sum(), [*inputs, *layer.parameters()])
    return out.detach(), *(b for b in layer.buffers() if b.is_floating_point()), *slopes


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], bound: float) -> None:
    """To a fraction of each tensor's norm, or of 1 % of the largest norm: some slopes are small sums of large terms."""
    least = max(b.double().norm() for b in want) / 100
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        off = (a.double() - b.double()).norm() / b.double().norm().clamp(min=least)
        assert a.shape == b.shape and off < bound, (i, float(off))


def near_other_ways(layer: nn.Module, inputs: list[Tensor], monkeypatch, bound: float = 3e-5) -> None:
    """With kernels as without, and as plain autograd in float64."""
    got = run(layer, inputs)
    with monkeypatch.context() as off:
        off.setattr(library, "library", lambda: None)
        assert_same(got, run(layer, inputs), bound)
    wide = copy.deepcopy(layer).double()
    wide.fused = False  # pyright: ignore[reportArgumentType]
    assert_same(got, run(wide, [u.double() for u in inputs]), bound)


SPACES = [(1,), (7,), (4, 4), (5, 13), (9, 8), (3, 5, 6)]
CONVOLUTIONS = {1: hnn.Conv1d, 2: hnn.Conv2d, 3: hnn.Conv3d}


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.3, 3.0])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "bias"),
    [(3, 1, 1, 1, 1, True), (3, 2, 1, 1, 2, False), (1, 1, 0, 1, 3, True), (2, 3, 2, 2, 1, True)],
)
def test_convolutions(space, size, kernel, stride, padding, dilation, groups, bias, calls, monkeypatch):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[len(space)](
        6, 12, kernel, stride, padding, dilation, groups, bias, c=Curvature(0.2, True), init="normal"
    )
    with torch.no_grad():
        layer.weight.mul_(3)[1] = 0  # a hyperplane without a direction
        if layer.bias is not None:
            layer.bias.normal_()
    near_other_ways(layer, [size * torch.randn(3, 6, *space)], monkeypatch)
    assert calls == ["convolution"]


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.3, 3.0])
@pytest.mark.parametrize("space", [(), *SPACES[1:5]])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_batch_norms(space, size, trained, momentum, calls, monkeypatch):
    torch.manual_seed(0)
    kind = hnn.BatchNorm2d if len(space) == 2 else hnn.BatchNorm1d
    layer = kind(5, momentum=momentum, c=Curvature(0.2, True), eps=1e-3).train(trained)
    assert layer.bias is not None and layer.running_mean is not None
    with torch.no_grad():
        layer.bias.normal_().mul_(0.3)
        layer.running_mean.normal_().mul_(0.2)
    x = size * torch.randn(33, 5, *space) + size / 3
    near_other_ways(layer, [x], monkeypatch)
    assert calls == ["batchnorm"]


def test_clusters_far_out_take_the_other_form(calls, monkeypatch):
    torch.manual_seed(0)
    layer, near = hnn.BatchNorm2d(8), []
    monkeypatch.setattr(
        batchnorm_near, "forward", lambda *a, inner=batchnorm_near.forward: near.append(1) or inner(*a)
    )
    run(layer, [2 + 1e-3 * torch.randn(4, 8, 5, 5)])
    assert calls == ["batchnorm"] and near == [1]
    run(layer, [0.3 * torch.randn(4, 8, 5, 5)])
    assert len(calls) == 2 and near == [1]


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.3, 3.0])
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 6, 7), 1), ((2, 5, 4, 9), 1), ((2, 5, 4, 9), -2), ((4, 33), 0)]
)
def test_residual_sums(shape, dim, size, calls, monkeypatch):
    torch.manual_seed(0)
    layer = hnn.ResidualAdd(dim, c=Curvature(0.2, True))
    x = size * torch.randn(shape)
    for y in (size * torch.randn(shape), -x, torch.zeros(shape)):
        if size > 1 and torch.equal(y, -x):  # of such a sum float32 has no digit in any form
            continue
        calls.clear()
        # Far out the slope in the curvature is a sum of terms that cancel: plain torch misses 3e-5 more often.
        near_other_ways(layer, [x, y], monkeypatch, 1e-4 if size > 1 else 3e-5)
        assert calls == ["residual"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    c = Curvature(0.3, True)
    return nn.Sequential(hnn.Conv2d(4, 8, 3, padding=1, c=c), hnn.BatchNorm2d(8, c=c))


@pytest.mark.parametrize("order", ["channels last", "every other", "transposed", "slope of one number"])
def test_other_orders_of_memory(order, calls, monkeypatch):
    layer, u = network(), 0.3 * torch.randn(3, 4, 7, 6)
    want = run(layer, [u])
    views = {
        "channels last": u.contiguous(memory_format=torch.channels_last),
        "every other": u.repeat_interleave(2, -1)[..., ::2],
        "transposed": u.mT.contiguous().mT,
        "slope of one number": u,
    }
    x = views[order].detach().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-9, 9, out.numel(), dtype=torch.double).sin().view(out.shape).float()
    if order == "slope of one number":
        weights = torch.tensor(0.5).expand_as(out)
        contiguous = torch.autograd.grad(out, x, weights.contiguous(), retain_graph=True)
        assert_same(torch.autograd.grad(out, x, weights), contiguous, 1e-6)
    else:
        (slope,) = torch.autograd.grad(out, x, weights)
        assert_same((out.detach(), slope), (want[0], want[4]), 1e-5)
    assert calls[-2:] == ["convolution", "batchnorm"]


def test_threads_change_nothing():
    layer, u, before = network(), 0.3 * torch.randn(16, 4, 33, 17), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = run(layer, [u])[0]
            results.append((*run(layer, [u]), *run(hnn.ResidualAdd(c=0.3), [x, 0.5 * x.flip(0)])))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        # The slope of the bias before the batch norm is a small sum of large terms: all forms in float32 are some 1e-5
        # off float64.
        assert_same(result[6:7], results[0][6:7], 1e-4)
        assert_same((*result[:6], *result[7:]), (*results[0][:6], *results[0][7:]), 1e-5)


def test_only_wanted_slopes_are_computed():
    layer, u = network()[0], 0.3 * torch.randn(3, 4, 7, 6)
    want = run(layer, [u])
    out = layer(u)  # images need no slope
    weights = torch.linspace(-9, 9, out.numel(), dtype=torch.double).sin().view(out.shape).float()
    assert_same(torch.autograd.grad((out * weights).sum(), list(layer.parameters())), want[2:], 1e-5)
    layer.requires_grad_(False)
    x = u.requires_grad_()
    assert_same(torch.autograd.grad((layer(x) * weights).sum(), [x]), want[1:2], 1e-5)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_biases_in_other_orders_of_memory(norm, apart, calls):
    torch.manual_seed(0)
    layer, u = network()[int(norm)], 0.3 * torch.randn(3, 8 if norm else 4, 7, 6)
    base = 0.3 * torch.randn(8, 5 if apart else 1)
    results = []
    for order in (lambda b: b[:, -1], lambda b: b[:, -1].contiguous()):
        del layer.bias
        x = base[-1:].clone().requires_grad_() if not apart else base.clone().requires_grad_()
        layer.bias = order(x if apart else x.expand(8, 1))
        out = layer(u)
        results.append((out.detach(), *torch.autograd.grad((out * out[:1]).sum(), x)))
    assert len(calls) == 2
    assert_same(results[0], results[1], 1e-6)


def test_biases_of_other_sizes_are_not_read_beyond_their_end(calls):
    conv, norm = network()
    conv.bias, norm.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for layer, width in ((conv, 4), (norm, 8)):
        with pytest.raises(RuntimeError, match="size"):
            layer(torch.ones(2, width, 6, 6))
    assert not calls


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 5, 6), (3, 4, 1, 6)])
def test_residual_sums_broadcast(shape):
    torch.manual_seed(0)
    x, y = (0.3 * torch.randn(size, requires_grad=True) for size in ((3, 4, 5, 6), shape))
    for one, other in ((x, y), (y, x)):
        results = []
        for fused in (True, False):
            out = residual_add(one, other, 0.7, fused=fused)
            results.append(
                (out.detach(), *torch.autograd.grad((out * out[:1]).sum(), (x, y), retain_graph=True))
            )
        assert_same(results[0], results[1], 1e-5)


def test_a_running_mean_with_gaps():
    layer, u = hnn.BatchNorm2d(4), 0.2 + 0.3 * torch.randn(3, 4, 5, 6)
    other = copy.deepcopy(layer)
    other.running_mean = torch.zeros(4, 7)[:, 3]
    layer(u)
    other(u)
    assert layer.running_mean is not None
    torch.testing.assert_close(other.running_mean, layer.running_mean)


def test_saved_tensors_that_come_back_in_another_order():
    layer, u = network(), 0.3 * torch.randn(3, 4, 7, 6)
    turned = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.transpose(0, -1).contiguous() if t.dim() else t,
        lambda t: t.transpose(0, -1) if t.dim() else t,
    )
    results = []
    for hooks in (contextlib.nullcontext(), turned):
        x = u.clone().requires_grad_()
        with hooks:
            out = layer(x)
            out = residual_add(out, out.flip(0), 0.7)
        results.append(torch.autograd.grad((out * out[:1]).sum(), x))
    assert_same(results[1], results[0], 1e-5)


def test_everything_else_goes_the_plain_way(calls):
    layer, u = network(), 0.3 * torch.randn(3, 4, 6, 6)
    add = hnn.ResidualAdd(c=0.3)
    layer.double()(u.double())
    add(u.double(), u.double())
    add(u, u.transpose(2, 3))
    hnn.ResidualAdd(-1, c=0.3)(u, u)  # coordinates side by side
    layer.float()
    empty = run(layer[0], [u[:0]])
    assert empty[0].shape == (0, 8, 6, 6) and not any(slope.any() for slope in empty[1:])
    assert layer[1](u[:0].repeat(1, 2, 1, 1)).shape == (0, 8, 6, 6)
    assert add(u[:0], u[:0]).shape == u[:0].shape
    parameters: dict[str, Tensor] = dict(layer[0].named_parameters())
    torch.func.vmap(lambda x: torch.func.functional_call(layer[0], parameters, (x,)))(u[None])
    torch.func.vmap(add)(u, u)
    layer.requires_grad_(False)
    traced, exported = make_fx(layer[0])(u), torch.export.export(layer.eval(), (u,)).module()
    assert not calls
    torch.testing.assert_close(traced(u + 0.1), layer[0](u + 0.1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(exported(u), layer(u), atol=1e-5, rtol=1e-4)
    assert calls == ["convolution", "convolution", "batchnorm"]  # the eager ones


def test_nan_is_passed_on():
    layer, u = network(), 0.3 * torch.randn(3, 4, 6, 6)
    u[1, 2, 3, 3] = torch.nan
    assert layer[0](u)[1].isnan().any() and not layer[0](u)[0].isnan().any()
    assert layer(u).isnan().all()
    out = hnn.ResidualAdd(c=0.3)(u, torch.ones_like(u))
    assert torch.equal(out.isnan().any(1), u.isnan().any(1))


def test_running_statistics_are_marked_as_changed():
    """As torch's own operations in place do, so that autograd refuses a graph that has used them."""
    layer, u = hnn.BatchNorm2d(4, c=Curvature(0.3, True)), 0.3 * torch.randn(3, 4, 6, 6)
    out = layer.eval()(u)
    layer.train()(u)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_slopes_of_given_statistics(calls):
    torch.manual_seed(0)
    x, bias = 0.3 * torch.randn(2, 5, 9), 0.1 * torch.randn(5)
    results = []
    for function in (batch_norm_fused, batch_norm):
        mean = (0.1 * torch.ones(5, dtype=torch.double)).requires_grad_()
        spread = torch.tensor(0.4, requires_grad=True)
        out, _ = function(x, bias, torch.tensor(0.5), 1e-5, 0.7, Statistics(mean, spread))
        results.append(torch.autograd.grad(out.square().sum() + out[0].sum(), (mean, spread)))
    assert calls == ["batchnorm"]
    assert_same(results[0], results[1], 1e-5)


def test_folders_of_killed_builds_are_deleted(monkeypatch, tmp_path):
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    cache = library.cache_folder()
    old, new, other = cache / "tmpold", cache / "tmpnew", cache / "kernels-1.so"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "kernels.so").write_text("")
    other.write_text("")
    past = time.time() - 3 * library.SECONDS
    for path in (old, other):
        os.utime(path, (past, past))
    assert library.library.__wrapped__() is None
    assert sorted(cache.iterdir()) == sorted([new, other])


def test_a_changed_header_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path / "cache"))
    source, header = tmp_path / "kernels.cpp", tmp_path / "answer.h"
    source.write_text('#include "answer.h"\nextern "C" long answer() { return ANSWER; }\n')
    for number in (1, 2):
        header.write_text(f"#define ANSWER {number}\n")
        made = library.load(source, {"answer": (ctypes.c_long, [])})
        assert made is not None and made.answer() == number
