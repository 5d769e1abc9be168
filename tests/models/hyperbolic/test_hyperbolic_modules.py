"""What fails on HypLL, for every module: compile, AdamW, deepcopy, EMA, autocast, double, weights-only load."""

import copy
import importlib
import io
import pkgutil

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.add = hnn.Conv2d(4, 4, 3, padding=1, c=0.5), hnn.ResidualAdd(c=0.5)

    def forward(self, u):
        return self.add(u, self.conv(u))


def shared():
    return Curvature(0.5, learnable=True)


IMAGE, ROWS, WORDS, VOLUME = (2, 4, 6, 6), (3, 4), (2, 3, 4), (2, 4, 3, 4, 5)
MODULES = {
    "Linear": (lambda: hnn.Linear(4, 6, c=shared()), ROWS),
    "Linear, plain": (lambda: hnn.Linear(4, 6, bias=False, c=0.5, fused=False), ROWS),
    "Conv1d": (lambda: hnn.Conv1d(4, 6, 3, padding=1, c=0.5), (2, 4, 7)),
    "Conv2d": (lambda: hnn.Conv2d(4, 6, 3, padding=1, c=shared()), IMAGE),
    "Conv2d, groups": (lambda: hnn.Conv2d(4, 6, 3, groups=2, c=0.5, model="lorentz"), IMAGE),
    "Conv3d": (lambda: hnn.Conv3d(4, 6, 3, padding=1, c=0.5), VOLUME),
    "ConvTranspose2d": (lambda: hnn.ConvTranspose2d(4, 6, 3, stride=2, c=0.5), IMAGE),
    "BatchNorm1d": (lambda: hnn.BatchNorm1d(4, c=0.5), ROWS),
    "BatchNorm2d": (lambda: hnn.BatchNorm2d(4, c=shared()), IMAGE),
    "AvgPool2d": (lambda: hnn.AvgPool2d(2, padding=1, c=shared()), IMAGE),
    "AdaptiveAvgPool2d": (lambda: hnn.AdaptiveAvgPool2d(2, c=0.5), IMAGE),
    "MaxPool2d": (lambda: hnn.MaxPool2d(2), IMAGE),
    "LorentzActivation": (lambda: hnn.LorentzActivation(torch.relu, c=0.5), IMAGE),
    "ResidualAdd": (Residual, IMAGE),
    "Flatten": (lambda: nn.Sequential(hnn.Flatten(), hnn.Linear(144, 3, c=0.5)), IMAGE),
    "MLR": (lambda: hnn.MLR(4, 6, c=shared()), ROWS),
    "MultiheadAttention": (lambda: hnn.MultiheadAttention(4, 2, c=shared()), WORDS),
    "ChangeManifold": (lambda: hnn.ChangeManifold("tangent", "klein", c=shared()), ROWS),
    "Embedding": (lambda: hnn.Embedding(9, 4, c=0.5), None),
    "LorentzLinear": (lambda: hnn.LorentzLinear(4, 6, c=shared()), ROWS),
    "LorentzConv1d": (lambda: hnn.LorentzConv1d(4, 6, 3, padding=1, c=0.5), (2, 4, 7)),
    "LorentzConv2d": (lambda: hnn.LorentzConv2d(4, 6, 3, padding=1, groups=2, c=shared()), IMAGE),
    "LorentzConv3d": (lambda: hnn.LorentzConv3d(4, 6, 3, bias=False, c=0.5), VOLUME),
    "LorentzMLR": (lambda: hnn.LorentzMLR(4, 6, c=shared()), ROWS),
    "BusemannLinear": (lambda: hnn.BusemannLinear(4, 6, gyro_bias=True, c=shared()), ROWS),
    "BusemannMLR": (lambda: hnn.BusemannMLR(4, 6, c=shared()), ROWS),
    "LayerNorm": (lambda: hnn.LayerNorm(4), WORDS),
    "RMSNorm": (lambda: hnn.RMSNorm(4, model="lorentz"), WORDS),
    "GroupNorm": (lambda: hnn.GroupNorm(2, 4), IMAGE),
    "TransformerBlock": (lambda: hnn.TransformerBlock(4, 2, hidden=6, c=shared()), WORDS),
    "RotaryPositions": (lambda: hnn.RotaryPositions(4, 2), WORDS),
    "Curvature": (lambda: hnn.Linear(4, 4, c=Curvature(0.5)), ROWS),
}


def make(name):
    torch.manual_seed(0)
    module, shape = MODULES[name]
    inputs = torch.arange(6).view(2, 3) if shape is None else torch.randn(shape) * 0.4
    return module(), inputs


