"""Torch's own tools on every layer, beside torch's own layer: torch.func, forward mode, fx, export, ONNX, dynamic.

What ours cannot do stands in LIMITS, with torch's own layer failing too, and docs/coming-from-hypll.md says the same.
"""

import contextlib
import copy
import inspect
import io
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import skip_init

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic import ops
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.optim import RiemannianAdam, parameter_groups
from tests.models.hyperbolic.test_hyperbolic_modules import MODULES, loss_of, make


def weighed(out):
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def pure(module):
    """The module as a function of parameters and input; running statistics start afresh in every call."""

    def call(parameters, x):
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return call_with(module, (parameters, buffers), x)

    return call


def call_with(module, state, x):
    """Tied weights are ties between modules; a shared Curvature is one module, which torch would not put back."""
    return functional_call(module, state, (x,), tie_weights=False)


def leaves(module, x):
    """Parameters and, where it can have a gradient, the input."""
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    return (found, x) if x.is_floating_point() else (found,)


def at(call, x):
    """`call` as a function of what `leaves` gives."""
    return lambda parameters, u=x: call(parameters, u)


def slopes(function, arguments):
    """Gradients by plain autograd."""
    arguments = torch.utils._pytree.tree_map(lambda t: t.clone().requires_grad_(), arguments)
    flat = torch.utils._pytree.tree_leaves(arguments)
    found = torch.autograd.grad(weighed(function(*arguments)), flat, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(flat, found, strict=True)]


