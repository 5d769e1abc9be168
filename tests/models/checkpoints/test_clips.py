"""Hugging Face's and OpenCLIP's checkpoints: same features as their own code or a plain reference; clear refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyco.models.checkpoints import read_checkpoint
from hyco.models.clip import DualEncoder
from tests.models.checkpoints.layouts import openclip, token_rows, transformers_clip
from tests.oracle.clip_towers import openclip_images, openclip_texts


@torch.no_grad()
@pytest.mark.parametrize("act, eos", [("quick_gelu", 599), ("gelu", 2)])
def test_features_of_a_transformers_clip(tmp_path, act, eos):
    theirs = transformers_clip(tmp_path, act, eos)
    found = read_checkpoint(tmp_path)
    assert (found.layout, found.tokenizer) == ("huggingface", None)
    ours, pixels, tokens = found.model().eval(), torch.randn(3, 3, 24, 24), token_rows()
    image = theirs.get_image_features(pixel_values=pixels).pooler_output
    text = theirs.get_text_features(input_ids=tokens).pooler_output
    torch.testing.assert_close(ours.project_image(pixels), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.project_text(tokens), text, atol=1e-5, rtol=1e-5)
    assert ours.scale.item() == pytest.approx(theirs.logit_scale.exp().item())
    # In Euclidean geometry the score is their cosine.
    both = theirs(input_ids=tokens, pixel_values=pixels)
    score = ours.scale * ours.score(ours.encode_image(pixels), ours.encode_text(tokens))
    torch.testing.assert_close(score, both.logits_per_image, atol=1e-3, rtol=1e-5)


def test_pixel_statistics_come_from_the_preprocessor(tmp_path):
    transformers_clip(tmp_path)
    assert read_checkpoint(tmp_path).config.pixel_mean[0] == 0.48145466
    said = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "crop_size": {"height": 24, "width": 24},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read_checkpoint(tmp_path).config.pixel_std == (0.4, 0.5, 0.6)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | {"crop_size": 224}))
    with pytest.raises(ValueError, match="crops to 224 pixels and the model takes 24"):
        read_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1,')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not JSON .* again"):
        read_checkpoint(tmp_path)


def test_pieces_named_by_an_index_and_half_precision(tmp_path):
    theirs = transformers_clip(tmp_path)
    state = {name: value.half() for name, value in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    pieces = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for piece, held in pieces.items():
        save_file({name: state[name] for name in held}, tmp_path / piece)
    index = {"weight_map": {name: piece for piece, held in pieces.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_checkpoint(tmp_path).weights
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no weights"):
        read_checkpoint(tmp_path)
    assert all(value.dtype == torch.float32 for value in found.values())
    torch.testing.assert_close(
        found["textual_projection.weight"], theirs.text_projection.weight, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(
    "part, field, value, message",
    [
        ("vision_config", "hidden_size", "wide", r"config\.json is not a CLIP's: .*hidden_size"),
        ("vision_config", "num_hidden_layers", 3, r"no tensor vision_model\.encoder\.layers\.2\."),
        ("vision_config", "patch_size", 16, "image_size 24 is not a multiple of patch_size 16"),
        ("text_config", "eos_token_id", None, "eos_token_id is None"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, part, field, value, message):
    transformers_clip(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said[part][field] = value
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path)


def test_other_activations_and_models_are_refused(tmp_path):
    transformers_clip(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match="no CLIP that Hyco knows \\(model_type 'siglip'\\)"):
        read_checkpoint(tmp_path)


def openclip_folder(folder: Path, state: dict, quick: bool, **vision) -> Path:
    described = {
        "model_cfg": {
            "embed_dim": 24,
            "quick_gelu": quick,
            "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 128, "layers": 2, **vision},
            "text_cfg": {"context_length": 16, "vocab_size": 600, "width": 64, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_features_of_an_openclip_directory(tmp_path, quick, prefix):
    torch.manual_seed(0)
    state = openclip()
    stored = {name if name.startswith(("visual", "logit")) else prefix + name: v for name, v in state.items()}
    ours = read_checkpoint(openclip_folder(tmp_path, stored, quick)).model().eval()
    pixels, tokens = torch.randn(3, 3, 24, 24), token_rows()
    expected = openclip_images(state, pixels, quick)
    torch.testing.assert_close(ours.project_image(pixels).double(), expected, atol=1e-5, rtol=1e-5)
    expected = openclip_texts(state, tokens, heads=2, quick=quick)
    torch.testing.assert_close(ours.project_text(tokens).double(), expected, atol=1e-5, rtol=1e-5)
    assert ours.config.pixel_mean == (0.1, 0.2, 0.3)


def test_a_bare_openclip_state_dict_must_be_told_its_gelu(tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in openclip().items()}}, tmp_path / "epoch.pt")
    with pytest.raises(ValueError, match=r"which GELU .* --activation quick_gelu"):
        read_checkpoint(tmp_path / "epoch.pt")
    found = read_checkpoint(tmp_path / "epoch.pt", activation="gelu")
    assert found.layout == "openclip" and found.config.text.activation == "gelu"


def test_an_openclip_of_another_kind_is_refused(tmp_path):
    for asked in ({"timm_model_name": "vit_base"}, {"pool_type": "avg"}, {"ls_init_value": 0.1}):
        name = next(iter(asked))
        with pytest.raises(ValueError, match=rf"vision_cfg\.{name} is .*cannot express"):
            read_checkpoint(openclip_folder(tmp_path, openclip(), True, **asked))


def test_our_own_directory_reads_like_the_others(tmp_path):
    openclip_folder(tmp_path / "theirs", openclip(), True)
    model = read_checkpoint(tmp_path / "theirs").model()
    model.save_pretrained(tmp_path / "ours")
    again = read_checkpoint(tmp_path / "ours")
    assert again.layout == "hyco" and again.config == model.config
    loaded = DualEncoder.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in again.weights.items())


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_not_tensors_alone_are_refused(tmp_path, capsys):
    path = tmp_path / "x.pth"
    torch.save({"model": Hostile()}, path)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        read_checkpoint(path)
    with pytest.raises(ValueError) as refused:
        read_checkpoint(path)
    assert "weights_only" not in str(refused.value), "no advice to unpickle whatever comes"
    assert "must not run" not in capsys.readouterr().out
    path.write_bytes(b"not a checkpoint" * 10)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        read_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds int 'epoch' where a tensor belongs"):
        read_checkpoint(path)
    torch.save({"a.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"no layout that Hyco knows \(its first tensor is a\.weight\)"):
        read_checkpoint(path)
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected config\.json with model_type 'clip'"):
        read_checkpoint(tmp_path)
