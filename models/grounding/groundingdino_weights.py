"""The names of Grounding DINO's weights: from transformers 5 to groundingdino-py 0.4.0."""

import re

import torch
from torch import Tensor

_SWIN = r"^model\.backbone\.conv_encoder\.model\.swin\."
# Names of transformers 5 -> names of groundingdino-py, applied in order, first match only.
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (
            _SWIN + r"layernorm\..*",
            "",
        ),  # of the whole Swin; unused by both
        (
            _SWIN + r"embeddings\.patch_embeddings\.projection\.",
            "backbone.0.patch_embed.proj.",
        ),
        (_SWIN + r"embeddings\.norm\.", "backbone.0.patch_embed.norm."),
        (_SWIN + r"encoder\.layers\.", "backbone.0.layers."),
        (r"^model\.input_proj_vision\.", "input_proj."),
        (r"^model\.text_backbone\.", "bert.model."),
        (r"^model\.text_projection\.", "feat_map."),
        (r"^model\.query_position_embeddings\.", "transformer.tgt_embed."),
        (r"^model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"transformer.encoder.text_layers.\1."),
        (r"^model\.encoder\.layers\.(\d+)\.fusion_layer\.", r"transformer.encoder.fusion_layers.\1."),
        (r"^model\.encoder\.layers\.(\d+)\.deformable_layer\.", r"transformer.encoder.layers.\1."),
        (r"^model\.decoder\.layer_norm\.", "transformer.decoder.norm."),
        (r"^model\.decoder\.reference_points_head\.", "transformer.decoder.ref_point_head."),
        (r"^model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
        (r"^model\.", "transformer."),
        (r"^bbox_embed\.", "bbox_embed."),
    )
)
_INNER_NAMES = {
    r"backbone\.0\.layers\.": {
        "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.o_proj.": "attn.proj.",
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
    },
    r"transformer\.encoder\.text_layers\.": {
        "layer_norm_before.": "norm1.",
        "layer_norm_after.": "norm2.",
        ".fc": ".linear",
    },
    r"transformer\.encoder\.fusion_layers\.": {
        "vision_param": "gamma_v",
        "text_param": "gamma_l",
        "layer_norm_vision.": "layer_norm_v.",
        "layer_norm_text.": "layer_norm_l.",
        "vision_proj.": "v_proj.",
        "text_proj.": "l_proj.",
    },
    r"transformer\.encoder\.layers\.": {
        "self_attn_layer_norm.": "norm1.",
        "final_layer_norm.": "norm2.",
        ".fc": ".linear",
    },
    r"transformer\.decoder\.layers\.": {
        "encoder_attn_text_layer_norm.": "catext_norm.",
        "encoder_attn_layer_norm.": "norm1.",
        "self_attn_layer_norm.": "norm2.",
        "final_layer_norm.": "norm3.",
        "encoder_attn_text.": "ca_text.",
        "encoder_attn.": "cross_attn.",
        ".fc": ".linear",
    },
}
_STACKED = (  # three matrices there, one on top of the other here
    (
        re.compile(r"^(backbone\.0\.layers\..*)\.attention\.([qkv])_proj\.(weight|bias)$"),
        r"\1.attn.qkv.\3",
        "qkv",
    ),
    (
        re.compile(r"^(transformer\..*\.(?:self_attn|ca_text))\.(query|key|value)\.(weight|bias)$"),
        r"\1.in_proj_\3",
        ("query", "key", "value"),
    ),
)


def carry_over(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' Grounding DINO (Swin) for groundingdino-py, which stacks some of them."""
    state: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        name = _renamed(key)
        if not name:
            continue
        for pattern, stacked, order in _STACKED:
            if found := pattern.match(name):
                stacks.setdefault(found.expand(stacked), {})[found[2]] = value
                if len(stacks[found.expand(stacked)]) == 3:
                    parts = stacks.pop(found.expand(stacked))
                    state[found.expand(stacked)] = torch.cat([parts[part] for part in order])
                break
        else:
            state[name] = value
    return state


def _renamed(key: str) -> str:
    if found := re.match(
        r"^model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage(\d+)\.(.*)$", key
    ):
        return f"backbone.0.norm{int(found[1]) - 1}.{found[2]}"
    for pattern, replacement in _NAMES:
        if pattern.match(key):
            name = pattern.sub(replacement, key)
            break
    else:
        return key
    for prefix, inner in _INNER_NAMES.items():
        if re.match(prefix, name):
            for old, new in inner.items():
                name = name.replace(old, new)
            break
    return name
