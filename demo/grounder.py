"""The embedded grounder: a Grounding DINO small enough to train on two CPU cores.

It is an ordinary `GroundingDinoForObjectDetection` of the transformers library, with an ordinary processor, so code
that loads the full-size checkpoint also loads this one. Only three things differ: the sizes, a vocabulary of the
embedded world's words, and an initialisation that lets such a small model learn from the first step.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

IMAGE_SIZE = 128  # pixels per side, in training and in use
MAX_TEXT = 128  # tokens of one prompt
# Threshold of this model's scores for packing; chosen on the curve in weights/grounder/figures.json.
SCORE_THRESHOLD = 0.3

# Grounding DINO's text masks have these ids built in (they are BERT's).
FIXED_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION = "!\"#$%&'()*+,-/:;<=>@[]^_`{|}~"


def vocabulary(words: Iterable[str]) -> dict[str, int]:
    """Token ids of a word list: the words, every character, every character as a continuation.

    words: lower-case words without spaces; order and repeats do not matter.
    Returns a dict from token to id in which the ids of `FIXED_IDS` hold and every id below the largest is taken,
    so a word outside the list is spelled out and never becomes [UNK] if its letters are known.
    """
    tokens = sorted(set(CHARACTERS) | set(PUNCTUATION) | {"##" + letter for letter in CHARACTERS})
    tokens += sorted({word for word in words if word} - set(tokens) - set(FIXED_IDS))
    ids, free = dict(FIXED_IDS), 1
    taken = set(FIXED_IDS.values())
    for token in tokens:
        while free in taken:
            free += 1
        ids[token] = free
        taken.add(free)
    for empty in sorted(set(range(max(taken) + 1)) - taken):
        ids[f"[unused{empty}]"] = empty
    return ids


def build_processor(words: Iterable[str], size: int = IMAGE_SIZE) -> GroundingDinoProcessor:
    """Tokenizer over `words` and an image processor that brings every image to size x size pixels."""
    tokenizer = BertTokenizer(vocab=vocabulary(words), model_max_length=MAX_TEXT)
    images = GroundingDinoImageProcessorPil(size={"height": size, "width": size}, do_pad=False)
    return GroundingDinoProcessor(images, tokenizer)


def build_config(vocab_size: int) -> GroundingDinoConfig:
    """Sizes of the model: about 1.8 M parameters, 336 image tokens (strides 8, 16, 32 of 128 px), 30 queries."""
    backbone = ConvNextConfig(
        hidden_sizes=[32, 64, 128, 192],
        depths=[2, 2, 2, 2],
        layer_scale_init_value=0.0,
        out_indices=[2, 3, 4],  # pyright: ignore[reportCallIssue]  (taken by **kwargs)
    )
    text = BertConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=30,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_feature_levels=3,
        max_text_len=MAX_TEXT,
        dropout=0.0,
        fusion_droppath=0.0,
    )


@torch.no_grad()
def build_model(vocab_size: int, prior: float = -4.0) -> GroundingDinoForObjectDetection:
    """A new model, initialised so that it learns from the first step; the global torch seed determines the weights.

    Differences to the library's initialisation: the gates between image and text start at 0.5 instead of 1e-4; the last
    text layer is scaled by 1/sqrt(d), so that the product of a query and a token starts near 1 instead of near sqrt(d);
    one channel of both sides is made constant so that every logit starts near `prior` (hardly any query is an object,
    Lin et al. 2017, section 3.3).
    """
    model = GroundingDinoForObjectDetection(build_config(vocab_size))
    gates = [p for name, p in model.named_parameters() if name.endswith(("vision_param", "text_param"))]
    for gate in gates:
        gate.fill_(0.5)
    last = model.config.encoder_layers - 1
    text = _norm(model, f"model.encoder.layers.{last}.text_enhancer_layer.layer_norm_after")
    text.weight.fill_(1 / math.sqrt(text.weight.shape[0]))
    half = math.sqrt(-prior)
    queries, proposals = _norm(model, "model.decoder.layer_norm"), _norm(model, "model.enc_output_norm")
    for norm, value in ((text, -half), (queries, half), (proposals, half)):
        norm.weight[0] = 0.0
        norm.bias[0] = value
    return model


def _norm(model: GroundingDinoForObjectDetection, name: str) -> torch.nn.LayerNorm:
    layer = model.get_submodule(name)
    assert isinstance(layer, torch.nn.LayerNorm)
    return layer


def save(model: GroundingDinoForObjectDetection, processor: GroundingDinoProcessor, folder: Path) -> None:
    """Write model (fp16 safetensors) and processor to `folder`, as `from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    half = GroundingDinoForObjectDetection(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    processor.save_pretrained(folder)
