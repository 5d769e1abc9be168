"""Import of Hyper3-CLIP directories (hyper3labs/hyper3-clip-v1): config.json and model.safetensors -> ours.

A timm vision transformer under `vision_encoder.backbone`, a transformers CLIPTextModel under
`text_encoder.backbone.text_model`, two projections with biases, a hyperboloid of learned curvature. The image feature
is the mean of the patches where the tower has `fc_norm`, else the class token. The temperatures of parts and the query
pooling of the training objective are not part of a dual encoder and are left out.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hyco.models.checkpoints.huggingface import blocks, pixels_of, text_config
from hyco.models.checkpoints.names import TIMM, Tensors, block_names, both, side_of
from hyco.models.clip import ClipConfig
from hyco.models.encoders.vit import VisionConfig

VISION, TEXT = "vision_encoder.backbone", "text_encoder.backbone"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = {"vit_small_patch16_224": 6, "vit_base_patch16_224": 12, "vit_large_patch16_224": 16}  # timm's
TIMM_EPS, LAYER_NORM_EPS = 1e-6, 1e-5  # of timm's own norms, and of "vision_norm_layer": "layer_norm"
TRAINING = ("query_pooling.", "local_logit_scale", "global_local_logit_scale")


def from_hyper3(
    folder: Path, said: Mapping[str, Any], state: Mapping[str, Tensor], vision_heads: int | None = None
) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Our configuration and weights.

    Args:
        folder: the directory, for messages and preprocessor_config.json.
        said: the content of its config.json.
        state: its tensors.
        vision_heads: attention heads of an image tower that is not timm's ViT-S, B or L with patches of 16.

    Raises:
        ValueError: a tensor is missing or left over, or the configuration is of another architecture.
    """
    named = {_plain(name): value for name, value in state.items() if not name.startswith(TRAINING)}
    tensors = Tensors(named, str(folder), "a Hyper3-CLIP checkpoint")
    config = _config(folder, said, tensors, vision_heads)
    vision, text = config.vision, config.text
    assert isinstance(vision, VisionConfig)
    scale = "global_logit_scale" if "global_logit_scale" in tensors else "logit_scale"
    norm = "fc_norm" if vision.pooling == "mean" else "norm"
    weights = {
        "visual.class_token": tensors.take(f"{VISION}.cls_token"),
        "visual.positions": tensors.take(f"{VISION}.pos_embed")[0],
        "visual.patch.weight": tensors.take(f"{VISION}.patch_embed.proj.weight").reshape(vision.width, -1),
        "textual.positions": tensors.take(f"{TEXT}.embeddings.position_embedding.weight"),
        "log_scale": tensors.take(scale).reshape(()),
        "log_curvature": tensors.take("log_curv")
        .reshape(())
        .clamp(math.log(config.curvature_min), math.log(config.curvature_max)),
    }
    weights["textual.positions"] = weights["textual.positions"][: text.context_length]
    for theirs, ours in (
        (f"{VISION}.patch_embed.proj.bias", "visual.patch.bias"),
        *block_names(f"{VISION}.blocks", "visual.blocks", vision.depth, TIMM),
        *both(f"{VISION}.{norm}", "visual.norm"),
        (f"{TEXT}.embeddings.token_embedding.weight", "textual.tokens.weight"),
        *both(f"{TEXT}.final_layer_norm", "textual.norm"),
        *both("image_proj", "visual_projection"),
        *both("text_proj", "textual_projection"),
        ("visual_alpha", "visual_alpha"),
        ("textual_alpha", "textual_alpha"),
    ):
        weights[ours] = tensors.take(theirs)
    weights |= blocks(tensors, TEXT, "textual", text.depth)
    tensors.finish()
    return config, weights


def _plain(name: str) -> str:
    """The name without the wrapper that transformers 4 has around a text tower, and 5 has not."""
    return name.replace(f"{TEXT}.text_model.", f"{TEXT}.", 1)


def _positive(folder: Path, said: Mapping[str, Any], name: str, default: float) -> float:
    value = said.get(name, default)
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(
            f"{folder / 'config.json'}: {name} is {value!r}, not a positive number: fetch it again"
        )
    return float(value)


def _config(folder: Path, said: Mapping[str, Any], tensors: Tensors, vision_heads: int | None) -> ClipConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPTextConfig

    if not isinstance(said.get("text_config"), dict):
        raise ValueError(f"{folder / 'config.json'} has no text_config, which describes the text tower")
    try:
        theirs = CLIPTextConfig(**said["text_config"])
    except StrictDataclassError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{folder / 'config.json'}: text_config is not a CLIP's: {why}") from error
    text = text_config(folder, theirs)
    length = int(_positive(folder, said, "max_text_length", text.context_length))
    text = replace(text, context_length=min(text.context_length, length))
    backbone = str(said.get("vision_backbone"))
    heads = vision_heads or HEADS.get(backbone)
    if heads is None:
        raise ValueError(
            f"{folder} has the image tower {backbone!r}, whose heads are not known: give them (--vision-heads)"
        )
    width, patch = tensors.shape(f"{VISION}.patch_embed.proj.weight")[::3]
    side = side_of(tensors.shape(f"{VISION}.pos_embed")[1], str(folder))
    if said.get("image_size", side * patch) != side * patch:
        raise ValueError(
            f"{folder}: image_size is {said['image_size']} and its positions are of {side * patch}"
        )
    curvature = _positive(folder, said, "curv_init", 1.0)
    mean, std = pixels_of(folder, side * patch, IMAGENET_MEAN, IMAGENET_STD)
    return ClipConfig(
        vision=VisionConfig(
            image_size=side * patch,
            patch_size=patch,
            width=width,
            depth=tensors.depth(f"{VISION}.blocks"),
            heads=heads,
            mlp_ratio=tensors.shape(f"{VISION}.blocks.0.mlp.fc1.weight")[0] / width,
            positions="fixed" if said.get("vision_sincos2d_pos") else "learned",
            norm_eps=LAYER_NORM_EPS if said.get("vision_norm_layer") == "layer_norm" else TIMM_EPS,
            pooling="mean" if f"{VISION}.fc_norm.weight" in tensors else "class",
        ),
        text=text,
        dim=tensors.shape("image_proj.weight")[0],
        geometry="lorentz",
        curvature=curvature,
        curvature_min=_positive(folder, said, "curvature_min", curvature / 10),
        curvature_max=_positive(folder, said, "curvature_max", curvature * 10),
        projection_bias=True,
        pixel_mean=mean,
        pixel_std=std,
    )