def loss_of(module, inputs):
    out = module(inputs)
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def test_every_layer_is_in_the_matrix():
    """A new layer is exported and has a row in MODULES; what is exported of torch.nn itself needs none."""
    ours = {
        layer.__name__: layer
        for file in pkgutil.iter_modules(hnn.__path__, f"{hnn.__name__}.")
        for layer in vars(importlib.import_module(file.name)).values()
        if isinstance(layer, type) and issubclass(layer, nn.Module) and layer.__module__ == file.name
    }
    layers = {name: layer for name, layer in ours.items() if not name.startswith("_")}
    del layers["HyperbolicModule"]  # the base class
    assert layers.keys() <= vars(hnn).keys()
    built = {type(part) for name in MODULES for part in make(name)[0].modules()}
    assert set(layers.values()) <= built


@pytest.mark.parametrize("name", MODULES)
def test_compiles_whole_and_agrees(name):
    """aot_eager traces forward and backward without a break; the slow test below also generates the code."""
    check_compiled(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_compiles_whole_with_inductor(name):
    check_compiled(name, "inductor")


def check_compiled(name, backend):
    torch._dynamo.reset()
    module, inputs = make(name)
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    sides = []
    for net in (compiled, twin):
        u = inputs.clone().requires_grad_() if inputs.is_floating_point() else inputs
        loss = loss_of(net, u)
        if loss.requires_grad:
            loss.backward()
        sides.append([loss.detach(), getattr(u, "grad", None), *(p.grad for p in net.parameters())])
    for a, b in zip(*sides, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_lives_like_an_ordinary_module(name):
    module, inputs = make(name)
    parameters = list(module.parameters())
    assert all(type(p) is nn.Parameter for p in parameters)
    ema = AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    ema.update_parameters(module)
    if parameters:
        optimiser = torch.optim.AdamW(parameters, lr=1e-2)
        before, first = copy.deepcopy(module), loss_of(module, inputs)
        first.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimiser.step()
        assert any(not torch.equal(p, q) for p, q in zip(parameters, before.parameters(), strict=True))
        ema.update_parameters(module)
        averaged = next(iter(ema.module.parameters()))
        assert torch.allclose(averaged, (parameters[0] + next(before.parameters())) / 2, atol=1e-6)
    module.eval()
    wide = copy.deepcopy(module).double()
    wide_in = inputs.double() if inputs.is_floating_point() else inputs
    assert wide(wide_in).dtype == torch.float64
    assert torch.allclose(wide(wide_in).float(), module(inputs), rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    again = make(name)[0]
    again.load_state_dict(torch.load(file, weights_only=True))
    again.eval()
    assert torch.equal(again(inputs), module(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(inputs)
        assert name == "MaxPool2d" or out.dtype == torch.float32
        assert torch.equal(out, module(inputs)) and torch.allclose(out, again(inputs))
    if inputs.is_floating_point() and name != "MaxPool2d":
        assert module(inputs.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", MODULES)
def test_half_precision_parameters_are_refused_where_it_happens(name):
    module, inputs = make(name)
    if not list(module.parameters()) + list(module.buffers()):
        return
    for convert in (nn.Module.half, nn.Module.bfloat16):
        with pytest.raises(ValueError, match=r"float32 \(\.float\(\)\) and run it under torch.autocast"):
            convert(module)
        assert module.float()(inputs).dtype == torch.float32


def test_keyword_inputs_are_as_positional_ones():
    layer, u = make("Linear")
    assert torch.equal(layer(u=u.bfloat16()), layer(u.bfloat16()))


def test_a_shared_curvature_is_one_parameter_and_learns():
    c = Curvature(0.5, learnable=True)
    net = nn.Sequential(hnn.Linear(4, 4, c=c), hnn.BatchNorm1d(4, c=c), hnn.MLR(4, 3, c=c))
    assert sum(p is c.log_c for p in net.parameters()) == 1
    loss_of(net, torch.randn(8, 4)).backward()
    assert c.log_c.grad is not None and c.log_c.grad != 0


def test_a_small_network_learns_rings_that_no_line_separates():
    torch.manual_seed(0)
    net = nn.Sequential(
        hnn.Linear(2, 8), hnn.BatchNorm1d(8), hnn.ReLU(), hnn.Linear(8, 8), hnn.ReLU(), hnn.MLR(8, 3)
    )
    angle, label = 6.3 * torch.rand(300), torch.arange(300) % 3
    u = torch.stack([angle.cos(), angle.sin()], 1) * (0.2 + 0.4 * label.unsqueeze(1)) + 0.02 * torch.randn(
        300, 2
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.02)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(u), label).backward()
        optimiser.step()
    net.eval()
    assert (net(u).argmax(1) == label).float().mean() > 0.95
