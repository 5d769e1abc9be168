"""The set loss for training the embedded grounder.

The library's own loss does not train this model (it offsets the class targets wrongly and leaves the first-stage
heads without gradient), so the model is called without labels and the loss of DETR (Carion et al. 2020, section
3.1), DINO (Zhang et al. 2022, section 3) and Grounding DINO (Liu et al. 2023, section 3.3) is built here from its
outputs: every decoder layer and the encoder's proposals are matched to the true boxes separately.

B batch, Q queries (or proposals), T tokens, M true boxes of one image, P phrases of one image.
Boxes are (centre x, centre y, width, height) in [0, 1] unless a name says corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hyco.models.grounding.boxes import area, enclosing, intersection, iou

SEPARATOR = 1012  # id of "."; every phrase of a prompt ends with one
SPECIAL = (0, 101, 102, SEPARATOR)  # [PAD], [CLS], [SEP], "."


@dataclass(frozen=True)
class Target:
    """Ground truth of one image: boxes [M, 4] and which phrase names which box, positive [M, P]."""

    boxes: Tensor
    positive: Tensor


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of matching and loss, named as in DETR and Grounding DINO."""

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float = 0.25  # focal loss, Lin et al. 2017, equation 5
    gamma: float = 2.0
    proposals_per_box: int = 1  # number of encoder proposals matched to each true box
    phrase_weight: float = 0.0  # of a second class loss, on phrase scores as they are read in use


