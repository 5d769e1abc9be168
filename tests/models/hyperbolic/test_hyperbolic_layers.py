"""Layers in float64 against HypLL where HypLL is right, against the textbook elsewhere; HypLL's faults documented."""

import functools

import hypll.nn as hypll
import pytest
import torch
from hypll.tensors import ManifoldTensor
from torch import nn
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, mean, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.classifier import mlr
from hyco.models.hyperbolic.nn.flatten import beta_ratio
from hyco.models.hyperbolic.nn.functional import MAX_ANGLE
from hyco.models.resnets.poincare_resnet import PoincareResNet
from tests.oracle import hyperbolic_layers as O

EXACT = {"rtol": 1e-9, "atol": 1e-11}
CURVATURES = (0.1, 0.7, 3.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def points(*shape, size=0.3):
    return size * torch.randn(*shape, dtype=torch.double)


def both(ours, theirs, u, ball, dim):
    """Outputs and input gradients of our layer (tangent to tangent) and HypLL's (through the ball)."""
    a, b = u.clone().requires_grad_(), u.clone().requires_grad_()
    out, peer = ours(a), O.hypll_run(theirs, b, ball, dim)
    weights = torch.randn_like(out)
    return (
        out,
        peer,
        *torch.autograd.grad((out * weights).sum(), a),
        *torch.autograd.grad((peer * weights).sum(), b),
    )


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_hypll(c, bias):
    ball = O.hypll_ball(c)
    theirs = hypll.HLinear(8, 5, manifold=ball, bias=bias)
    theirs.z.tensor.data = points(8, 5)
    ours = hnn.Linear(8, 5, bias=bias, c=c, max_angle=MAX_ANGLE).double()
    ours.weight.data = theirs.z.tensor.data.T.clone()
    if bias:
        theirs.bias.data = points(5)
        ours.bias.data = theirs.bias.data.clone()
    out, peer, slope, peer_slope = both(ours, theirs, points(9, 8), ball, -1)
    assert torch.allclose(out, peer, **EXACT) and torch.allclose(slope, peer_slope, **EXACT)


@pytest.mark.parametrize(("stride", "padding", "c"), [(1, 0, 0.1), (1, 1, 0.7), (2, 1, 3.0), (3, 2, 0.7)])
def test_conv2d_equals_hypll(stride, padding, c):
    ball = O.hypll_ball(c)
    theirs = hypll.HConvolution2d(3, 4, 3, manifold=ball, stride=stride, padding=padding)
    theirs.weights.tensor.data, theirs.bias.data = points(27, 4), points(4)
    ours = hnn.Conv2d(3, 4, 3, stride=stride, padding=padding, c=c, max_angle=MAX_ANGLE).double()
    ours.weight.data = theirs.weights.tensor.data.T.reshape(4, 3, 3, 3).clone()
    ours.bias.data = theirs.bias.data.clone()
    out, peer, slope, peer_slope = both(ours, theirs, points(2, 3, 8, 9), ball, 1)
    assert torch.allclose(out, peer, **EXACT) and torch.allclose(slope, peer_slope, **EXACT)


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        (1, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
        (2, {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}),
        (4, {"kernel_size": 1, "stride": 2, "padding": 0, "dilation": 1}),
    ],
)
def test_conv2d_equals_the_textbook_chain(groups, options):
    layer = hnn.Conv2d(4, 8, groups=groups, c=0.6, max_angle=MAX_ANGLE, **options).double()
    nn.init.normal_(layer.weight, std=0.4)
    nn.init.normal_(layer.bias, std=0.3)
    u = points(2, 4, 7, 8)
    geometry = {k: v for k, v in options.items() if k != "kernel_size"}
    got = layer(u)
    want = O.conv2d(u, layer.weight, layer.bias, 0.6, groups, **geometry)
    assert torch.allclose(got.flatten(2), want, **EXACT)


def test_conv1d_is_conv2d_of_one_row():
    one = hnn.Conv1d(3, 5, 3, stride=2, padding=1, c=0.5).double()
    two = hnn.Conv2d(3, 5, (1, 3), stride=(1, 2), padding=(0, 1), c=0.5).double()
    two.weight.data, two.bias.data = one.weight.data.unsqueeze(2), one.bias.data
    u = points(2, 3, 11)
    assert torch.allclose(one(u), two(u.unsqueeze(2)).squeeze(2), **EXACT)


