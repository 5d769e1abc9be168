"""The replaced layers of a grounder say what the library's own layers say."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoMultiscaleDeformableAttention,
)

from hyco.models.grounding import fast_dino
from hyco.models.grounding.fast_dino import DeformableAttention, OneDnnLinear, accelerate
from tests.factories.grounder import save_tiny

SHAPES = [(5, 7), (3, 4), (1, 1)]
CELLS = sum(height * width for height, width in SHAPES)


def library(heads: int = 4, points: int = 3) -> GroundingDinoMultiscaleDeformableAttention:
    torch.manual_seed(0)
    config = GroundingDinoConfig(d_model=32, num_feature_levels=len(SHAPES))
    layer = GroundingDinoMultiscaleDeformableAttention(config, heads, points).eval().requires_grad_(False)
    for parameter in layer.parameters():  # as it is initialised, all queries look alike
        nn.init.normal_(parameter)
    return layer


def inputs(coordinates: int, references: torch.Tensor | None = None) -> dict:
    torch.manual_seed(1)
    if references is None:
        references = torch.rand(2, 9, len(SHAPES), coordinates) * 1.4 - 0.2  # some outside of the image
    return {
        "hidden_states": torch.randn(2, 9, 32),
        "encoder_hidden_states": torch.randn(2, CELLS, 32),
        "position_embeddings": torch.randn(2, 9, 32),
        "reference_points": references,
        "spatial_shapes": torch.tensor(SHAPES),
        "spatial_shapes_list": SHAPES,
    }


@pytest.mark.parametrize("heads, points", [(4, 3), (1, 1), (8, 4)])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_deformable_attention_is_that_of_the_library(coordinates, heads, points):
    theirs = library(heads, points)
    given = inputs(coordinates)
    for expected, ours in zip(theirs(**given), DeformableAttention(theirs)(**given), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_masked_cells_count_as_zeros():
    theirs, given = library(), inputs(2)
    mask = torch.rand(2, CELLS) < 0.7
    expected, ours = (
        theirs(**given, attention_mask=mask),
        DeformableAttention(theirs)(**given, attention_mask=mask),
    )
    torch.testing.assert_close(ours[0], expected[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.0, 9.0, 1e30, float("inf"), float("nan")])
def test_positions_at_and_beyond_the_border(value):
    theirs = library()
    nn.init.zeros_(theirs.sampling_offsets.weight)
    nn.init.constant_(theirs.sampling_offsets.bias, 0.5)  # so that 0 and 1 are exactly at cells and borders
    given = inputs(2, torch.full((2, 9, len(SHAPES), 2), value))
    ours = DeformableAttention(theirs)(**given)[0]
    assert ours.shape == (2, 9, 32)
    if math.isfinite(value):
        torch.testing.assert_close(ours, theirs(**given)[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation, function", [("none", lambda x: x), ("relu", F.relu), ("gelu", F.gelu)])
def test_linear_layer_is_that_of_pytorch(activation, function, bias):
    plain = nn.Linear(17, 5, bias=bias).requires_grad_(False)
    ours = OneDnnLinear(plain, activation)
    for shape in [(1, 17), (3, 2, 17), (0, 17), (33, 1, 7, 17)]:
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), function(plain(x)), atol=1e-6, rtol=1e-5)
    x = torch.randn(17, 9).t()  # not contiguous
    torch.testing.assert_close(ours(x), function(plain(x)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("mm", [False, True])
def test_an_accelerated_network_says_what_it_said(tmp_path, monkeypatch, mm, onednn):
    if onednn and not fast_dino.has_onednn():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(fast_dino, "has_onednn", lambda: onednn)
    save_tiny(tmp_path, mm=mm)
    network = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path).eval().requires_grad_(False)
    given = {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "input_ids": torch.tensor([[101, 5, 6, 1012, 102]] * 2),
    }
    with torch.no_grad():
        expected = network(**given)
        accelerate(network)
        ours = network(**given)
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-4)
    kinds = [type(module) for module in network.modules()]
    assert DeformableAttention in kinds
    assert (nn.Linear in kinds, OneDnnLinear in kinds) == (not onednn, onednn)
