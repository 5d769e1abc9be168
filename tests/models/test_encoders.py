"""The towers: shapes, attention masks, patches, positions and the published parameter counts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.block import FEW_VALUES, attend, attend_to_selves
from hyco.models.encoders.text import TextConfig, TextTransformer
from hyco.models.encoders.vit import VisionConfig, VisionTransformer, sincos_positions

SMALL = VisionConfig(image_size=16, patch_size=4, width=32, depth=2, heads=4)
TEXT = TextConfig(vocab_size=600, context_length=12, width=32, depth=2, heads=4, end_token=599)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("width, published", [(384, 85.3e6), (768, 149.6e6)])
def test_published_parameter_counts(width, published):
    """85.3 M (S) and 149.6 M (B) count towers, projections, the four scalars and the fixed positions.

    The fixed positions are not learned, but the published count holds them: without them it would be 85.2 and
    149.5 million.
    """
    with torch.device("meta"):
        model = DualEncoder(ClipConfig(vision=VisionConfig(width=width)))
    counted = parameters(model) + model.visual.positions.numel()
    assert round(counted / 1e6, 1) == published / 1e6
    assert round(parameters(model) / 1e6, 1) != published / 1e6


def test_patches_equal_a_strided_convolution():
    tower = VisionTransformer(SMALL)
    conv = nn.Conv2d(3, 32, 4, 4)
    conv.load_state_dict({"weight": tower.patch.weight.view(32, 3, 4, 4), "bias": tower.patch.bias})
    pixels = torch.randn(2, 3, 16, 16)
    expected = conv(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower.patch(tower.patches(pixels)), expected, rtol=1e-4, atol=1e-5)


def test_positions_tell_rows_from_columns_and_leave_the_class_token_alone():
    grid = sincos_positions(4, 32)
    assert grid.shape == (17, 32) and not grid[0].any()
    assert len({tuple(row.tolist()) for row in grid}) == 17
    # The first quarter is the sine of the column at frequency one and below; rows sit in the second half.
    assert grid[1 + 4 * 2 + 3, 0].item() == pytest.approx(math.sin(3))
    assert grid[1 + 4 * 2 + 3, 16].item() == pytest.approx(math.sin(2))


def test_image_feature_sees_every_patch_and_no_other_image():
    torch.manual_seed(0)
    tower = VisionTransformer(SMALL)
    pixels = torch.randn(2, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(tower(pixels)[0].square().sum(), pixels)
    assert (F.max_pool2d(grad[0].abs().sum(0, keepdim=True)[None], 4) > 0).all()
    assert not grad[1].any()


def test_truncated_weights_have_the_published_spread_and_are_an_option():
    torch.manual_seed(0)
    shape = VisionConfig(image_size=16, patch_size=4, width=64, depth=2, heads=4)
    tower, clip = VisionTransformer(replace(shape, init="truncated")), VisionTransformer(shape)
    for block in tower.blocks:
        for linear in (block.qkv, block.attention_out, block.mlp_in, block.mlp_out):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05) and not linear.bias.any()
        assert bool((block.attention_norm.weight == 1).all())
    reach = 48**-0.5  # of a convolution over 3 x 4 x 4 values: uniform in +-fan_in^-1/2
    patch = tower.patch.weight
    assert patch.abs().max() <= reach and patch.std().item() == pytest.approx(reach / 3**0.5, rel=0.05)
    assert tower.class_token.abs().max() < 1e-4
    assert clip.blocks[0].qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_image_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"20 x 16 pixels for a model of 16 x 16"):
        VisionTransformer(SMALL)(torch.zeros(1, 3, 16, 20))


def test_text_feature_is_at_the_first_end_token_and_ignores_what_follows():
    torch.manual_seed(0)
    tower = TextTransformer(TEXT)
    short = torch.tensor([[598, 4, 5, 599]])
    padded = torch.tensor([[598, 4, 5, 599, 599, 599], [598, 4, 5, 599, 7, 8]])
    features = tower(padded)
    torch.testing.assert_close(features, tower(short).expand(2, -1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tower(torch.tensor([[598, 5, 4, 599]])), tower(short), atol=1e-3)


def test_towers_match_a_plain_pre_norm_block():
    """The fused attention against softmax(q k / sqrt d) v spelled out, with and without the causal mask."""
    torch.manual_seed(0)
    for causal in (False, True):
        block = TextTransformer(TEXT).blocks[0] if causal else VisionTransformer(SMALL).blocks[0]
        x = torch.randn(2, 5, 32)
        q, k, v = (
            part.view(2, 5, 4, 8).transpose(1, 2) for part in block.qkv(block.attention_norm(x)).chunk(3, -1)
        )
        weight = q @ k.transpose(-1, -2) / math.sqrt(8)
        if causal:
            weight = weight.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        y = x + block.attention_out((weight.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32))
        y = y + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(y))))
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch, few", [(2, True), (400, False)])
def test_attention_in_bfloat16_on_a_cpu_agrees_with_the_fused_kernel(causal, batch, few):
    """The spelled-out form, and that of few values, against float32: value, gradient, to bfloat16's eight bits."""
    torch.manual_seed(0)
    wide = [torch.randn(batch, 3, 7, 8, requires_grad=True) for _ in range(3)]
    assert (wide[0].numel() <= FEW_VALUES) == few
    half = [x.detach().bfloat16().requires_grad_() for x in wide]
    seen, fused = attend(*half, causal), attend(*wide, causal)
    assert seen.dtype == torch.bfloat16 and fused.dtype == torch.float32
    torch.testing.assert_close(seen.float(), fused, rtol=0.03, atol=0.03)
    seen.float().square().sum().backward()
    fused.square().sum().backward()
    for a, b in zip(half, wide, strict=True):
        assert (a.grad.float() - b.grad).norm() < 0.02 * b.grad.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [(2, 7, 3, 8), (500, 5, 3, 8), (60, 33, 5, 6), (50_001, 1, 1, 1)])
