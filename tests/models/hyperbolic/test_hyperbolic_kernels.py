"""The C++ kernels of attention: the numbers of plain torch, and plain torch where they cannot be had."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.native import attention, library
from hyco.models.hyperbolic.nn.projection_ops import project


@pytest.fixture(scope="module")
def found():
    """Skip where the kernels cannot be had; a first test builds them."""
    if library.library() is None:
        pytest.skip("no C++ compiler for this processor")


built = pytest.mark.usefixtures("found")


def run(layer, inputs, mask=None):
    """Output, slopes in the inputs and in the parameters."""
    inputs = [u.clone().requires_grad_() for u in inputs]
    out = layer(*inputs, mask=mask)
    weights = torch.linspace(-9, 9, out.numel(), dtype=torch.double).sin().view_as(out).to(out.dtype)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), [*inputs, *layer.parameters()])


def assert_same(got, want, bound):
    """To a fraction of each tensor's norm, or of 1 % of the largest norm: some slopes are small sums of large terms."""
    least = max(b.double().norm() for b in want) / 100
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        off = (a.double() - b.double()).norm() / b.double().norm().clamp(min=least)
        assert a.shape == b.shape and off < bound, (i, float(off))


def masks(b, n, m):
    """None; by query and key, with a row that may look nowhere; by key; by query; of all dimensions."""
    torch.manual_seed(1)
    pairs = torch.rand(n, m) > 0.4
    pairs[1] = False
    yield from (None, pairs, torch.rand(b, 1, 1, m) > 0.4, torch.rand(n, 1) > 0.4)
    yield (torch.rand(m, n, 3, b) > 0.4).permute(3, 2, 1, 0)


@built
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.4, 1.5])
@pytest.mark.parametrize(("heads", "dim"), [(3, 4), (3, 5), (1, 33), (3, 16)])
def test_kernels_have_the_numbers_of_plain_torch(heads, dim, size, monkeypatch):
    """And of float64; sizes that are no multiple of a vector, and points at the cap of the projections."""
    torch.manual_seed(0)
    e = heads * dim
    layer = hnn.MultiheadAttention(e, heads, c=Curvature(0.2, True), bias=dim != 4, max_angle=1)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name != "c.log_c":
                value.add_(0.1 * torch.randn_like(value) / value.shape[-1] ** 0.5)
        layer.key.weight[1] = 0  # a hyperplane without a direction
    wide, calls, outputs = copy.deepcopy(layer).double(), [], attention.outputs
    monkeypatch.setattr(attention, "outputs", lambda *a: calls.append(outputs(*a)) or calls[-1])
    for kind, mask in enumerate(masks(2, 5, 7) if heads == 3 else [None]):
        u = [size * nn.functional.normalize(torch.randn(2, n, e), dim=-1) for n in (5, 7, 7)]
        for inputs in ([u[0]], u) if mask is None else (u,):
            calls.clear()
            got = run(layer, inputs, mask)
            assert len(calls) == 1 and calls[0] is not None  # near points
            assert_same(got, run(wide, [x.double() for x in inputs], mask), 2e-5)
            if kind < 2:
                with monkeypatch.context() as off:
                    off.setattr(library, "library", lambda: None)
                    assert_same(got, run(layer, inputs, mask), 2e-5)


@built
@pytest.mark.parametrize("block", [1, 2 * 35, 4 * 35])
def test_blocks_of_heads_change_nothing(block, monkeypatch):
    torch.manual_seed(0)
    layer = hnn.MultiheadAttention(12, 3)
    inputs, mask = [0.3 * torch.randn(3, n, 12) for n in (5, 7, 7)], torch.rand(3, 3, 5, 7) > 0.4
    want = run(layer, inputs, mask)
    monkeypatch.setattr(attention, "BLOCK", block)
    assert_same(run(layer, inputs, mask), want, 1e-6)


@built
def test_threads_change_nothing():
    torch.manual_seed(0)
    layer, u, before = hnn.MultiheadAttention(64, 4, c=Curvature(0.7, True)), 0.2 * torch.randn(4, 65, 64), 1
    try:
        before = torch.get_num_threads()
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(layer, [u]))
    finally:
        torch.set_num_threads(before)
    assert_same(results[1], results[0], 1e-5)
    assert_same(results[2], results[0], 1e-5)


