"""The published layout of MERU (Desai et al. 2023) and HyCoCLIP (Pal et al. 2025) state dicts, both ways.

UNCHA (Kim et al. 2026) and PHyCLIP (Yoshikawa and Matsubara, ICLR 2026) add tensors to it and are read as well.

A timm vision transformer under `visual`, a CLIP-style text transformer under `textual`, two projections, the scalars
logit_scale, visual_alpha, textual_alpha and curv (all logarithms, as ours) and pixel_mean and pixel_std. Published
files have a pixel mean equal to the deviation (shifted constructor arguments); the value in the file is used, since
the weights were trained with it. MERU's CLIP baselines have no alphas and no curv: they are Euclidean. UNCHA has
three logit scales, of which that of whole images and captions is the model's, and an unused head in the text tower.
PHyCLIP has a curvature and two alphas per factor (curvs.0, visual_concept_alphas.0, textual_concept_alphas.0, ...),
and the unused ones of MERU besides.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyco.models.checkpoints.names import RESBLOCK, TIMM, Tensors, block_names, both, heads_of, side_of
from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig, VisionTransformer

# Attention heads cannot be read from shapes. ViT-S has 12 there (as in MoCo v3), timm's B and L have 12 and 16.
VISION_HEADS = {384: 12, 768: 12, 1024: 16}
TEXT_HEAD = 64
SCALARS = {
    "logit_scale": "log_scale",
    "visual_alpha": "visual_alpha",
    "textual_alpha": "textual_alpha",
    "curv": "log_curvature",
}


# Tensors that nothing at inference reads, by a tensor that marks the layout.
UNCHA, PHYCLIP = "global_logit_scale", "curvs.0"
UNUSED = {
    UNCHA: (
        "logit_scale",
        "local_logit_scale",
        "global_local_logit_scale",
        "textual.min_radius_head.0.weight",
        "textual.min_radius_head.0.bias",
    ),
    PHYCLIP: ("curv", "visual_alpha", "textual_alpha"),
}
FACTORS = {
    "curvs": "curv",
    "visual_concept_alphas": "visual_alpha",
    "textual_concept_alphas": "textual_alpha",
}


def from_published(
    state: Mapping[str, Tensor],
    source: str = "the state dict",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Convert published names to our configuration and weights, bit for bit.

    Args:
        state: the state dict.
        source: name of the checkpoint in error messages.
        vision_heads: attention heads of the image tower, for widths other than ViT-S, B and L.
        text_heads: attention heads of the text tower; by default one per 64 dimensions, as published.

    Raises:
        ValueError: a tensor is missing, left over, or of an impossible shape.
    """
    state = _as_meru(state, source)
    tensors = Tensors(state, source, "a published MERU, HyCoCLIP, UNCHA or PHyCLIP state dict")
    config = _config(tensors, vision_heads, text_heads)
    own = _shapes(config)
    weights = {}
    for theirs, ours in _names(config):
        value = tensors.take(theirs)
        if value.numel() != own[ours].numel():
            raise ValueError(
                f"{source}: {theirs} is {tuple(value.shape)}, where the other tensors ask for "
                f"{own[ours].numel()} values"
            )
        weights[ours] = value.reshape(own[ours])
    tensors.finish()
    return config, weights