def same(found, wanted, rtol=1e-9):
    """Every tensor of two trees agrees, to rtol of its largest number."""
    pairs = zip(*(torch.utils._pytree.tree_leaves(side) for side in (found, wanted)), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= rtol * b.abs().max().clamp(min=1e-3)


def func_grad(module, x):
    function, arguments = at(pure(module), x), leaves(module, x)
    found = grad(lambda *a: weighed(function(*a)), argnums=tuple(range(len(arguments))))(*arguments)
    same(found, slopes(function, arguments))


def func_vmap(module, x):
    call, (parameters, *_) = pure(module), leaves(module, x)
    many = torch.stack([x, x.flip(0), x])
    same(vmap(call, in_dims=(None, 0))(parameters, many), torch.stack([call(parameters, u) for u in many]))
    if parameters:  # the gradient of every sample
        each = vmap(grad(lambda p, u: weighed(call(p, u[None]))), in_dims=(None, 0))(parameters, x)
        same([g[1] for g in each.values()], slopes(lambda p: call(p, x[1:2]), (parameters,)))


def func_ensemble(module, x):
    other = copy.deepcopy(module)
    for p in other.parameters():
        p.data.mul_(1.1)
    parameters, buffers = stack_module_state([module, other])
    if parameters:
        found = vmap(lambda *state: call_with(module, state, x))(parameters, buffers)
        same(found, torch.stack([module(x), other(x)]))


def func_jacrev(module, x):
    function, arguments = at(pure(module), x), leaves(module, x)
    last = len(arguments) - 1
    jacobian = jacrev(function, argnums=last)(*arguments)
    by_rows = jacfwd(function, argnums=last)(*arguments)
    same(by_rows, jacobian)
    if last:
        plain = torch.autograd.functional.jacobian(lambda u: function(arguments[0], u), x)
        same(jacobian, plain)


def func_jvp(module, x):
    function, arguments = at(pure(module), x), leaves(module, x)
    along = torch.utils._pytree.tree_map(
        lambda t: torch.linspace(0.1, 1, t.numel()).view_as(t).to(t), arguments
    )
    out, tangent = jvp(function, arguments, along)
    expected = sum((g * v).sum() for g, v in zip(slopes(function, arguments), flat(along), strict=True))
    same(weighed(tangent), expected)
    with forward_ad.dual_level():  # the same without torch.func
        dual = torch.utils._pytree.tree_map(forward_ad.make_dual, arguments, along)
        same(forward_ad.unpack_dual(function(*dual)).tangent, tangent)
    same(out, function(*arguments))


def func_hessian(module, x):
    function, arguments = at(pure(module), x), leaves(module, x)
    last = len(arguments) - 1

    def loss(*a):
        return weighed(function(*a))

    same(
        hessian(loss, argnums=last)(*arguments), jacrev(jacrev(loss, argnums=last), argnums=last)(*arguments)
    )


def flat(tree):
    return torch.utils._pytree.tree_leaves(tree)


def fx_trace(module, x):
    traced = fx.symbolic_trace(nn.Sequential(copy.deepcopy(module), nn.Identity()))
    same(traced(x), module(x))
    again = copy.deepcopy(traced)
    same(again(x), traced(x))


def meta_build(module, x):
    empty = copy.deepcopy(module).to("meta")
    assert all(t.is_meta for t in empty.state_dict().values())
    assert x.to("meta").is_meta and empty(x.to("meta")).shape == module(x).shape
    empty.to_empty(device="cpu").load_state_dict(module.state_dict())
    same(empty.eval()(x), module.eval()(x))


TOOLS = {
    "func.grad": func_grad,
    "func.vmap": func_vmap,
    "func.vmap of an ensemble": func_ensemble,
    "func.jacrev, jacfwd": func_jacrev,
    "func.jvp, forward_ad": func_jvp,
    "func.hessian": func_hessian,
    "fx.symbolic_trace": fx_trace,
    "meta device": meta_build,
}
LIMITS = {
    ("func.vmap", "BatchNorm1d"): lambda: nn.BatchNorm1d(4),
    ("func.vmap", "BatchNorm2d"): lambda: nn.BatchNorm2d(4),
}
"""(tool, layer) that fail in training, where running statistics would be updated in place; torch's layer fails too."""


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", MODULES)
def test_torch_tools_work_where_they_do_on_torch_layers(name, tool):
    module, x = make(name)
    control = LIMITS.get((tool, name))
    for training in (True, False):
        inputs = x.double() if x.is_floating_point() else x
        ours = works(tool, module.double().train(training), inputs)
        if training and control:
            assert ours and works(tool, control().double(), inputs)
        else:
            assert not ours, ours
        if not list(module.buffers()):
            break


def works(tool, module, inputs):
    """None, or what went wrong."""
    try:
        TOOLS[tool](module, inputs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


class Everything(nn.Module):
    """Every kind of layer, with one learnable curvature."""

    def __init__(self):
        super().__init__()
        self.c = c = Curvature(0.5, learnable=True)
        self.first = nn.Sequential(hnn.Conv2d(3, 4, 3, padding=1, c=c), hnn.BatchNorm2d(4, c=c), hnn.ReLU())
        self.second, self.add = hnn.Conv2d(4, 4, 3, padding=1, c=c), hnn.ResidualAdd(c=c)
        self.up = hnn.ConvTranspose2d(4, 4, 2, stride=2, c=c)
        self.pool, self.act = hnn.AvgPool2d(2, c=c), hnn.LorentzActivation(torch.relu, c=c)
        self.grid, self.words = hnn.AdaptiveAvgPool2d(2, c=c), hnn.MultiheadAttention(4, 2, c=c)
        self.head = nn.Sequential(hnn.Flatten(point_dim=2), hnn.Linear(16, 8, c=c), hnn.MLR(8, 3, c=c))

    def forward(self, x):
        x = self.first(x)
        x = self.act(self.pool(self.up(self.add(x, self.second(x)))))
        return self.head(self.words(self.grid(x).flatten(2).transpose(1, 2)))


def everything():
    torch.manual_seed(0)
    return Everything(), torch.randn(2, 3, 6, 6) * 0.4


def small():
    torch.manual_seed(0)
    c = Curvature(0.5, learnable=True)
    layers = (
        hnn.Linear(4, 6, c=c),
        hnn.BatchNorm1d(6, c=c),
        hnn.ReLU(),
        hnn.Linear(6, 4, c=c),
        hnn.MLR(4, 3, c=c),
    )
    return nn.Sequential(*layers), torch.randn(3, 4) * 0.4


def two_of_a_kind():
    torch.manual_seed(0)
    c = Curvature(0.5, learnable=True)
    return nn.Sequential(hnn.Linear(4, 6, c=c), hnn.ReLU(), hnn.Linear(6, 3, c=c)), torch.randn(3, 4) * 0.4


# The net of all layers takes minutes.
NETS = pytest.mark.parametrize("net", [small, pytest.param(everything, marks=pytest.mark.slow)])


def exported(module, x, strict):
    module.eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (x,), dynamic_shapes=(batch,), strict=strict)
    more = torch.cat([x, x, x.flip(0)])
    same(program.module()(more), module(more), 1e-5)


@NETS
@pytest.mark.parametrize("strict", [True, False])
def test_a_net_with_a_shared_curvature_exports(strict, net):
    exported(*net(), strict)


def test_attention_exports_for_any_batch_size_without_strict():
    """len(tensor) makes the batch a constant there; the tests marked slow try every layer."""
    exported(*make("MultiheadAttention"), False)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_exports(name, strict):
    exported(*make(name), strict)


@contextlib.contextmanager
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def to_onnx(module, x, path: Path):
    import onnxruntime

    module.eval()
    with torch.no_grad(), quiet():
        torch.onnx.export(module, (x,), dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1e-6, 1e-2, 1.0, 6.0):
        given = x * size if x.is_floating_point() else x
        found = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0]
        wanted = module(given).detach()
        assert (torch.from_numpy(found) - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@NETS
def test_a_net_goes_to_onnx(net, tmp_path):
    """No translation table is needed; near zero too, where ONNX has no log1p."""
    to_onnx(*net(), tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_goes_to_onnx(name, tmp_path):
    to_onnx(*make(name), tmp_path / "layer.onnx")


def compiled_dynamic(module, x, backend):
    torch._dynamo.reset()
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for times in (1, 2, 3):
        sides = []
        for net in (compiled, twin):
            net.zero_grad()
            u = torch.cat([x] * times)
            u = u.requires_grad_() if u.is_floating_point() else u
            loss = loss_of(net, u)
            if loss.requires_grad:
                loss.backward()
            sides.append([loss.detach(), u.grad, *(p.grad for p in net.parameters())])
        for a, b in zip(*sides, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "net", [two_of_a_kind, *(pytest.param(n, marks=pytest.mark.slow) for n in (small, everything))]
)
def test_a_net_compiles_for_any_batch_size(net):
    """Two layers of a kind: floats of a module become inputs of the graph, once, under dynamic=True."""
    compiled_dynamic(*net(), "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_compiles_for_any_batch_size(name, backend):
    compiled_dynamic(*make(name), backend)


def test_functions_are_leaves_of_fx_graphs():
    class Net(nn.Module):
        def forward(self, u):
            left, right = hnn.split(u, 2)
            return hnn.residual_add(u, hnn.cat([left, right]), 1.0, dim=-1)

    u = torch.randn(3, 4)
    traced = fx.symbolic_trace(Net())
    same(traced(u), Net()(u))
    assert [node.op for node in traced.graph.nodes].count("call_function") >= 3
    layer = hnn.Linear(4, 6)
    same(fx.symbolic_trace(layer)(u), layer(u))


BUILT = {
    "Linear": (4, 6),
    "Conv1d": (4, 6, 3),
    "Conv2d": (4, 6, 3),
    "ConvTranspose2d": (4, 6, 3),
    "BatchNorm1d": (4,),
    "BatchNorm2d": (4,),
    "MLR": (4, 6),
    "MultiheadAttention": (4, 2),
    "Embedding": (9, 4),
    "Conv3d": (4, 6, 3),
    "BusemannLinear": (4, 6),
    "BusemannMLR": (4, 6),
    "LayerNorm": (4,),
    "RMSNorm": (4,),
    "GroupNorm": (2, 4),
    "LorentzLinear": (4, 6),
    "LorentzMLR": (4, 6),
    "LorentzConv1d": (4, 6, 3),
    "LorentzConv2d": (4, 6, 3),
    "LorentzConv3d": (4, 6, 3),
}


def test_every_layer_with_parameters_is_in_built():
    layers = {make(name)[0] for name in MODULES}
    parts = {type(m) for layer in layers for m in layer.modules() if list(m.parameters(recurse=False))}
    assert {t.__name__ for t in parts} - {"Curvature"} == set(BUILT)


@pytest.mark.parametrize("name", BUILT)
def test_device_and_dtype(name):
    build, sizes = getattr(hnn, name), BUILT[name]
    torch.manual_seed(0)
    plain = build(*sizes)
    torch.manual_seed(0)
    wide = build(*sizes, dtype=torch.float64)
    assert all(t.dtype in (torch.float64, torch.int64) for t in wide.state_dict().values())
    assert type(plain).__name__ == name and list(plain.state_dict()) == list(wide.state_dict())
    assert all(t.is_meta for t in build(*sizes, device="meta").state_dict().values())
    with torch.device("meta"):
        assert all(t.is_meta for t in build(*sizes).state_dict().values())
    with pytest.raises(ValueError, match=r"give dtype=torch.float32 and run them under torch.autocast"):
        build(*sizes, dtype=torch.bfloat16)
    c = Curvature(0.3, learnable=True)
    curved = {"c": c} if "c" in inspect.signature(build).parameters else {}
    skipped = skip_init(build, *sizes, **curved, dtype=torch.float64)
    assert all(t.device.type == "cpu" for t in skipped.state_dict().values())
    assert abs(float(c()) - 0.3) < 1e-6, "others may share the curvature"
    for part in skipped.modules():
        if isinstance(part, hnn.HyperbolicModule):
            part.reset_parameters()
    found = {key: t for key, t in skipped.state_dict().items() if not key.endswith("log_c")}
    assert all(t.isfinite().all() and t.shape == wide.state_dict()[key].shape for key, t in found.items())
    assert found.keys() == wide.state_dict().keys()
    assert {"device", "dtype"} <= set(inspect.signature(build).parameters)


def test_a_curvature_built_on_meta_has_its_value_after_to_empty():
    with torch.device("meta"):
        net = nn.Sequential(
            hnn.Linear(4, 4, c=Curvature(0.3)), hnn.MLR(4, 2, c=Curvature(0.4, learnable=True))
        )
    net.to_empty(device="cpu")
    assert torch.allclose(torch.stack([net[0].curvature(), net[1].curvature()]), torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("padding_idx", [2, -3])
def test_the_padding_row_is_the_origin_and_stays_there(points, padding_idx):
    torch.manual_seed(0)
    table, torchs = hnn.Embedding(5, 3, padding_idx, points=points, std=0.3), nn.Embedding(5, 3, padding_idx)
    assert table.padding_idx == torchs.padding_idx == 2
    assert not table.weight[2].any() and table.weight[1].any()
    optimiser = RiemannianAdam(parameter_groups(table), lr=0.1)
    before = table.weight.detach().clone()
    for _ in range(3):
        optimiser.zero_grad()
        table(torch.tensor([0, 2, 4])).sum().backward()
        optimiser.step()
    assert not table.weight[2].any() and not torch.equal(table.weight[0], before[0])
    with pytest.raises(ValueError, match="padding_idx must be a row of the 5; got 5"):
        hnn.Embedding(5, 3, 5)


def test_inductor_keeps_small_numbers():
    """On CPUs Inductor's atanh and expm1 of small numbers have no correct digit."""
    x = torch.logspace(-12, -2, 48)
    found = torch.compile(lambda x: (ops.atanhc(x), ops.one_minus_exp(x)))(x)
    s, x = x.double().sqrt(), x.double()
    for one, true in zip(found, (torch.atanh(s) / s, -torch.expm1(-x)), strict=True):
        assert ((one - true).abs() / true).max() <= 1e-6