@pytest.mark.parametrize(("stride", "padding", "extra", "groups"), [(1, 0, 0, 1), (2, 1, 1, 2), (3, 1, 0, 1)])
def test_transposed_conv_is_a_conv_over_the_spread_out_input(stride, padding, extra, groups):
    up = hnn.ConvTranspose2d(4, 6, 3, stride, padding, extra, groups, c=0.8).double()
    nn.init.normal_(up.weight, std=0.4)
    nn.init.normal_(up.bias, std=0.3)
    u = points(2, 4, 4, 5)
    spread = u.new_zeros(2, 4, 3 * stride + 1, 4 * stride + 1)
    spread[:, :, ::stride, ::stride] = u
    edge = 2 - padding
    spread = F.pad(spread, (edge, edge + extra, edge, edge + extra))
    plain = hnn.Conv2d(4, 6, 3, groups=groups, c=0.8).double()
    plain.weight.data, plain.bias.data = up.weight.data.flip(2, 3), up.bias.data
    got = up(u)
    assert got.shape == F.conv_transpose2d(u, up.weight.transpose(0, 1) if groups == 1 else u.new_zeros(4, 3, 3, 3),
                                           None, stride, padding, extra, groups).shape  # fmt: skip
    assert torch.allclose(got, plain(spread), **EXACT)


@pytest.mark.parametrize("layer", [
    lambda fused: hnn.Linear(6, 4, c=0.9, fused=fused),
    lambda fused: hnn.Linear(6, 4, bias=False, c=0.9, fused=fused),
    lambda fused: hnn.Conv2d(6, 4, 3, padding=1, groups=2, c=hnn_curvature(), fused=fused),
    lambda fused: hnn.ConvTranspose2d(6, 4, 3, stride=2, c=hnn_curvature(), fused=fused),
    lambda fused: hnn.BatchNorm2d(6, c=hnn_curvature(), fused=fused),
    lambda fused: hnn.BatchNorm2d(6, c=0.9, affine=False, fused=fused),
    lambda fused: trained(hnn.BatchNorm2d(6, c=hnn_curvature(), fused=fused)),
])  # fmt: skip
@pytest.mark.parametrize("size", [1e-9, 0.3, 30.0])
def test_lean_backward_equals_autograd(layer, size):
    """Values and gradients in input, weight, bias and c; near the origin, and beyond both caps."""
    results = []
    for fused in (True, False):
        torch.manual_seed(1)
        module = layer(fused).double()
        for p in module.parameters():
            if p.dim():
                nn.init.normal_(p, std=0.5 if size < 1 else 5.0)
        u = (size * torch.randn(3, 6, 5, 4, dtype=torch.double)).requires_grad_()
        out = module(u.movedim(1, -1) if isinstance(module, hnn.Linear) else u)
        slopes = torch.autograd.grad((out * torch.randn_like(out)).sum(), [u, *module.parameters()])
        results.append((out, *slopes))
    # A batch norm of points 1e-9 apart divides by that: its gradient in c is the small difference of large sums. Beyond
    # the caps its two formulas differ by the rounding of cosh(12)^2.
    extreme = isinstance(module, hnn.BatchNorm2d) and size != 0.3
    rtol, atol = (1e-5, 1e-5 if size > 1 else 1e-12) if extreme else (1e-8, 1e-12)
    for fused, plain in zip(*results, strict=True):
        assert fused.isfinite().all() and torch.allclose(
            fused, plain, rtol=rtol, atol=atol * plain.detach().abs().max().item()
        )


def trained(norm):
    """In eval mode, with running statistics worth the name."""
    norm.running_mean.copy_(torch.linspace(-0.4, 0.3, norm.num_features))
    norm.running_var.fill_(1.7)
    return norm.eval()


def hnn_curvature():
    return Curvature(0.9, learnable=True)


def test_second_derivatives_are_right_or_refused():
    def setup(fused):
        layer = hnn.Linear(3, 4, c=hnn_curvature(), fused=fused).double()
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        return layer, points(2, 3).requires_grad_()

    assert torch.autograd.gradgradcheck(*setup(fused=False), atol=1e-6)
    layer, u = setup(fused=True)
    with pytest.raises(RuntimeError, match="fused=False"):
        torch.autograd.grad(layer(u).sum(), u, create_graph=True)
    norm = hnn.BatchNorm1d(3, c=hnn_curvature(), track_running_stats=False, fused=False).double()
    assert torch.autograd.gradgradcheck(norm, points(4, 3).requires_grad_(), atol=1e-5)
    assert torch.autograd.gradgradcheck(
        hnn.AvgPool2d(2, c=0.7), points(1, 2, 2, 2).requires_grad_(), atol=1e-5
    )
    attention, words = hnn.MultiheadAttention(2, 1, c=0.7, fused=False).double(), points(1, 2, 2)
    assert torch.autograd.gradgradcheck(attention, words.requires_grad_(), atol=1e-5)