def _as_meru(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict in MERU's names: without unused tensors, and a tensor [k] for the scalars of k factors."""
    kept = dict(state)
    for mark, unused in UNUSED.items():
        if mark in state:
            for name in unused:
                kept.pop(name, None)
    if UNCHA in state:
        kept["logit_scale"] = kept.pop(UNCHA)
    if PHYCLIP in state:
        count = sum(name.startswith("curvs.") for name in state)
        for theirs, name in FACTORS.items():
            lost = [n for i in range(count) if (n := f"{theirs}.{i}") not in state]
            if lost:
                raise ValueError(
                    f"{source} has {count} factors and no tensor {lost[0]}: the file is incomplete"
                )
            own = {n: kept.pop(n) for i in range(count) for n in (f"{theirs}.{i}",)}
            if odd := next((n for n, value in own.items() if value.numel() != 1), None):
                raise ValueError(f"{source}: {odd} is {tuple(own[odd].shape)}, where one number belongs")
            kept[name] = torch.stack([value.reshape(()) for value in own.values()])
    return kept


def to_published(model: DualEncoder) -> dict[str, Tensor]:
    """Our weights under the published names and in the published shapes.

    The numbers of attention heads are not part of a state dict. The published code takes that of images from the name
    of the architecture, and has one head per 64 dimensions in the text tower: a reader has to be told others.

    Raises:
        ValueError: the published architecture has no equivalent of a part of this model.
    """
    config = model.config
    vision = _require_published(config)
    assert isinstance(model.visual, VisionTransformer)
    own = model.state_dict() | {"visual.positions": model.visual.positions}
    width, patch = vision.width, vision.patch_size
    shapes = {
        "visual.pos_embed": (1, -1, width),
        "visual.patch_embed.proj.weight": (width, 3, patch, patch),
    }
    state = {
        theirs: own[ours].detach().cpu().reshape(shapes.get(theirs, own[ours].shape)).clone()
        for theirs, ours in _names(config)
    }
    state["textual.attn_mask"] = _causal(config.text.context_length)
    state["pixel_mean"] = torch.tensor(config.pixel_mean).view(3, 1, 1)
    state["pixel_std"] = torch.tensor(config.pixel_std).view(3, 1, 1)
    return state


def _config(tensors: Tensors, vision_heads: int | None, text_heads: int | None) -> ClipConfig:
    source = tensors.source
    width, patch = tensors.shape("visual.patch_embed.proj.weight")[::3]
    hidden = tensors.shape("visual.blocks.0.mlp.fc1.weight")[0]
    side = side_of(tensors.shape("visual.pos_embed")[1], source)
    heads = vision_heads or VISION_HEADS.get(width)
    if heads is None:
        raise ValueError(
            f"{source} has an image tower of width {width}, whose heads are not known: give them (--vision-heads)"
        )
    _require_divisor(source, "image", width, heads, "--vision-heads")
    vision = VisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=tensors.depth("visual.blocks"),
        heads=heads,
        mlp_ratio=hidden / width,
        positions="fixed",
    )
    vocabulary, text_width = tensors.shape("textual.token_embed.weight")
    context = tensors.shape("textual.posit_embed")[0]
    if "textual.attn_mask" in tensors and not torch.equal(
        tensors.take("textual.attn_mask").bool(), _causal(context)
    ):
        raise ValueError(
            f"{source}: textual.attn_mask is not the causal mask, and Hyco's text tower is causal"
        )
    _require_divisor(source, "text", text_width, text_heads or 1, "--text-heads")
    text = TextConfig(
        vocab_size=vocabulary,
        context_length=context,
        width=text_width,
        depth=tensors.depth("textual.resblocks"),
        heads=text_heads or heads_of(text_width, TEXT_HEAD, source),
        mlp_ratio=tensors.shape("textual.resblocks.0.mlp.c_fc.weight")[0] / text_width,
        end_token=vocabulary - 1,
    )
    mean, std = (tuple(tensors.take(name).flatten().tolist()) for name in ("pixel_mean", "pixel_std"))
    if not len(mean) == len(std) == 3:
        raise ValueError(f"{source} has pixel statistics of {len(mean)} channels, not 3")
    return ClipConfig(
        vision=vision,
        text=text,
        dim=tensors.shape("visual_proj.weight")[0],
        **_space(tensors),
        pixel_mean=mean,
        pixel_std=std,
    )


def _space(tensors: Tensors) -> dict[str, Any]:
    """geometry, and of a product of hyperboloids the number of factors."""
    if "curv" not in tensors:
        return {"geometry": "euclid"}
    factors = math.prod(tensors.shape("curv"))
    if tensors.shape("curv") in ((), (1,)):
        return {"geometry": "lorentz"}
    return {"geometry": "product", "factors": factors, "factor_alphas": True}


def _names(config: ClipConfig) -> list[tuple[str, str]]:
    """(their name, our name) of every tensor with a value of its own."""
    scalars = list(SCALARS.items())[: 1 if config.geometry == "euclid" else None]
    return [
        ("visual.cls_token", "visual.class_token"),
        ("visual.pos_embed", "visual.positions"),
        *both("visual.patch_embed.proj", "visual.patch"),
        *block_names("visual.blocks", "visual.blocks", config.vision.depth, TIMM),
        *both("visual.norm", "visual.norm"),
        ("textual.token_embed.weight", "textual.tokens.weight"),
        ("textual.posit_embed", "textual.positions"),
        *block_names("textual.resblocks", "textual.blocks", config.text.depth, RESBLOCK),
        *both("textual.ln_final", "textual.norm"),
        ("visual_proj.weight", "visual_projection.weight"),
        ("textual_proj.weight", "textual_projection.weight"),
        *scalars,
    ]


def _shapes(config: ClipConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in DualEncoder(config).state_dict().items()}


def _causal(length: int) -> Tensor:
    """Mask [length, length], True where a token must not attend."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def _require_divisor(source: str, tower: str, width: int, heads: int, option: str) -> None:
    if width % heads:
        raise ValueError(
            f"{source} has a {tower} tower of width {width}, which {heads} heads do not divide ({option})"
        )


def _require_published(config: ClipConfig) -> VisionConfig:
    """The image tower's configuration; ValueError for settings that the published architecture does not have."""
    vision, text = config.vision, config.text
    here = "the published architecture"
    if not isinstance(vision, VisionConfig):
        raise ValueError(f"vision.kind is {vision.kind} and {here} has a vision transformer")
    for name, value, allowed in (
        ("geometry", config.geometry, ("lorentz", "euclid")),
        ("vision.activation", vision.activation, ("gelu",)),
        ("vision.norm_eps", vision.norm_eps, (1e-5,)),
        ("vision.first_norm", vision.first_norm, (False,)),
        ("vision.patch_bias", vision.patch_bias, (True,)),
        ("vision.pooling", vision.pooling, ("class",)),
        ("projection_bias", config.projection_bias, (False,)),
        ("polar", config.polar, (False,)),
        ("text.activation", text.activation, ("gelu",)),
        ("text.norm_eps", text.norm_eps, (1e-5,)),
        # Their feature is at the highest id of a text.
        ("text.end_token", text.end_token, (text.vocab_size - 1,)),
    ):
        if value not in allowed:
            raise ValueError(
                f"{name} is {value} and {here} has {' or '.join(map(str, allowed))} only: leave --published out, "
                "Hyco's own layout holds it"
            )
    return vision
