#!/usr/bin/env bash
# Package: transformers 5.23.0 (with torch 2.13.0)
#
# Grounding DINO masks its text so that words see only their own phrase, and drops the phrase that ends at the
# last position of the padded batch. A prompt without a final full stop ("red bus") ends with [SEP]: alone, that
# [SEP] is the last position, so the phrase is dropped and its words see only themselves; beside a longer prompt,
# padding follows, the phrase counts, and the same picture with the same prompt gets other logits. With the full
# stop ("red bus.") the two agree.
#
# Who it hurts: whoever mines boxes in batches: detections of one image then depend on which captions happen to
# share its batch.
# Remedy: always end the prompt with a full stop.
#
# Seen (largest change of a logit when a longer prompt shares the batch; random weights, real class):
#   without full stop: beside a longer prompt 1.0e+01, beside itself 9.5e-07
#   with full stop   : beside a longer prompt 1.9e-06, beside itself 1.9e-06
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile \
    transformers==5.23.0 torch==2.13.0 scipy==1.17.1 pillow==13.0.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import torch
from transformers import BertConfig, ConvNextConfig, GroundingDinoConfig, GroundingDinoForObjectDetection

torch.manual_seed(0)
config = GroundingDinoConfig(
    backbone_config=ConvNextConfig(
        hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    ),
    text_config=BertConfig(
        vocab_size=1200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    ),
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    num_queries=6,
    num_feature_levels=3,
    max_text_len=16,
)
model = GroundingDinoForObjectDetection(config).eval()
picture = torch.randn(1, 3, 64, 64)
LONGER = [101, 7, 8, 9, 1012, 10, 11, 1012, 102]  # two phrases; 101 [CLS], 102 [SEP], 1012 full stop


def logits(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    with torch.no_grad():
        return model(
            pixel_values=picture.expand(len(prompts), -1, -1, -1),
            input_ids=ids,
            attention_mask=(ids != 0).long(),
            token_type_ids=torch.zeros_like(ids),
        ).logits


def change(prompt, beside):
    one = logits([prompt])[0, :, : len(prompt)]
    two = logits([prompt, beside])[0, :, : len(prompt)]
    assert torch.isfinite(one).all() and torch.isfinite(two).all()
    return (one - two).abs().max().item()


for name, prompt in (("without full stop", [101, 5, 6, 102]), ("with full stop", [101, 5, 6, 1012, 102])):
    beside_longer, beside_itself = change(prompt, LONGER), change(prompt, prompt)
    print(f"{name:17}: beside a longer prompt {beside_longer:.1e}, beside itself {beside_itself:.1e}")
    assert beside_itself < 1e-3
    assert (beside_longer > 0.1) == (name == "without full stop")
PY