def test_batch_norm_passes_gradcheck_in_everything():
    norm = hnn.BatchNorm1d(3, c=hnn_curvature(), track_running_stats=False).double()
    norm.bias.data = points(3)
    names, values = zip(*norm.named_parameters(), strict=True)

    def run(u, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (u,))

    inputs = (points(4, 3).requires_grad_(), *(v.detach().requires_grad_() for v in values))
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6)


def test_lean_path_keeps_two_tensors():
    """The input and the convolution's output: what is saved over the input alone is one tensor and small change."""
    u = torch.randn(4, 16, 32, 32, requires_grad=True)
    sizes = {}
    for fused in (True, False):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, k=kept: k.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
            lambda t: t,
        ):
            out = hnn.Conv2d(16, 16, 3, padding=1, c=0.1, fused=fused)(u)
        sizes[fused] = sum(kept.values()) / (u.numel() * 4)
        del out
    assert sizes[True] < 2.5 < 4 < sizes[False], sizes


@pytest.mark.parametrize("c", CURVATURES)
def test_mlr_equals_hypll_hyperplane_distances(c):
    ball, z, r, u = O.hypll_ball(c), points(6, 4), points(4), points(10, 6)
    x = ManifoldTensor(poincare.exp0(u, c), manifold=ball)
    theirs = ball.hyperplane_dists(x, ManifoldTensor(z, manifold=ball, man_dim=0), r)
    assert torch.allclose(mlr(u, z.T, r, c, 2 * c**0.5, MAX_ANGLE), theirs, **EXACT)
    layer = hnn.MLR(6, 4, c=c).double()
    assert torch.allclose(layer(u), mlr(u, layer.weight, layer.bias, c, 2 * c**0.5))


def test_residual_is_mobius_addition_over_channels():
    u, v = points(2, 3, 4, 5), points(2, 3, 4, 5)
    got = hnn.ResidualAdd(c=0.7)(u, v)
    x, y = (poincare.exp0(t.movedim(1, -1), 0.7) for t in (u, v))
    assert torch.allclose(got.movedim(1, -1), poincare.log0(poincare.add(x, y, 0.7), 0.7), **EXACT)
    assert torch.allclose(hnn.residual_add(u, -u, 1.3), torch.zeros_like(u), atol=1e-12)


def test_flatten_and_concatenation_equal_hypll():
    ball, u, v = O.hypll_ball(0.7), points(2, 3, 4, 5), points(2, 6, 4, 5)
    theirs = O.hypll_run(hypll.HFlatten(), u, ball)
    assert torch.allclose(hnn.Flatten()(u), theirs, **EXACT)
    assert torch.allclose(hnn.Flatten(2)(u), u.flatten(2))
    joined = hnn.cat([u, v], dim=1)
    lifted = [
        ManifoldTensor(poincare.exp0(t.movedim(1, -1), 0.7).movedim(-1, 1), ball, man_dim=1) for t in (u, v)
    ]
    # HypLL's beta factors here are float32 whatever the points are.
    assert torch.allclose(joined, ball.logmap(None, ball.cat(lifted, dim=1)).tensor, rtol=1e-5)
    assert torch.allclose(hnn.cat(hnn.split(v, 3, dim=1), dim=1), v)
    with pytest.raises(ValueError, match="6 coordinates"):
        hnn.split(v, 4, dim=1)


def test_both_models_are_one_space():
    """A Lorentz tangent is twice the ball's, of the same curvature."""
    for make, u in (
        (lambda **k: hnn.Conv2d(4, 6, 3, c=0.7, **k), points(2, 4, 5, 5)),
        (lambda **k: hnn.Linear(4, 6, c=0.7, **k), points(7, 4)),
        (lambda **k: hnn.AvgPool2d(2, c=0.7, **k), points(2, 4, 6, 6)),
        (lambda **k: hnn.BatchNorm1d(4, c=0.7, **k), points(7, 4)),
        (lambda **k: hnn.MultiheadAttention(4, 2, c=0.7, **k), points(2, 5, 4)),
    ):
        torch.manual_seed(2)
        ball = make().double()
        torch.manual_seed(2)
        sheet = make(model="lorentz").double()
        assert torch.allclose(sheet(2 * u), 2 * ball(u), **EXACT)


