#!/usr/bin/env bash
# Package: transformers 5.23.0 (with torch 2.13.0, scipy 1.17.1)
#
# The training loss of GroundingDinoForObjectDetection looks the class of a box up in the phrase table of the
# wrong image. The tables of a batch are laid end to end, but image i's labels are shifted by the length of its
# own table instead of by the lengths of the tables before it. Only the first image is right, and a second one
# whose prompt has as many phrases as the first's; from the third on the targets are another image's phrases.
#
# Who it hurts: anyone who fine-tunes Grounding DINO with labels= and prompts that differ within a batch. The
# loss falls all the same, towards wrong words. An answer that is right for every box is punished in a batch and
# costs nothing image by image.
# Remedy: the same prompt for the whole batch, or compute the targets yourself.
#
# Seen (loss_ce of an answer that is right for all boxes):
#   one by one: 0.0000, 0.0000, 0.0000
#   as a batch: 9.9999
#   targets right for boxes of image 0: 2 of 2, image 1: 0 of 3, image 2: 0 of 1
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile \
    transformers==5.23.0 torch==2.13.0 scipy==1.17.1 pillow==13.0.0

"$work/venv/bin/python" - <<'PY'
import torch
from transformers.loss.loss_grounding_dino import GroundingDinoHungarianMatcher, GroundingDinoImageLoss
from transformers.models.grounding_dino.modeling_grounding_dino import build_label_maps

# "red bus. dog." / "cat. tree. car." / "old man." with made-up word ids; 101 [CLS], 102 [SEP], 1012 full stop
prompts = torch.tensor(
    [
        [101, 11, 12, 1012, 13, 1012, 102, 0],
        [101, 14, 1012, 15, 1012, 16, 1012, 102],
        [101, 17, 18, 1012, 102, 0, 0, 0],
    ]
)
counts = [2, 3, 1]  # one box for each phrase of each image
maps = build_label_maps(torch.zeros(3, 4, prompts.shape[1]), prompts)
assert [len(table) for table in maps] == counts

queries = 4
logits = torch.full((3, queries, prompts.shape[1]), -12.0)
boxes = torch.rand(3, queries, 4, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.8
labels = []
for image, count in enumerate(counts):
    truth = torch.tensor([[0.1 + 0.2 * box, 0.3, 0.1, 0.1] for box in range(count)])
    boxes[image, :count] = truth
    logits[image, :count][maps[image] > 0] = 12.0  # query k answers box k, rightly
    labels.append({"class_labels": torch.arange(count), "boxes": truth})

matcher = GroundingDinoHungarianMatcher(class_cost=1.0, bbox_cost=5.0, giou_cost=2.0)
criterion = GroundingDinoImageLoss(matcher, focal_alpha=0.25, losses=["labels"])


def outputs(chosen):
    return {
        "logits": logits[chosen],
        "pred_boxes": boxes[chosen],
        "label_maps": tuple(maps[image] for image in chosen),
        "text_mask": torch.ones(len(chosen), queries, prompts.shape[1], dtype=torch.bool),
    }


def loss(chosen):
    return criterion(outputs(chosen), [labels[image] for image in chosen])["loss_ce"].item()


alone = [loss([image]) for image in range(3)]
together = loss([0, 1, 2])
print("one by one:", ", ".join(f"{value:.4f}" for value in alone))
print(f"as a batch: {together:.4f}")

batch = outputs([0, 1, 2])
indices = matcher(batch, labels)
targets = criterion._get_target_classes_one_hot(batch, labels, indices)
right = []
for image, count in enumerate(counts):
    assert indices[image][0].tolist() == list(range(count))
    right.append(sum(torch.equal(targets[image, k], maps[image][k].long()) for k in range(count)))
print("targets right for boxes of", ", ".join(f"image {i}: {r} of {c}" for i, (r, c) in enumerate(zip(right, counts))))

assert max(alone) < 1e-4 < 0.5 < together
assert right == [2, 0, 0]
PY
