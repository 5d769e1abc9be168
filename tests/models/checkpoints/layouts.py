"""State dicts of the documented names and shapes with random weights, small."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY, CONTEXT = 600, 16


def draw(*shape: int, scale: float = 0.2) -> Tensor:
    return torch.randn(*shape) * scale


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": draw(outputs, inputs, scale=inputs**-0.5),
        f"{name}.bias": draw(outputs),
    }


def resblocks(prefix: str, width: int, depth: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index in range(depth):
        at = f"{prefix}.{index}"
        joint = linear("x", width, 3 * width)
        state |= norm(f"{at}.ln_1", width) | norm(f"{at}.ln_2", width)
        state |= {f"{at}.attn.in_proj_{leaf}": joint[f"x.{leaf}"] for leaf in ("weight", "bias")}
        state |= linear(f"{at}.attn.out_proj", width, width)
        state |= linear(f"{at}.mlp.c_fc", width, 4 * width) | linear(f"{at}.mlp.c_proj", 4 * width, width)
    return state


def published(
    width: int = 48,
    text_width: int = 128,
    depth: int = 2,
    dim: int = 24,
    side: int = 4,
    vocabulary: int = VOCABULARY,
) -> dict:
    """A MERU or HyCoCLIP state dict: patches of 8 pixels, side x side of them."""
    state = timm_vit("visual", width, depth, side, "norm")
    state |= {
        "textual.token_embed.weight": draw(vocabulary, text_width),
        "textual.posit_embed": draw(CONTEXT, text_width),
        "textual.attn_mask": torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1),
    }
    state |= resblocks("textual.resblocks", text_width, depth) | norm("textual.ln_final", text_width)
    statistics = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return state | {
        "visual_proj.weight": draw(dim, width),
        "textual_proj.weight": draw(dim, text_width),
        "logit_scale": torch.tensor(math.log(40.0)),
        "visual_alpha": torch.tensor(-1.9),
        "textual_alpha": torch.tensor(-2.3),
        "curv": torch.tensor(-0.4),
        # As in the published files: the mean holds the deviation.
        "pixel_mean": statistics,
        "pixel_std": statistics.clone(),
    }


def uncha(**sizes: int) -> dict:
    """An UNCHA state dict: MERU's, three temperatures instead of one, and an unused head in the text tower."""
    state = published(**sizes)
    width = state["textual.token_embed.weight"].shape[1]
    state |= {
        "global_logit_scale": torch.tensor(2.25),
        "local_logit_scale": torch.tensor(0.5),
        "global_local_logit_scale": torch.tensor(3.75),
    }
    return state | linear("textual.min_radius_head.0", width, 1)


def phyclip(factors: int = 3, **sizes: int) -> dict:
    """A PHyCLIP state dict: MERU's with its unused scalars, and a curvature and two alphas per factor."""
    state = published(**sizes)
    for index in range(factors):
        state[f"curvs.{index}"] = torch.tensor(-0.5 + 0.3 * index)
        state[f"visual_concept_alphas.{index}"] = torch.tensor(-1.0 - 0.2 * index)
        state[f"textual_concept_alphas.{index}"] = torch.tensor(-1.1 + 0.1 * index)
    return state


def timm_vit(at: str, width: int, depth: int, side: int, last_norm: str) -> dict[str, Tensor]:
    """A vision transformer in timm's names: patches of 8 pixels, side x side of them."""
    state = {
        f"{at}.cls_token": draw(1, 1, width),
        f"{at}.pos_embed": draw(1, 1 + side**2, width),
        f"{at}.patch_embed.proj.weight": draw(width, 3, 8, 8, scale=0.1),
        f"{at}.patch_embed.proj.bias": draw(width),
    }
    for index in range(depth):
        block = f"{at}.blocks.{index}"
        state |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        state |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        state |= linear(f"{block}.mlp.fc1", width, 4 * width) | linear(f"{block}.mlp.fc2", 4 * width, width)
    return state | norm(f"{at}.{last_norm}", width)


def hyper3(folder: Path, last_norm: str = "fc_norm", **said: Any):
    """Write a Hyper3-CLIP directory with a CLIPTextModel's own names; returns the tensors and the text model."""
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=80,
        eos_token_id=VOCABULARY - 1,
        hidden_act="quick_gelu",
    )
    model = CLIPTextModel(text).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    state = timm_vit("vision_encoder.backbone", 48, 2, 3, last_norm) | linear("image_proj", 48, 24)
    for name, value in model.state_dict().items():
        if not name.endswith("position_ids"):
            inner = name.removeprefix("text_model.")
            state[f"text_encoder.backbone.text_model.{inner}"] = value.clone()
    state |= linear("text_proj", 32, 24)
    state |= {
        "visual_alpha": torch.tensor(-1.9),
        "textual_alpha": torch.tensor(-2.3),
        "log_curv": torch.tensor(-0.4),
        "logit_scale": torch.tensor(math.log(30.0)),
    }
    image = {"vision_backbone": "vit_small_patch16_224", "image_size": 24}
    words = {"text_config": text.to_dict(), "max_text_length": CONTEXT}
    config = {"model_type": "hyper3_clip"} | image | words | {"curv_init": 0.8}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | said))
    save_file(state, folder / "model.safetensors")
    return state, model


def openclip(width: int = 128, text_width: int = 64, depth: int = 2, dim: int = 24, side: int = 3) -> dict:
    """An OpenCLIP state dict: patches of 8 pixels, heads of 64 dimensions in the image tower."""
    state = {
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw(1 + side**2, width),
        "visual.conv1.weight": draw(width, 3, 8, 8, scale=0.1),
        "visual.proj": draw(width, dim),
        "token_embedding.weight": draw(VOCABULARY, text_width),
        "positional_embedding": draw(CONTEXT, text_width),
        "text_projection": draw(text_width, dim),
        "logit_scale": torch.tensor(math.log(100.0)),
    }
    state |= norm("visual.ln_pre", width) | norm("visual.ln_post", width) | norm("ln_final", text_width)
    state |= resblocks("visual.transformer.resblocks", width, depth)
    return state | resblocks("transformer.resblocks", text_width, depth)


def token_rows() -> Tensor:
    """Texts of several lengths: start, words, end at the highest id, zeros."""
    tokens = torch.zeros(3, CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, (3, 9, CONTEXT), strict=True):
        row[:length] = torch.randint(1, VOCABULARY - 2, (length,))
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return tokens


def transformers_clip(folder: Path, act: str = "quick_gelu", eos: int = 599, **text: Any):
    """A tiny saved transformers.CLIPModel with weights large enough that every part of it shows in the features."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "hidden_act": act}
    own: dict[str, Any] = {
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
    }
    own |= {"eos_token_id": eos, "bos_token_id": eos - 1, "layer_norm_eps": 1e-4} | text
    config = CLIPConfig(
        vision_config=shared | {"num_attention_heads": 4, "image_size": 24, "patch_size": 8},
        text_config=shared | own,
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return model
