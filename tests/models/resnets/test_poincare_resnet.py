"""Poincare ResNet against plain float64 references, in its own arithmetic and in the published one."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from hyco.models.clip import ClipConfig, DualEncoder, config_from_dict
from hyco.models.encoders.poincare_resnet import PoincareResNetConfig, PoincareResNetTower
from hyco.models.encoders.text import TextConfig
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.curvature import Curvature
from hyco.models.hyperbolic.nn.residual import residual_add
from hyco.models.losses.objective import hycoclip_objective, loss
from hyco.models.resnets import published_poincare_resnet as published_net
from hyco.models.resnets.poincare_resnet import PoincareResNet
from hyco.models.resnets.published_poincare_resnet import PublishedPoincareResNet
from hyco.models.resnets.resnet import EuclideanResNet
from tests.oracle import poincare_resnet as oracle

SMALL = {"depth": 8, "widths": (4, 6, 8), "num_classes": 5}
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stirred(model):
    """The model in float64, its parameters and running statistics away from their starts."""
    model = model.double()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("running_movement"):
            noise = 0.1 * torch.randn_like(value)
            # Under a variance of its own start, evaluation would send points further than a ball has digits for.
            value.add_(noise + 2 if name.endswith("running_var") else noise)
    return model


def pixels(batch=3, height=10, width=9):
    return torch.randn(batch, 3, height, width, dtype=torch.double)


def leaves(model):
    return {
        n: v.detach().clone().requires_grad_(v.is_floating_point()) for n, v in model.state_dict().items()
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("c", [0.1, 0.4])
def test_forward_and_gradient_equal_the_plain_twin(training, c):
    model = stirred(PoincareResNet(**SMALL, c=c)).train(training)
    state, u = leaves(model), (0.5 * pixels()).requires_grad_()
    v = u.detach().clone().requires_grad_()
    want = oracle.forward(state, v, 8, c, training)
    got = model(u)
    assert torch.allclose(got, want, **EXACT)
    assert want.std() > 0.1
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert torch.allclose(u.grad, v.grad, **EXACT)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, state[name].grad, rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("size", [0.0, 0.3, 3.0, 30.0])
def test_lean_residual_sum_equals_plain_autograd(size):
    """Values and gradients in both points and in the rate; 30 is beyond the angle at which points are capped."""
    x, y = (size * torch.randn(3, 4, 2, 5, dtype=torch.double) for _ in range(2))
    inputs = (
        x.requires_grad_(),
        y.requires_grad_(),
        torch.tensor(0.7, dtype=torch.double, requires_grad=True),
    )
    weights = torch.randn_like(x)
    got, want = (residual_add(*inputs, fused=fused) for fused in (True, False))
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad((out * weights).sum(), inputs) for out in (got, want)]
    for a, b in zip(*slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_compat_equals_the_twin_of_the_published_arithmetic(training):
    model = stirred(PublishedPoincareResNet(**SMALL, c=0.1)).train(training)
    u = pixels()
    want = oracle.forward(model.state_dict(), u, 8, 0.1, training, published=True)
    assert torch.allclose(model(u), want, **EXACT)
    right = oracle.forward(model.state_dict(), u, 8, 0.1, True, published=False)
    assert (right - want).abs().max() > 0.1 * want.abs().max()


def test_compat_warns_and_is_the_published_network():
    with pytest.warns(FutureWarning, match="PublishedPoincareResNet"):
        old = PoincareResNet(**SMALL, compat=True)
    new = PublishedPoincareResNet(**SMALL)
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        images = pixels().float()
        assert torch.equal(old.float()(images), new.float()(images))


def test_only_the_published_arithmetic_lets_the_batch_into_evaluation():
    images = pixels(4)
    ours = stirred(PoincareResNet(**SMALL)).eval()
    published = stirred(PublishedPoincareResNet(**SMALL)).eval()
    with torch.no_grad():
        assert torch.allclose(ours(images)[:1], ours(images[:1]), **EXACT)
        assert not torch.allclose(published(images)[:1], published(images[:1]), rtol=1e-2)


def test_training_moves_the_running_statistics_that_evaluation_uses():
    model = PoincareResNet(**SMALL)
    images = pixels(8, 16, 16).float()
    with torch.no_grad():
        before = model.eval()(images)
        model.train()
        for _ in range(60):  # momentum 0.1: nothing is left of the start
            trained = model(images)
        after = model.eval()(images)
    # The batch and the statistics of that batch repeated agree.
    assert torch.allclose(after, trained, rtol=2e-2, atol=2e-2 * float(trained.abs().max()))
    assert not torch.allclose(before, trained, rtol=2e-1, atol=0.2 * float(trained.abs().max()))


@pytest.mark.parametrize(("depth", "parameters"), [(20, 68_757), (32, 117_601), (44, 166_445), (56, 215_289)])
def test_published_parameter_counts(depth, parameters):
    """68,757 at depth 20; each 12 layers more add 4 convolutions and norms a stage."""
    assert sum(p.numel() for p in PoincareResNet(depth).parameters()) == parameters


def test_weights_of_either_initialisation_load_into_the_default():
    old, new = PoincareResNet(**SMALL, init="identity").eval(), PoincareResNet(**SMALL).eval()
    taps = old.blocks[0].conv2.weight, new.blocks[0].conv2.weight
    assert [bool(w[..., 0, 0].any()) for w in taps] == [False, True], "the default starts from normal kernels"
    new.load_state_dict(old.state_dict())
    images = pixels().float()
    with torch.no_grad():
        assert torch.equal(old(images), new(images))


def test_identity_initialisation_keeps_norms_where_the_published_ones_lose_them():
    """The mean norm of tangent vectors through 20 convolutions of 8 channels, 3 x 3."""
    u = 0.05 * torch.randn(2, 8, 8, 8)

    def kept(make):
        x = u
        for _ in range(20):
            x = make()(x).detach()
        return (x.norm(dim=1).mean() / u.norm(dim=1).mean()).item()

    # The identity to first order in c|u|^2.
    assert kept(lambda: hnn.Conv2d(8, 8, 3, padding=1, c=0.1)) == pytest.approx(1, abs=0.02)
    assert kept(lambda: hnn.Conv2d(8, 8, 3, padding=1, c=0.1, init="normal")) < 1e-6
    assert kept(lambda: published_net.Conv2d(8, 8, 3, 1, 0.1)) < 1e-6


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (8, 8)])
def test_images_of_any_size(size):
    for model in (PoincareResNet(8, (4, 6, 8), 7), EuclideanResNet(8, (4, 6, 8), 7)):
        assert model.features(torch.randn(2, 3, *size)).shape == (2, 8)
        assert model(torch.randn(2, 3, *size)).shape == (2, 7)


def test_twins_have_one_topology():
    def outline(model):
        kinds = {"Conv2d": "conv", "BatchNorm2d": "norm"}
        return [(n, kinds[type(m).__name__]) for n, m in model.named_modules() if type(m).__name__ in kinds]

    assert outline(PoincareResNet()) == outline(EuclideanResNet())


@pytest.mark.parametrize(
    ("widths", "order"), [((4, 4), torch.contiguous_format), ((8, 16), torch.channels_last)]
)
def test_channels_last_is_kept_only_where_onednn_is_safe(widths, order):
    pixels = torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert EuclideanResNet(6, widths).eval().grid(pixels).is_contiguous(memory_format=order)


def test_a_head_takes_the_place_of_the_classifier():
    head = nn.Linear(8, 3)
    model = PoincareResNet(8, (4, 6, 8), head=head)
    assert model.head is head and model(torch.randn(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("wrong", [{"depth": 21}, {"depth": 2}, {"widths": (8, 16)}, {"widths": (0, 1, 2)}])
def test_impossible_shapes_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values()))).strip("()")):
        PoincareResNet(**wrong)


def test_pixels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 1, 8, 8\]"):
        PoincareResNet(**SMALL)(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="compat"):
        PoincareResNet(**SMALL, learn_c=True, compat=True)


def test_a_learned_curvature_is_one_tensor_of_the_checkpoint_and_comes_back():
    model = PoincareResNet(**SMALL, learn_c=True)
    model(torch.randn(2, 3, 8, 8)).logsumexp(1).sum().backward()
    assert model.curvature.log_c.grad.abs() > 0
    with torch.no_grad():
        model.curvature.log_c.fill_(-50)
    model.constrain_()
    state = model.state_dict()
    assert [n for n in state if n.endswith("log_c")] == ["curvature.log_c"]
    other = PoincareResNet(**SMALL, learn_c=True)
    other.load_state_dict(copy.deepcopy(state))
    assert other.curvature().item() == pytest.approx(1e-3)
    assert other.blocks[0].conv1.curvature().item() == pytest.approx(1e-3)
    # A curvature of somebody else's, in the head, is not one of the copies.
    own = PoincareResNet(**SMALL, learn_c=True, head=hnn.MLR(8, 5, c=Curvature(0.5)))
    assert [n for n in own.state_dict() if n.endswith("log_c")] == ["head.c.log_c", "curvature.log_c"]


@pytest.mark.parametrize("part", ["block", pytest.param("network", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(part):
    network = PoincareResNet(**SMALL)
    model, channels = (network, 3) if part == "network" else (network.blocks[1], 4)
    images = torch.randn(2, channels, 8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    got, want = compiled(images), copy.deepcopy(model)(images)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_outside():
    model = PoincareResNet(**SMALL).eval()
    images = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.features(images)
    assert torch.equal(got, model.features(images))


# The published files' names and shapes (docs/poincare_resnet.md).


def published_state(depth=20, widths=(8, 16, 32), classes=10, c=0.1):
    state = {}

    def draw(name, *shape):
        state[name] = 0.2 * torch.randn(*shape, dtype=torch.double)

    def conv(name, inputs, outputs, kernel):
        draw(f"{name}.weights", inputs * kernel * kernel, outputs)
        draw(f"{name}.bias", outputs)
        state[f"{name}.ball.isp_c"] = torch.tensor(c)

    def norm(name, width):
        draw(f"{name}.norm.mean", width)
        state[f"{name}.norm.var"] = torch.rand((), dtype=torch.double) + 0.5
        state[f"{name}.norm.running_mean"], state[f"{name}.norm.running_var"] = (
            torch.zeros(1, width),
            torch.tensor(1.0),
        )
        state[f"{name}.ball.isp_c"] = state[f"{name}.norm.ball.isp_c"] = torch.tensor(c)

    conv("conv", 3, widths[0], 3)
    norm("bn", widths[0])
    before = widths[0]
    for group, width in enumerate(widths, 1):
        for block in range((depth - 2) // 6):
            name = f"group{group}.{block}"
            conv(f"{name}.conv1", before, width, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if group > 1 and not block:
                conv(f"{name}.downsample", before, width, 1)
            before = width
    draw("fc.z", before, classes)
    draw("fc.bias", classes)
    state["fc.ball.isp_c"] = torch.tensor(c)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_state_dict_loads_and_gives_the_published_numbers(prefix):
    state = published_state(14, (4, 6, 8), 7, 0.3)
    model = published_net.load_published({prefix + n: v for n, v in state.items()}).double()
    assert (model.depth, model.widths, len(model.head.bias)) == (14, (4, 6, 8), 7)
    # The weights of one convolution and one norm by hand: the twin below reads the network's own names.
    assert torch.equal(
        model.blocks[2].conv1.weight.flatten(1).T, state["group2.0.conv1.weights"].float().double()
    )
    assert torch.equal(model.blocks[5].bn2.weight, state["group3.1.bn2.norm.var"].float().double())
    u = pixels(2, 8, 8)
    want = oracle.forward(model.state_dict(), u, 14, pytest.approx(0.3).expected, False, published=True)
    assert torch.allclose(model(u), want, rtol=1e-6, atol=1e-7)


def test_published_state_dict_has_the_published_number_of_parameters():
    state = published_state()
    learned = [v for n, v in state.items() if not n.endswith("isp_c") and "running" not in n]
    assert sum(v.numel() for v in learned) == 68_757
    published_net.load_published(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("group1.0.conv2.bias"), "blocks.0.conv2.bias is None"),
        (lambda s: s.pop("fc.bias"), "fc.bias is missing"),
        (lambda s: s.update({"fc.z": torch.zeros(3, 5)}), r"head.weight is \(5, 3\)"),
        (lambda s: s.update({"layer1.0.weight": torch.zeros(3)}), "layer1.0.weight is no tensor"),
        (lambda s: s.update({"fc.ball.isp_c": torch.tensor(2.0)}), "curvatures"),
    ],
)
def test_other_state_dicts_are_refused_by_name(change, message):
    state = published_state(8, (4, 6, 8), 5)
    change(state)
    with pytest.raises(ValueError, match=message):
        published_net.load_published(state)


# The image tower of a dual encoder.

TOWER = PoincareResNetConfig(image_size=16, depth=8, widths=(4, 6, 8), learn_c=True, stem_stride=2)
CLIP = ClipConfig(
    vision=TOWER,
    text=TextConfig(vocab_size=50, context_length=8, width=32, depth=1, heads=2, end_token=49),
    dim=16,
)


def test_tower_is_trained_saved_and_loaded_like_any_other(tmp_path):
    model = DualEncoder(CLIP)
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    tokens = torch.tensor([[48, 3, 4, 49], [48, 7, 49, 49], [48, 9, 8, 49], [48, 1, 2, 49]])
    nodes, scale, curvature = model(images, tokens, images[:2], tokens[:2])
    total, _ = loss(nodes, torch.tensor([0, 2]), scale, curvature, hycoclip_objective())
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        model.visual.curvature.log_c.fill_(-50)
    model.constrain_()
    assert model.visual.curvature().item() == pytest.approx(1e-3)
    model.eval().save_pretrained(tmp_path)
    again = DualEncoder.from_pretrained(tmp_path).eval()
    assert again.config == CLIP
    pixels = model.normalise(images)
    assert torch.equal(again.encode_image(pixels), model.encode_image(pixels))
    # Running statistics: an image's embedding does not depend on the others.
    assert torch.allclose(
        again.encode_image(pixels[:1]), again.encode_image(pixels)[:1], rtol=1e-4, atol=1e-6
    )


def test_tower_starts_where_the_lift_expects_it():
    """sqrt(c)|v| starts within a factor of four of one, as the vision transformer's does."""
    model = DualEncoder(replace(CLIP, vision=replace(TOWER, widths=(8, 16, 32)), dim=32))
    images = torch.randint(0, 256, (16, 16, 16, 3), dtype=torch.uint8)
    radius = model.encode_image(model.normalise(images)).norm(dim=-1).asinh().mean().item()
    assert 0.25 < radius < 4


def test_pooling_adapts_and_impossible_configurations_are_refused():
    tower = PoincareResNetTower(TOWER)
    assert tower(torch.randn(2, 3, 16, 16)).shape == tower(torch.randn(2, 3, 24, 19)).shape == (2, 8)
    with pytest.raises(ValueError, match="image_size 8 leaves nothing"):
        PoincareResNetConfig(image_size=8, stem_stride=4)
    values = json.loads(json.dumps(asdict(CLIP)))
    values["vision"]["kind"] = "resnet"
    with pytest.raises(ValueError, match="kind 'resnet' is unknown: use vit or poincare_resnet"):
        config_from_dict(values, "here")
