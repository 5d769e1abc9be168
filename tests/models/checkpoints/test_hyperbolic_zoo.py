"""UNCHA's, PHyCLIP's and Hyper3-CLIP's checkpoints, made in their published names: features, scalars, refusals."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from hyco.models.checkpoints import read_checkpoint, to_published
from hyco.models.clip import ClipConfig, DualEncoder, config_from_dict
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from tests.models.checkpoints.layouts import VOCABULARY, hyper3, phyclip, token_rows, uncha
from tests.oracle import clip_towers as plain

IMAGES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, state: dict) -> Path:
    torch.save({"model": state, "iteration": 500_000}, folder / "model.pth")
    return folder / "model.pth"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_uncha(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = uncha()
    model = read_checkpoint(saved(tmp_path, state), vision_heads=4).model().eval()
    close(
        model.encode_image(model.normalise(IMAGES)),
        plain.published_images(state, IMAGES.permute(0, 3, 1, 2) / 255, heads=4),
    )
    tokens = token_rows()
    close(model.encode_text(tokens), plain.published_texts(state, tokens))
    assert model.scale.item() == pytest.approx(state["global_logit_scale"].exp().item())


@torch.no_grad()
def test_phyclip_has_alphas_of_its_own_in_every_factor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = phyclip(factors=3)
    found = read_checkpoint(saved(tmp_path, state), vision_heads=4)
    assert (found.config.geometry, found.config.factors, found.config.factor_alphas) == ("product", 3, True)
    model = found.model().eval()
    features = plain.published_image_features(state, IMAGES.permute(0, 3, 1, 2) / 255, heads=4)
    images = plain.product_lift(state, features, "visual_concept_alphas")
    close(model.encode_image(model.normalise(IMAGES)), images)
    tokens = token_rows()
    texts = plain.product_lift(state, plain.published_text_features(state, tokens), "textual_concept_alphas")
    close(model.encode_text(tokens), texts)
    assert model.visual_alpha.tolist() == pytest.approx([-1.0, -1.2, -1.4])
    model.save_pretrained(tmp_path / "own")
    again = DualEncoder.from_pretrained(tmp_path / "own")
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    with pytest.raises(ValueError, match=r"curvs\.0 is \(2,\), where one number belongs"):
        read_checkpoint(saved(tmp_path, state | {"curvs.0": torch.zeros(2)}), vision_heads=4)
    del state["visual_concept_alphas.1"]
    with pytest.raises(ValueError, match=r"3 factors and no tensor visual_concept_alphas\.1"):
        read_checkpoint(saved(tmp_path, state), vision_heads=4)


@pytest.mark.parametrize(
    "last_norm, said, eps", [("fc_norm", {}, 1e-6), ("norm", {"vision_norm_layer": "layer_norm"}, 1e-5)]
)
@torch.no_grad()
def test_hyper3(tmp_path: Path, last_norm: str, said: dict, eps: float) -> None:
    state, text = hyper3(tmp_path, last_norm, **said)
    found = read_checkpoint(tmp_path, vision_heads=4)
    assert found.layout == "hyper3" and found.config.projection_bias
    assert found.config.vision.pooling == ("mean" if last_norm == "fc_norm" else "class")  # pyright: ignore[reportAttributeAccessIssue]
    model = found.model().eval()
    pixels = torch.randn(3, 3, 24, 24)
    close(model.encode_image(pixels), plain.hyper3_images(state, pixels, 4, last_norm, eps))
    tokens = token_rows()
    pooled = text(tokens, attention_mask=(tokens > 0).long()).pooler_output
    features = pooled @ state["text_proj.weight"].T + state["text_proj.bias"]
    expected = plain.exp0(features.double() * torch.tensor(-2.3).exp(), torch.tensor(-0.4).double().exp())
    close(model.encode_text(tokens), expected)
    assert model.scale.item() == pytest.approx(30) and found.config.text.vocab_size == VOCABULARY
    assert found.config.pixel_mean == (0.485, 0.456, 0.406)
    with pytest.raises(
        ValueError, match=r"(norm_eps|activation|pooling|projection_bias) is .* and the published"
    ):
        to_published(model)


def test_hyper3_of_the_training_objective_and_what_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state, _ = hyper3(tmp_path)
    parts = {"local_logit_scale": torch.tensor(3.0), "global_local_logit_scale": torch.tensor(3.0)}
    parts |= {"query_pooling.out.weight": torch.ones(2, 2), "global_logit_scale": torch.tensor(2.5)}
    del state["logit_scale"]
    save_file(state | parts, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path, vision_heads=4).model().log_scale.item() == pytest.approx(2.5)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"text_config": None}, "has no text_config"),
        ({"curv_init": None}, "curv_init is None, not a positive number"),
        ({"max_text_length": 0}, "max_text_length is 0, not a positive number"),
        ({"curvature_max": "8"}, "curvature_max is '8', not a positive number"),
        (
            {"text_config": config["text_config"] | {"num_attention_heads": 3}},
            "text_config is not a CLIP's: ",
        ),
        ({"image_size": 32}, "image_size is 32 and its positions are of 24"),
        ({"vision_backbone": "vit_tiny"}, "image tower 'vit_tiny', whose heads are not known"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            read_checkpoint(tmp_path, vision_heads=None if "vit_tiny" in message else 4)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state | parts | {"image_proj.2.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"holds image_proj\.2\.weight \(2,\), which a Hyper3-CLIP checkpoint"
    ):
        read_checkpoint(tmp_path, vision_heads=4)


@pytest.mark.parametrize("field", ["pooling", "projection_bias"])
def test_the_published_layout_has_no_such_part(field: str) -> None:
    small = VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2)
    text = TextConfig(vocab_size=600, context_length=8, width=64, depth=1, heads=1, end_token=599)
    config = ClipConfig(vision=small, text=text, dim=8)
    changed = (
        replace(config, vision=replace(small, pooling="mean"))
        if field == "pooling"
        else replace(config, projection_bias=True)
    )
    with pytest.raises(ValueError, match=f"{field} is "):
        to_published(DualEncoder(changed))
    to_published(DualEncoder(config))


def test_alphas_per_factor_are_a_choice() -> None:
    """A model without the choice has the weights it had, and the file of one with it is read again."""
    with pytest.raises(ValueError, match="factor_alphas belong to geometry 'product', not 'lorentz'"):
        ClipConfig(factor_alphas=True)
    config = ClipConfig(geometry="product", factors=64, factor_alphas=True)
    assert config_from_dict(json.loads(json.dumps(asdict(config))), "x") == config
    with torch.device("meta"):
        own = {n: v.shape for n, v in DualEncoder(config).state_dict().items()}
        shared = DualEncoder(ClipConfig(geometry="product", factors=64)).state_dict()
    assert own["visual_alpha"] == own["textual_alpha"] == (64,) and shared["visual_alpha"].shape == ()
    more = sum(shape.numel() for shape in own.values()) - sum(value.numel() for value in shared.values())
    assert more == 126, "what a published PHyCLIP has beside ours"