def test_attention_of_all_tokens_equals_the_reference(causal, size):
    """bfloat16 on a CPU beside `attend`, and both beside float32: few values, many, odd sizes, one token."""
    torch.manual_seed(0)
    b, n, heads, d = size
    wide = torch.randn(b, n, 3, heads, d, requires_grad=True)
    half, other = (wide.detach().bfloat16().requires_grad_() for _ in range(2))
    few = wide.numel() // 3 <= FEW_VALUES
    weights = torch.randn(b, n, heads, d)
    ours = attend_to_selves(half, causal)
    assert (type(ours.grad_fn).__name__ == "_WrittenOutBackward" or few) and ours.dtype == torch.bfloat16
    theirs = attend(*(part.transpose(1, 2) for part in other.unbind(2)), causal).transpose(1, 2)
    exact = attend(*(part.transpose(1, 2) for part in wide.unbind(2)), causal).transpose(1, 2)
    assert ours.shape == theirs.shape == exact.shape == (b, n, heads, d)
    for out in (ours, theirs, exact):
        (out.float() * weights).sum().backward()
    off = [float(((x.float() - exact).norm() / exact.norm()).detach()) for x in (ours, theirs)]
    slope_off = [float((x.grad.float() - wide.grad).norm() / wide.grad.norm()) for x in (half, other)]
    assert off[0] <= 1.1 * off[1] < 0.02 and slope_off[0] <= 1.5 * slope_off[1] + 1e-6 < 0.02


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_of_a_block_equals_that_token_of_the_whole_block(causal, dtype):
    torch.manual_seed(0)
    block = (TextTransformer(TEXT) if causal else VisionTransformer(SMALL)).blocks[0].to(dtype)
    x, at = torch.randn(3, 6, 32, dtype=dtype), torch.tensor([0, 5, 2])
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    expected = block(x)[torch.arange(3), at][:, None]
    torch.testing.assert_close(block(x, at), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VisionConfig(image_size=50, patch_size=16), "not a multiple of patch_size 16; 48 is"),
        (lambda: VisionConfig(width=30), "multiple of 4"),
        (lambda: VisionTransformer(VisionConfig(width=32, heads=5, depth=1)), "not a multiple of 5 heads"),
        (lambda: TextConfig(vocab_size=10, end_token=10), "outside the vocabulary of 10"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_traced_tower_takes_any_batch():
    """`hyco export --onnx` of the demo: 37 tokens of 128 numbers reach FEW_VALUES between 10 and 11 images."""
    sizes = VisionConfig(image_size=48, patch_size=8, width=128, depth=2, heads=4)
    tower = VisionTransformer(sizes).eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        traced = torch.export.export(tower, (torch.randn(2, 3, 48, 48),), dynamic_shapes=({0: batch},))
        pixels = torch.randn(12, 3, 48, 48)
        assert pixels.shape[0] * 37 * 128 > FEW_VALUES
        torch.testing.assert_close(traced.module()(pixels), tower(pixels), rtol=1e-4, atol=1e-5)