def corners(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """(cx, cy, w, h) -> (x0, y0, x1, y1)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def pairwise_giou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*m 4"]) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of corner boxes that broadcast against each other.

    Rezatofighi et al. 2019, algorithm 1: IoU minus the fraction of the smallest enclosing box that neither covers.
    Finite for boxes of no area.
    """
    overlap = iou(a, b)
    union = area(a) + area(b) - intersection(a, b)
    around = enclosing(a, b)
    return overlap, overlap - (around - union) / around.clamp(min=1e-9)


def phrase_of_token(input_ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Index of the phrase each token belongs to, -1 for [CLS], [SEP], "." and padding."""
    ended = (input_ids == SEPARATOR).cumsum(1)
    special = torch.isin(input_ids, torch.tensor(SPECIAL, device=input_ids.device))
    return ended.masked_fill(special, -1)


def phrase_logits(logits: Float[Tensor, "Q T"], owner: Int[Tensor, " L"], count: int) -> Float[Tensor, "Q P"]:
    """Logit of each query for each of `count` phrases: the largest over the phrase's tokens."""
    tokens = logits[:, : owner.shape[0]].float().masked_fill(owner < 0, -30.0)
    empty = tokens.new_full((logits.shape[0], count), -30.0)
    return empty.scatter_reduce(1, owner.clamp(min=0).expand_as(tokens), tokens, "amax")


def phrase_scores(logits: Float[Tensor, "Q T"], owner: Int[Tensor, " L"], count: int) -> Float[Tensor, "Q P"]:
    """Score of each query for each phrase, as a grounding backend reads it."""
    return phrase_logits(logits, owner, count).sigmoid()


def focal(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Elementwise focal loss of Lin et al. 2017, equation 5; `target` in {0, 1}."""
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = torch.where(target > 0.5, 1 - logits.sigmoid(), logits.sigmoid())
    return torch.where(target > 0.5, alpha, 1 - alpha) * missed**gamma * plain


def token_weights(owner: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Weight of each token in the class loss: a phrase counts once however long it is, a special token a little.

    No box names a special token, but the model selects its proposals by the largest logit over all tokens, including
    these, so their logits must be trained to be low.
    """
    length = (owner[:, None] == owner[None, :]).sum(1)
    return torch.where(owner >= 0, 1.0 / length, 0.1)


@torch.no_grad()
def matching_cost(
    logits: Float[Tensor, "Q T"],
    boxes: Float[Tensor, "Q 4"],
    truth: Float[Tensor, "M T"],
    target: Target,
    config: LossConfig,
) -> Float[Tensor, "Q M"]:
    """Cost of giving true box m to query q: the decrease of the class loss, L1 and -GIoU."""
    ones, zeros = torch.ones_like(logits), torch.zeros_like(logits)
    gain = focal(logits, ones, config.alpha, config.gamma) - focal(logits, zeros, config.alpha, config.gamma)
    classes = gain @ (truth / truth.sum(1, keepdim=True).clamp(min=1)).T
    distance = torch.cdist(boxes, target.boxes, p=1)
    giou = pairwise_giou(corners(boxes)[:, None], corners(target.boxes)[None])[1]
    return config.class_cost * classes + config.box_cost * distance - config.giou_cost * giou


def match(cost: Float[Tensor, "Q M"], copies: int = 1) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one assignment: query indices and the true box each of them teaches.

    copies: how many queries each true box may claim (never more than there are queries for).
    """
    from scipy.optimize import linear_sum_assignment  # of the extra `dev`: only training needs it

    queries, truths = cost.shape
    copies = max(1, min(copies, queries // max(truths, 1)))
    row, column = linear_sum_assignment(np.tile(cost.cpu().numpy(), (1, copies)))
    return torch.from_numpy(row), torch.from_numpy(column % max(truths, 1))


def stage_loss(
    logits: Float[Tensor, "B Q T"],
    boxes: Float[Tensor, "B Q 4"],
    owners: Int[Tensor, "B L"],
    targets: Sequence[Target],
    config: LossConfig,
    copies: int = 1,
) -> dict[str, Tensor]:
    """Class, L1 and GIoU loss of one stage (a decoder layer, or the encoder), per matched box of the batch.

    Logits are padded to T >= L, the tokens of the longest text of the batch.
    """
    total = {name: logits.new_zeros((), dtype=torch.float32) for name in ("class", "box", "giou")}
    matched = 0
    for scores, predicted, owner, target in zip(logits, boxes, owners, targets, strict=True):
        scores = (
            scores[:, : owner.shape[0]].float().clamp(-30, 30)
        )  # padding is -inf, which the focal loss cannot handle
        named = torch.zeros_like(scores)
        told = scores.new_zeros(len(scores), target.positive.shape[1])
        if len(target.boxes):
            truth = target.positive[:, owner.clamp(min=0)].float() * (owner >= 0)
            cost = matching_cost(scores.detach(), predicted.detach().float(), truth, target, config)
            query, true = match(cost, copies)
            named[query] = truth[true]
            told[query] = target.positive[true].float()
            found, wanted = predicted[query].float(), target.boxes[true]
            total["box"] = total["box"] + (found - wanted).abs().sum()
            total["giou"] = total["giou"] + (1 - pairwise_giou(corners(found), corners(wanted))[1]).sum()
            matched += len(query)
        tokens = (focal(scores, named, config.alpha, config.gamma) * token_weights(owner)).sum()
        total["class"] = total["class"] + tokens
        if config.phrase_weight:
            whole = phrase_logits(scores, owner, told.shape[1])
            phrases = focal(whole, told, config.alpha, config.gamma).sum()
            total["class"] = total["class"] + config.phrase_weight * phrases
    return {name: value / max(matched, 1) for name, value in total.items()}


def grounding_loss(
    model, outputs, input_ids: Int[Tensor, "B T"], targets: Sequence[Target], config: LossConfig | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The whole loss of one forward pass made without labels, and its terms by stage and name.

    model: the GroundingDinoForObjectDetection that gave `outputs`; its box and class heads are read again for
    the decoder layers before the last one, which the outputs do not hold.
    """
    config = config or LossConfig()
    owners = phrase_of_token(input_ids)
    stages = [
        ("encoder", outputs.enc_outputs_class, outputs.enc_outputs_coord_logits.float().sigmoid()),
        *earlier_layers(model, outputs, input_ids),
        ("decoder", outputs.logits, outputs.pred_boxes),
    ]
    loss = outputs.logits.new_zeros((), dtype=torch.float32)
    terms: dict[str, float] = {}
    for name, logits, boxes in stages:
        parts = stage_loss(
            logits, boxes, owners, targets, config, config.proposals_per_box if name == "encoder" else 1
        )
        loss = loss + config.class_weight * parts["class"]
        loss = loss + config.box_weight * parts["box"] + config.giou_weight * parts["giou"]
        terms |= {f"{name}/{key}": float(value.detach()) for key, value in parts.items()}
    return loss, terms


def earlier_layers(model, outputs, input_ids: Int[Tensor, "B T"]) -> list[tuple[str, Tensor, Tensor]]:
    """Name, logits and boxes of every decoder layer before the last, as the model's own forward builds them."""
    hidden, text = outputs.intermediate_hidden_states, outputs.encoder_last_hidden_state_text
    mask: Bool[Tensor, "B T"] = input_ids != 0
    stages = []
    for layer in range(hidden.shape[1] - 1):
        start = (
            outputs.init_reference_points
            if layer == 0
            else outputs.intermediate_reference_points[:, layer - 1]
        )
        boxes = (model.bbox_embed[layer](hidden[:, layer]) + torch.special.logit(start, eps=1e-5)).sigmoid()
        stages.append((f"layer{layer}", model.class_embed[layer](hidden[:, layer], text, mask), boxes))
    return stages


@torch.no_grad()
def hit_rate(outputs, input_ids: Int[Tensor, "B T"], targets: Sequence[Target]) -> tuple[int, int]:
    """How many phrases have a best-scored box that lies on one they name (IoU 0.5), of how many that name one."""
    hits = asked = 0
    owners = phrase_of_token(input_ids)
    for logits, boxes, owner, target in zip(outputs.logits, outputs.pred_boxes, owners, targets, strict=True):
        best = phrase_scores(logits, owner, target.positive.shape[1]).argmax(0)
        for phrase in target.positive.any(0).nonzero().flatten().tolist():
            true = target.boxes[target.positive[:, phrase]]
            hits += bool(iou(corners(boxes[best[phrase]].float()), corners(true)).max() >= 0.5)
            asked += 1
    return hits, asked
