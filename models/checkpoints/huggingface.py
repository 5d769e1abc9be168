"""Import of transformers.CLIPModel directories: config.json (model_type "clip") and its tensors -> ours.

Radford et al. 2021: class token, learned positions, a norm before the first block, separate query, key and value
layers, quick GELU in OpenAI's weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyco.models.checkpoints.names import Tensors
from hyco.models.clip import ClipConfig
from hyco.models.encoders.block import Activation
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.files import read_json

ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
# Statistics of OpenAI's training images, which nearly every CLIP uses.
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def from_huggingface(folder: Path, state: Mapping[str, Tensor]) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Our configuration and weights, with the same features before normalisation; geometry "euclid".

    Raises:
        ValueError: not a CLIPModel of a square vision transformer and a text transformer.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig

    try:
        theirs = CLIPConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        raise ValueError(f"{folder / 'config.json'} is not a CLIP's: {error}") from error
    config = _config(folder, theirs.vision_config, theirs.text_config, theirs.projection_dim)
    positions = {
        name for name in state if name.endswith("position_ids")
    }  # 0, 1, 2, ... in files of old versions
    tensors = Tensors(
        {name: value for name, value in state.items() if name not in positions},
        str(folder),
        "a Hugging Face CLIPModel",
    )
    vision = config.vision
    weights = {
        "visual.class_token": tensors.take("vision_model.embeddings.class_embedding").view(1, 1, -1),
        "visual.positions": tensors.take("vision_model.embeddings.position_embedding.weight"),
        "visual.patch.weight": tensors.take("vision_model.embeddings.patch_embedding.weight").reshape(
            vision.width, -1
        ),
        "textual.tokens.weight": tensors.take("text_model.embeddings.token_embedding.weight"),
        "textual.positions": tensors.take("text_model.embeddings.position_embedding.weight"),
        "visual_projection.weight": tensors.take("visual_projection.weight"),
        "textual_projection.weight": tensors.take("text_projection.weight"),
        "log_scale": tensors.take("logit_scale").reshape(()),
    }
    for leaf in ("weight", "bias"):
        weights[f"visual.first_norm.{leaf}"] = tensors.take(f"vision_model.pre_layrnorm.{leaf}")
        weights[f"visual.norm.{leaf}"] = tensors.take(f"vision_model.post_layernorm.{leaf}")
        weights[f"textual.norm.{leaf}"] = tensors.take(f"text_model.final_layer_norm.{leaf}")
    weights |= blocks(tensors, "vision_model", "visual", vision.depth)
    weights |= blocks(tensors, "text_model", "textual", config.text.depth)
    tensors.finish()
    return config, weights


def blocks(tensors: Tensors, theirs: str, ours: str, depth: int) -> dict[str, Tensor]:
    """Our weights of the blocks of one of their towers: separate query, key and value layers become one."""
    weights = {}
    for index in range(depth):
        there, here = f"{theirs}.encoder.layers.{index}", f"{ours}.blocks.{index}"
        for leaf in ("weight", "bias"):
            weights[f"{here}.qkv.{leaf}"] = torch.cat(
                [tensors.take(f"{there}.self_attn.{one}_proj.{leaf}") for one in "qkv"]
            )
            for part, own in (
                ("layer_norm1", "attention_norm"),
                ("self_attn.out_proj", "attention_out"),
                ("layer_norm2", "mlp_norm"),
                ("mlp.fc1", "mlp_in"),
                ("mlp.fc2", "mlp_out"),
            ):
                weights[f"{here}.{own}.{leaf}"] = tensors.take(f"{there}.{part}.{leaf}")
    return weights


def _config(folder: Path, vision: Any, text: Any, dim: Any) -> ClipConfig:
    for name, size in (("image_size", vision.image_size), ("patch_size", vision.patch_size)):
        if not isinstance(size, int):
            raise ValueError(f"{folder}: {name} is {size}; Hyco's image tower is square")
    if vision.num_channels != 3:
        raise ValueError(f"{folder}: num_channels is {vision.num_channels}, not 3")
    mean, std = pixels_of(folder, vision.image_size, OPENAI_MEAN, OPENAI_STD)
    return ClipConfig(
        vision=VisionConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            positions="learned",
            activation=_activation(folder, vision.hidden_act),
            norm_eps=vision.layer_norm_eps,
            first_norm=True,
            patch_bias=False,
        ),
        text=text_config(folder, text),
        dim=dim,
        geometry="euclid",
        pixel_mean=mean,
        pixel_std=std,
    )


def text_config(folder: Path, text: Any) -> TextConfig:
    """Our text tower of a transformers CLIPTextConfig; ValueError for one that Hyco cannot express."""
    # transformers' own rule: files from before the id was corrected have 2, which means the highest id.
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    if not isinstance(end, int):
        raise ValueError(f"{folder}: eos_token_id is {end}; Hyco reads a text at one end token")
    return TextConfig(
        vocab_size=text.vocab_size,
        context_length=text.max_position_embeddings,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        mlp_ratio=text.intermediate_size / text.hidden_size,
        end_token=end,
        activation=_activation(folder, text.hidden_act),
        norm_eps=text.layer_norm_eps,
    )


def _activation(folder: Path, name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(f"{folder}: hidden_act is {name!r}; Hyco's blocks have {' and '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


Triple = tuple[float, float, float]


def pixels_of(folder: Path, size: int, usual_mean: Triple, usual_std: Triple) -> tuple[Triple, Triple]:
    """Mean and standard deviation of preprocessor_config.json, the usual ones where there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return usual_mean, usual_std
    said = read_json(path)
    crop = said.get("crop_size", size)
    side = crop.get("height", size) if isinstance(crop, dict) else crop
    if side != size:
        raise ValueError(f"{path} crops to {side} pixels and the model takes {size}")
    mean, std = (
        tuple(said.get(name, usual)) for name, usual in (("image_mean", usual_mean), ("image_std", usual_std))
    )
    if not len(mean) == len(std) == 3:
        raise ValueError(f"{path}: image_mean {mean} and image_std {std} must have 3 values each")
    return mean, std