def test_attention_is_attention():
    """One head against a loop over pairs with the geometry's own functions; masks; equal values pass through."""
    layer = hnn.MultiheadAttention(4, 1, c=0.7, model="lorentz").double()
    u = points(1, 6, 4)
    q, k, v = (lorentz.exp0(f(u), 0.7) for f in (layer.query, layer.key, layer.value))
    angle = lorentz.distance(q[0][:, None], k[0][None], 0.7) * 0.7**0.5
    share = (-0.5 * angle.square() * layer.log_scale.exp().squeeze()).softmax(-1)
    want = layer.out(lorentz.log0(mean.midpoint(v[0].expand(6, 6, 4), 0.7, share), 0.7))
    assert torch.allclose(layer(u)[0], want, **EXACT)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    heads = hnn.MultiheadAttention(4, 2, c=0.7).double()
    seen = heads(u, mask=causal)
    changed = u.clone()
    changed[:, 4:] += 1
    assert torch.allclose(heads(changed, mask=causal)[:, :4], seen[:, :4]) and not torch.allclose(
        heads(changed), heads(u)
    )
    with pytest.raises(ValueError, match="num_heads 3"):
        hnn.MultiheadAttention(4, 3)


def test_identity_initialisation_keeps_norms_where_hypll_loses_them():
    u = torch.randn(8, 16, 6, 6) * 0.2
    ours, theirs = u, u
    for _ in range(10):
        ours = hnn.Conv2d(16, 16, 3, padding=1, c=0.1)(ours)
        theirs = hnn.Conv2d(16, 16, 3, padding=1, c=0.1, init="hypll")(theirs)
    assert 0.9 < ours.norm() / u.norm() < 1.1
    assert theirs.norm() < 1e-3 * u.norm()
    pixel = hnn.Conv2d(16, 16, 1, c=0.1)(u)
    assert torch.allclose(pixel, u, atol=1e-6)
    assert torch.allclose(hnn.Linear(16, 16)(u[:, :, 0, 0]), u[:, :, 0, 0], atol=1e-6)
    grouped = hnn.Conv2d(16, 32, 3, padding=1, groups=4)(u)
    assert grouped.isfinite().all()


def test_change_manifold_round_trips_and_keeps_distances_from_the_origin():
    u = points(2, 3, 4)
    for model in ("poincare", "lorentz"):
        for space in ("poincare", "lorentz", "klein"):
            there = hnn.ChangeManifold("tangent", space, dim=1, c=0.7, model=model)
            back = hnn.ChangeManifold(space, "tangent", dim=1, c=0.7, model=model)
            assert torch.allclose(back(there(u)), u, **EXACT)
    ball, sheet = (hnn.ChangeManifold("tangent", s, c=0.7)(u) for s in ("poincare", "lorentz"))
    assert torch.allclose(hnn.ChangeManifold("poincare", "lorentz", c=0.7)(ball), sheet, **EXACT)
    other = hnn.ChangeManifold("poincare", "poincare", c=0.7, target_c=2.0)(ball)
    zero = torch.zeros_like(ball)
    assert torch.allclose(poincare.distance(other, zero, 2.0), poincare.distance(ball, zero, 0.7), **EXACT)
    with pytest.raises(ValueError, match="'sphere'"):
        hnn.ChangeManifold("tangent", "sphere")


def test_lorentz_activation_acts_on_the_space_part():
    u = points(3, 4, model_dims := 5)
    got = lorentz.exp0(hnn.LorentzActivation(torch.relu, dim=-1, c=1.0)(u), 1.0)
    assert model_dims == 5 and torch.allclose(got, lorentz.exp0(u, 1.0).relu(), **EXACT)