@built
def test_far_points_and_nan_are_left_to_plain_torch(monkeypatch):
    torch.manual_seed(0)
    layer, said, outputs = hnn.MultiheadAttention(12, 3, max_angle=12), [], attention.outputs
    monkeypatch.setattr(attention, "outputs", lambda *a: said.append(outputs(*a)) or said[-1])
    u = torch.randn(2, 5, 12)
    layer(16 * u)
    u[1, 2, 3] = torch.nan
    out = layer(0.1 * u)
    assert said == [None, None] and out[1].isnan().all() and out[0].isfinite().all()


@built
def test_sizes_that_do_not_fit_are_named_by_torch():
    layer, u = hnn.MultiheadAttention(12, 3), torch.zeros(2, 5, 12)
    for key, value in ((u[:1], u[:1]), (u, u[:, :4])):
        with pytest.raises(RuntimeError):
            layer(u, key, value)
    with pytest.raises(RuntimeError):
        layer(u, mask=torch.ones(4, 4, dtype=torch.bool))
    layer.out.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(RuntimeError):
        layer(u)


def test_only_real_tensors_are_taken():
    u = torch.randn(2, 3)
    assert library.concrete(u, None, nn.Parameter(u))
    assert not any(
        map(library.concrete, (u.double(), u[:0], u.to("meta"), torch._neg_view(u), u.to_sparse()))
    )
    with FlopCounterMode(display=False):
        assert not library.concrete(u)
    torch.func.vmap(lambda x: [x, [] if not library.concrete(u) else pytest.fail("vmap")][0])(u)


@built
def test_a_traced_projection_computes_with_the_inputs_that_it_is_given():
    torch.manual_seed(0)
    u, weight = torch.randn(2, 5, 12), torch.randn(6, 12)
    traced = make_fx(lambda x: project(x, weight, None, 0.7, 2, 3))(u[0])
    torch.testing.assert_close(traced(u[1]), project(u[1], weight, None, 0.7, 2, 3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reason", ["switch", "no compiler", "missing", "fails", "no folder"])
def test_plain_torch_where_they_cannot_be_had(reason, monkeypatch, tmp_path):
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if reason == "switch":
        monkeypatch.setenv(library.SWITCH, "0")
    elif reason == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif reason == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("HYCO_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("CXX", "false" if reason == "fails" else str(tmp_path / "absent"))
    assert library.library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))


@built
@pytest.mark.slow
def test_builds_at_the_same_time_leave_one_library(monkeypatch, tmp_path):
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        libraries = [task.result() for task in [pool.submit(library.library.__wrapped__) for _ in range(2)]]
    assert all(libraries)
    assert [f.suffix for f in (tmp_path / "kernels").iterdir()] == [".so"]


@built
@pytest.mark.slow
def test_kernels_for_avx2():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-k", "numbers or threads"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout


@pytest.mark.slow
def test_import_builds_nothing(tmp_path):
    code = "import hyco.models.hyperbolic.nn as n; from hyco.models.hyperbolic.nn.native.library import library as l"
    environment = {**os.environ, "HYCO_CACHE": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", f"{code}; assert not l.cache_info().currsize"], env=environment, check=True
    )
    assert not list(tmp_path.iterdir())


@built
@pytest.mark.parametrize("kept", [0, 5_000, -100])
def test_a_library_that_was_cut_off_is_built_again(kept, monkeypatch, tmp_path):
    """Loading it would end the process. A library without the hash, or of other content, is built again too."""
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    builds = []

    def build(command, **options):
        builds.append(Path(command[-4]))
        builds[-1].write_bytes(b"a library " * 2_000)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(library.subprocess, "run", build)
    file = library._built("")
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    assert library._built("") == file and file.read_bytes() == whole and len(builds) == 2
    assert library._built("") == file and len(builds) == 2


@built
def test_a_built_library_is_intact_and_loads(monkeypatch):
    flags = library.FLAGS[torch.backends.cpu.get_cpu_capability()]
    assert library._intact(library._built(flags))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("b", "n", "m"), [(0, 5, 5), (2, 0, 0), (2, 0, 4), (0, 3, 4)])
def test_no_queries_have_no_outputs(b, n, m, fused):
    layer = hnn.MultiheadAttention(12, 3, fused=fused)
    inputs = [torch.zeros(b, n, 12)] if n == m else [torch.zeros(b, k, 12) for k in (n, m, m)]
    for mask in (None, torch.ones(n, m, dtype=torch.bool)):
        out, *slopes = run(layer, inputs, mask)
        assert out.shape == (b, n, 12)
        assert all(not slope.any() for slope in slopes)
