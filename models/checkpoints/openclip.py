"""Import of OpenCLIP's (and OpenAI's) state dicts: visual.conv1, transformer.resblocks, ln_final ... -> ours.

A directory describes its architecture in open_clip_config.json. A bare state dict does not contain which GELU it was
trained with, and the wrong one gives plausible but wrong features: the caller must give it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hyco.models.checkpoints.huggingface import OPENAI_MEAN, OPENAI_STD
from hyco.models.checkpoints.names import RESBLOCK, Tensors, block_names, both, heads_of, side_of
from hyco.models.clip import ClipConfig
from hyco.models.encoders.block import Activation
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig

HEAD = 64
# Keys of an architecture's description, with the values that Hyco's towers support (None: any value).
VISION_KEYS: dict[str, tuple[Any, ...] | None] = {
    "image_size": None,
    "patch_size": None,
    "layers": None,
    "width": None,
    "head_width": None,
    "mlp_ratio": None,
    "no_ln_pre": (False,),
    "pool_type": ("tok",),
    "global_average_pool": (False,),
    "patch_dropout": None,  # of training only
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "norm_kwargs": None,
}
TEXT_KEYS: dict[str, tuple[Any, ...] | None] = {
    "context_length": None,
    "vocab_size": None,
    "width": None,
    "heads": None,
    "layers": None,
    "mlp_ratio": None,
    "pool_type": ("argmax",),
    "embed_cls": (False,),
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "norm_kwargs": None,
    "hf_tokenizer_name": None,
    "tokenizer_kwargs": None,
}


def from_openclip(
    state: Mapping[str, Tensor],
    source: str,
    described: dict[str, Any] | None,
    activation: Activation | None = None,
) -> tuple[ClipConfig, dict[str, Tensor]]:
    """Our configuration and weights; geometry "euclid".

    Args:
        state: the state dict, of the plain or of the "custom text" form.
        source: name of the checkpoint in error messages.
        described: content of open_clip_config.json, or None.
        activation: GELU to use without a description.

    Raises:
        ValueError: no activation known, or an architecture that Hyco's towers cannot express.
    """
    plain = {
        name.removeprefix("text.") if name.startswith("text.") else name: value
        for name, value in state.items()
    }
    plain.pop("attn_mask", None)  # the causal mask, in some files
    for name in ("input_resolution", "context_length", "vocab_size"):  # numbers among OpenAI's tensors
        plain.pop(name, None)
    tensors = Tensors(plain, source, "an OpenCLIP vision transformer")
    config = _config(tensors, described, activation)
    weights = {
        "visual.class_token": tensors.take("visual.class_embedding").view(1, 1, -1),
        "visual.patch.weight": tensors.take("visual.conv1.weight").reshape(config.vision.width, -1),
        # Theirs multiplies from the right.
        "visual_projection.weight": tensors.take("visual.proj").t().contiguous(),
        "textual_projection.weight": tensors.take("text_projection").t().contiguous(),
        "log_scale": tensors.take("logit_scale").reshape(()),
    }
    for theirs, ours in (
        ("visual.positional_embedding", "visual.positions"),
        *both("visual.ln_pre", "visual.first_norm"),
        *block_names("visual.transformer.resblocks", "visual.blocks", config.vision.depth, RESBLOCK),
        *both("visual.ln_post", "visual.norm"),
        ("token_embedding.weight", "textual.tokens.weight"),
        ("positional_embedding", "textual.positions"),
        *block_names("transformer.resblocks", "textual.blocks", config.text.depth, RESBLOCK),
        *both("ln_final", "textual.norm"),
    ):
        weights[ours] = tensors.take(theirs)
    tensors.finish()
    return config, weights


def _config(tensors: Tensors, described: dict[str, Any] | None, activation: Activation | None) -> ClipConfig:
    source = tensors.source
    said: dict[str, Any] = (described or {}).get("model_cfg", {})
    vision, text = dict(said.get("vision_cfg", {})), dict(said.get("text_cfg", {}))
    for part, values, known in (("vision_cfg", vision, VISION_KEYS), ("text_cfg", text, TEXT_KEYS)):
        for name, value in values.items():
            allowed = known.get(name, (None, False))
            if allowed is not None and value not in allowed:
                raise ValueError(f"{source}: {part}.{name} is {value}, which Hyco's towers cannot express")
    if described is not None:
        activation = "quick_gelu" if said.get("quick_gelu") else "gelu"
    if activation is None:
        raise ValueError(
            f"{source} does not say which GELU it was trained with: give --activation quick_gelu (OpenAI's weights, "
            "models named -quickgelu) or --activation gelu"
        )
    width, patch = tensors.shape("visual.conv1.weight")[::3]
    side = side_of(tensors.shape("visual.positional_embedding")[0], source)
    vocabulary, text_width = tensors.shape("token_embedding.weight")
    pixels: dict[str, Any] = (described or {}).get("preprocess_cfg", {})
    mean, std = tuple(pixels.get("mean", OPENAI_MEAN)), tuple(pixels.get("std", OPENAI_STD))
    if not len(mean) == len(std) == 3:
        raise ValueError(f"{source}: preprocess_cfg has mean {mean} and std {std}, 3 values each are needed")
    return ClipConfig(
        vision=VisionConfig(
            image_size=side * patch,
            patch_size=patch,
            width=width,
            depth=tensors.depth("visual.transformer.resblocks"),
            heads=heads_of(width, vision.get("head_width", HEAD), source),
            mlp_ratio=tensors.shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
            positions="learned",
            activation=activation,
            norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
            first_norm=True,
            patch_bias=False,
        ),
        text=TextConfig(
            vocab_size=vocabulary,
            context_length=tensors.shape("positional_embedding")[0],
            width=text_width,
            depth=tensors.depth("transformer.resblocks"),
            heads=text.get("heads", text_width // HEAD),
            mlp_ratio=tensors.shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / text_width,
            end_token=vocabulary - 1,
            activation=activation,
            norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        ),
        dim=tensors.shape("text_projection")[1],
        geometry="euclid",
        pixel_mean=mean,
        pixel_std=std,
    )
