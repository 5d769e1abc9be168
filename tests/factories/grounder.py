"""A random Grounding DINO of a few thousand parameters in the transformers format, for tests of the code around it."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

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
