"""Random grounding models of few parameters in the transformers format, for tests of the code around them."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

WORDS = (
    *("a", "the", "red", "blue", "green", "big", "small", "duck", "ducks", "car", "cars", "dog", "ball"),
    *("tree", "man", "woman", "two", "three", "of", "on", "with"),
)
FIXED = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}


def tokenizer() -> BertTokenizer:
    vocabulary = dict(FIXED)
    free = (number for number in range(1, 2000) if number not in FIXED.values())
    for token in [
        *WORDS,
        *"abcdefghijklmnopqrstuvwxyz",
        *("##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]:
        vocabulary.setdefault(token, next(free))
    for number in range(1030):
        if number not in vocabulary.values():
            vocabulary[f"[unused{number}]"] = number
    return BertTokenizer(vocab=vocabulary, model_max_length=64)


def save_tiny(
    folder: Path, *, max_text: int = 24, size: dict[str, int] | None = None, seed: int = 0, mm: bool = False
) -> Path:
    """Write a random model (MM-Grounding-DINO when mm) and its processor to `folder` and return it."""
    torch.manual_seed(seed)
    backbone = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[2, 3, 4])
    text = BertConfig(
        vocab_size=1200,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    config_class, model_class = (
        (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
        if mm
        else (GroundingDinoConfig, GroundingDinoForObjectDetection)
    )
    config = config_class(
        backbone_config=backbone,
        text_config=text,
        num_queries=20,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_feature_levels=3,
        max_text_len=max_text,
    )
    model = model_class(config)
    with (
        torch.no_grad()
    ):  # random weights give nearly equal logits: spread them, so that ranks mean something
        for layer in model.model.encoder.layers:
            layer.fusion_layer.vision_param.fill_(0.5)
            layer.fusion_layer.text_param.fill_(0.5)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif "class_embed" in name:
                parameter.zero_()  # MM's prior, which makes every score small
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size=size or {"height": 64, "width": 64})
    GroundingDinoProcessor(images, tokenizer()).save_pretrained(folder)
    return folder


def clip_tokenizer(length: int, pad: str = "!") -> CLIPTokenizer:
    """A byte-pair tokenizer of letters and the beginnings of WORDS, with `length` positions."""
    letters = [chr(code) for code in range(33, 127)]
    merges, tokens = [], [*letters, *(letter + "</w>" for letter in letters)]
    for word in WORDS:
        for end in range(1, len(word)):
            last = word[end] + ("</w>" if end == len(word) - 1 else "")
            merges.append((word[:end], last))
            tokens.append(word[:end] + last)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[*dict.fromkeys(merges)], pad_token=pad, model_max_length=length
    )


def save_tiny_owlv2(folder: Path, *, seed: int = 0) -> Path:
    """Write a random OWLv2 and its processor to `folder` and return it."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = clip_tokenizer(16)
    ends = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": 0}
    config = Owlv2Config(
        text_config={**tower, **ends, "vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model = Owlv2ForObjectDetection(config)
    _spread(model)
    for head in (model.class_head.logit_shift, model.class_head.logit_scale):
        torch.nn.init.zeros_(head.weight)  # scores of random heads are 0 or 1
    model.save_pretrained(folder)
    images = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(images, tokens).save_pretrained(folder)
    return folder


def save_tiny_sam3(folder: Path, *, seed: int = 0) -> Path:
    """Write a random SAM 3 and its processor to `folder` and return it; needs torchvision."""
    from transformers import Sam3Config, Sam3Model, Sam3Processor
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_attention_heads": 4}
    backbone = {
        **tower,
        "model_type": "sam3_vit_model",
        "image_size": 112,
        "patch_size": 14,
        "window_size": 4,
    }
    tokens = clip_tokenizer(32, pad="<|endoftext|>")
    config = Sam3Config(
        vision_config={
            "backbone_config": {**backbone, "global_attn_indexes": [0, 1]},
            "fpn_hidden_size": 32,
            "scale_factors": [2.0, 1.0],
        },
        text_config={
            **tower,
            "vocab_size": len(tokens),
            "projection_dim": 32,
            "max_position_embeddings": 32,
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
        },
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 10},
        mask_decoder_config={"hidden_size": 32, "num_upsampling_stages": 2},
    )
    model = Sam3Model(config)
    _spread(model)
    model.save_pretrained(folder)
    Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), tokens).save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Make the weights of a random model larger: its scores are nearly equal otherwise."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
