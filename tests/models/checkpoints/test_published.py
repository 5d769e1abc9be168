"""MERU's and HyCoCLIP's state dicts: same features as a plain reference, same bits back, clear refusals."""

import dataclasses

import pytest
import torch

from hyco.models.checkpoints import read_checkpoint, to_published
from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from tests.models.checkpoints.layouts import published, token_rows
from tests.oracle.clip_towers import published_images, published_texts


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return published()


@pytest.fixture(scope="module")
def model(state, tmp_path_factory) -> DualEncoder:
    path = tmp_path_factory.mktemp("published") / "hycoclip.pth"
    torch.save({"model": state, "iteration": 500_000}, path)
    return read_checkpoint(path, vision_heads=4).model().eval()


@torch.no_grad()
def test_features_are_those_of_the_published_architecture(state, model):
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    expected = published_images(state, images.permute(0, 3, 1, 2) / 255, heads=4)
    torch.testing.assert_close(
        model.encode_image(model.normalise(images)).double(), expected, atol=1e-5, rtol=1e-5
    )
    tokens = token_rows()
    texts = model.encode_text(tokens).double()
    torch.testing.assert_close(texts, published_texts(state, tokens), atol=1e-5, rtol=1e-5)
    assert expected.norm(dim=-1).min() > 0.1 and texts.norm(dim=-1).min() > 0.1


def test_the_file_s_own_pixel_statistics_positions_and_scalars_are_kept(state, model):
    assert model.config.pixel_mean == model.config.pixel_std == tuple(state["pixel_std"].flatten().tolist())
    assert torch.equal(model.visual.positions, state["visual.pos_embed"][0])
    assert model.curvature.item() == pytest.approx(torch.tensor(-0.4).exp().item())
    assert model.scale.item() == pytest.approx(40)


def test_back_to_the_published_layout_bit_for_bit(state, model, tmp_path):
    model.save_pretrained(tmp_path)
    back = to_published(DualEncoder.from_pretrained(tmp_path))
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].shape == value.shape and torch.equal(back[name], value), name


def test_a_euclidean_baseline_has_no_scalars_of_the_space(state, tmp_path):
    flat = {k: v for k, v in state.items() if k not in ("visual_alpha", "textual_alpha", "curv")}
    torch.save(flat, tmp_path / "clip.pth")
    found = read_checkpoint(tmp_path / "clip.pth", vision_heads=4)
    assert found.config.geometry == "euclid"
    assert to_published(found.model()).keys() == flat.keys()


@pytest.mark.parametrize("width, heads", [(384, 12), (768, 12)])
def test_heads_of_the_published_sizes_are_known(width, heads, tmp_path):
    torch.save(published(width, depth=1, side=2), tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth").config.vision.heads == heads


def test_what_we_train_can_be_written_if_it_is_of_that_architecture():
    torch.manual_seed(0)
    ours = ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
        text=TextConfig(vocab_size=600, context_length=8, width=64, depth=1, heads=1, end_token=599),
        dim=8,
    )
    model = DualEncoder(ours).eval()
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    expected = published_images(to_published(model), images.permute(0, 3, 1, 2) / 255, heads=2)
    torch.testing.assert_close(
        model.encode_image(model.normalise(images)).double(), expected, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"geometry is product"):
        to_published(DualEncoder(dataclasses.replace(ours, geometry="product", factors=2)))


def test_heads_of_another_size_survive_when_they_are_told(tmp_path):
    torch.manual_seed(0)
    config = ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
        text=TextConfig(vocab_size=600, context_length=8, width=96, depth=1, heads=3, end_token=599),
        dim=8,
    )
    model = DualEncoder(config).eval()
    torch.save(to_published(model), tmp_path / "m.pth")
    again = read_checkpoint(tmp_path / "m.pth", vision_heads=2, text_heads=3)
    assert again.config.text.heads == 3
    tokens = torch.randint(1, 599, (3, 8))
    assert torch.equal(again.model().eval().encode_text(tokens), model.encode_text(tokens))
    with pytest.raises(ValueError, match="width of 96, not a multiple of its heads' 64"):
        read_checkpoint(tmp_path / "m.pth", vision_heads=2)
    with pytest.raises(ValueError, match=r"width 96, which 5 heads do not divide \(--text-heads\)"):
        read_checkpoint(tmp_path / "m.pth", vision_heads=2, text_heads=5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.norm.weight"), "has no tensor visual.norm.weight"),
        (lambda s: s.update(extra=torch.ones(2)), r"holds extra \(2,\), which .* does not have"),
        (lambda s: s.update({"textual.attn_mask": torch.zeros(16, 16)}), "not the causal mask"),
        (lambda s: s.update({"visual.pos_embed": torch.ones(1, 16, 48)}), "not 1 \\+ a square"),
        (lambda s: s.update({"textual.posit_embed": torch.ones(16, 64)}), "posit_embed is .* 2048 values"),
    ],
)
def test_another_architecture_is_refused_by_name(state, tmp_path, change, message):
    changed = dict(state)
    change(changed)
    torch.save(changed, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "model.pth", vision_heads=4)


def test_unknown_heads_are_asked_for(state, tmp_path):
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="width 48, whose heads are not known: give them"):
        read_checkpoint(tmp_path / "model.pth")