def test_bad_arguments_are_named():
    for make, words in (
        (lambda: hnn.Linear(3, 4, c=-1.0), "-1.0"),
        (lambda: hnn.Linear(3, 4, model="sphere"), "sphere"),
        (lambda: hnn.Conv2d(3, 4, 3, groups=2), "3 and 4 channels"),
        (lambda: hnn.Conv2d(3, 4, 3, init="zeros"), "zeros"),
        (lambda: hnn.Conv2d(3, 4, 3)(torch.zeros(1, 5, 8, 8)), r"\[1, 5, 8, 8\]"),
        (lambda: hnn.ConvTranspose2d(3, 4, 3)(torch.zeros(3, 8, 8)), r"\[3, 8, 8\]"),
        (lambda: hnn.BatchNorm2d(3)(torch.zeros(2, 3)), r"\[2, 3\]"),
        (lambda: hnn.ResidualAdd()(torch.zeros(2, 3), torch.zeros(2, 1)), r"\[2, 1\]"),
        (lambda: hnn.Embedding(3, 4, points=True, c=hnn_curvature()), "fixed curvature"),
        (lambda: hnn.AvgPool2d(2)(torch.zeros(3, 6, 6)), r"\[3, 6, 6\]; u.unsqueeze\(0\)"),
        (lambda: hnn.AdaptiveAvgPool2d(1)(torch.zeros(3, 6, 6)), r"\[3, 6, 6\]; u.unsqueeze\(0\)"),
        (lambda: hnn.Linear(4, 6, c=Curvature(0.5, size=6)), "not 6; leave out the size"),
        (lambda: hnn.Conv2d(3, 4, 3, padding="same"), r"'same'; \"same\" is dilation \* \(kernel_size - 1\)"),
        (lambda: hnn.ConvTranspose2d(3, 4, 3, padding="same"), "padding takes 2 integers"),
        (lambda: hnn.Conv2d(3, 4, 0), "kernel_size takes 2 integers, or one, of at least 1; got 0"),
        (lambda: hnn.Conv2d(3, 4, (3,)), r"kernel_size takes 2 integers, or one, of at least 1; got \(3,\)"),
        (lambda: hnn.Conv1d(3, 4, (3, 3)), "kernel_size takes 1 integers"),
        (lambda: hnn.AvgPool2d((2, 2, 2)), "kernel_size takes 2 integers"),
        (lambda: hnn.Conv2d(3, 4, 3, groups=0), "0 groups"),
        (lambda: hnn.ConvTranspose2d(3, 4, 3, groups=0), "0 groups"),
        (lambda: hnn.Conv2d(3, 4, 7)(torch.zeros(1, 3, 5, 6)), "kernel of 7 .* 5 positions .* padding=3"),
        (lambda: hnn.Linear(3, 4)(torch.zeros(2, 5)), r"\[\.\.\., 3\], got \[2, 5\]"),
        (lambda: hnn.MLR(3, 4)(torch.zeros(2, 5)), r"\[\.\.\., 3\], got \[2, 5\]"),
        (lambda: hnn.MultiheadAttention(4, 2)(torch.zeros(2, 3, 5)), r"\[\.\.\., 4\], got \[2, 3, 5\]"),
        (lambda: hnn.MultiheadAttention(4, 2)(torch.zeros(3, 4)), r"\[3, 4\], .*unsqueeze\(0\) adds a batch"),
        (lambda: hnn.MultiheadAttention(4, 2)(torch.zeros(1, 3, 4), mask=torch.zeros(3, 3)), "mask == 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_arguments_that_torch_counts_otherwise_have_to_be_named():
    for make in (
        lambda: hnn.Embedding(5, 3, 2, 1.0),  # torch: max_norm
        lambda: hnn.MultiheadAttention(8, 2, 0.0),  # torch: dropout
        lambda: hnn.MultiheadAttention(4, 2)(*[torch.zeros(3, 3, 4)] * 3, torch.ones(3, 3, dtype=torch.bool)),
        lambda: hnn.AvgPool2d(2, 2, 0, False, True, 4),  # torch: divisor_override
    ):
        with pytest.raises(TypeError, match="positional"):
            make()


def test_beta_ratio_is_that_of_beta_functions():
    from hypll.utils.math import beta_func

    assert abs(beta_ratio(27, 3) / (beta_func(13.5, 0.5) / beta_func(1.5, 0.5)) - 1) < 1e-12


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(hnn.Linear, 3, 4),
        functools.partial(hnn.Conv1d, 3, 4, 1),
        functools.partial(hnn.ConvTranspose2d, 3, 4, 1),
        functools.partial(hnn.BatchNorm1d, 3),
        functools.partial(hnn.MultiheadAttention, 4, 2),
        functools.partial(hnn.ResidualAdd),
        functools.partial(PoincareResNet, depth=8),
    ],
    ids=lambda build: build.func.__name__,
)
def test_lean_is_still_taken_as_fused_and_warns(build):
    with pytest.warns(FutureWarning, match="fused="):
        layer = build(lean=False)
    assert not next(m.fused for m in layer.modules() if hasattr(m, "fused"))
