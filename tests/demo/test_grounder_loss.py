"""The set loss against brute force, hand-made numbers and the model's own forward."""

import itertools

import numpy as np
import pytest
import torch

from hyco.demo.grounder import build_model, build_processor
from hyco.demo.grounder_loss import (
    LossConfig,
    Target,
    corners,
    earlier_layers,
    grounding_loss,
    match,
    matching_cost,
    pairwise_giou,
    phrase_of_token,
    phrase_scores,
    stage_loss,
    token_weights,
)


@pytest.fixture(scope="module")
def processor():
    return build_processor(["a", "two", "red", "duck", "ducks", "car"])


@pytest.fixture(scope="module")
def passed(processor):
    """One forward pass over two images, the second without any true box."""
    torch.manual_seed(0)
    model = build_model(len(processor.tokenizer)).train()
    text = processor.tokenizer(
        ["a red duck . two cars . zebra .", "a duck ."], return_tensors="pt", padding=True
    )
    outputs = model(pixel_values=torch.randn(2, 3, 128, 128), **text)
    targets = [
        Target(
            torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.3, 0.1], [0.8, 0.8, 0.2, 0.3]]),
            torch.tensor([[True, False, False], [False, True, False], [False, True, False]]),
        ),
        Target(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.bool)),
    ]
    return model, text.input_ids, outputs, targets


def test_giou_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [3.0, 0.0, 4.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    iou, giou = pairwise_giou(a[:, None], b[None])
    # shared 1 of union 7, enclosing 9; the same box; apart: union 6, enclosing 8; a point inside
    assert iou[0].tolist() == pytest.approx([1 / 7, 1.0, 0.0, 0.0])
    assert giou[0].tolist() == pytest.approx([1 / 7 - 2 / 9, 1.0, -2 / 8, 0.0])


def test_giou_gradient_is_finite_for_boxes_of_no_area():
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.1, 0.0]], requires_grad=True)
    pairwise_giou(corners(boxes), corners(torch.tensor([[0.5, 0.5, 0.0, 0.0]])))[1].sum().backward()
    assert torch.isfinite(boxes.grad).all()


@pytest.mark.parametrize("copies", [1, 2])
def test_matching_is_the_cheapest_of_all_assignments(copies):
    rng = np.random.default_rng(0)
    for truths in (1, 2, 3):
        cost = torch.from_numpy(rng.normal(size=(6, truths))).float()
        query, true = match(cost, copies)
        claims = [m for m in range(truths) for _ in range(copies)]
        best = min(
            sum(float(cost[q, m]) for q, m in zip(order, claims, strict=True))
            for order in itertools.permutations(range(6), len(claims))
        )
        assert float(cost[query, true].sum()) == pytest.approx(best, abs=1e-5)
        assert len(set(query.tolist())) == len(claims) and sorted(true.tolist()) == claims


def test_matching_prefers_the_query_that_says_the_phrase_at_the_box():
    config = LossConfig()
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[True]]))
    truth = torch.tensor([[1.0, 1.0, 0.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]])
    logits = torch.tensor([[-4.0, -4.0, 4.0], [2.0, 2.0, -4.0], [2.0, 2.0, -4.0]])
    cost = matching_cost(logits, boxes, truth, target, config)
    assert cost.argmin() == 1


def test_tokens_know_their_phrase(processor):
    ids = processor.tokenizer(
        ["a red duck . xq . car .", "car ."], return_tensors="pt", padding=True
    ).input_ids
    owners = phrase_of_token(ids)
    assert owners[0].tolist() == [
        -1,
        0,
        0,
        0,
        -1,
        1,
        1,
        -1,
        2,
        -1,
        -1,
    ]  # an unknown word is spelt: two tokens
    assert owners[1].tolist() == [-1, 0, -1, -1] + [-1] * 7
    weights = token_weights(owners[0])
    sums = [float(weights[owners[0] == phrase].sum()) for phrase in range(3)]
    assert sums == pytest.approx([1.0, 1.0, 1.0])


def test_phrase_score_is_the_largest_over_its_own_tokens(processor):
    owner = phrase_of_token(processor.tokenizer(["a red duck . car ."], return_tensors="pt").input_ids)[0]
    logits = torch.full((1, 128), -torch.inf)
    logits[0, : len(owner)] = torch.tensor([9.0, -3.0, 1.0, 0.0, 9.0, -2.0, 9.0, 9.0])
    scores = phrase_scores(logits, owner, 3)
    assert scores[0].tolist() == pytest.approx(
        [torch.sigmoid(torch.tensor(v)).item() for v in (1.0, -2.0)] + [0.0]
    )


def test_earlier_layers_repeat_the_models_own_heads(passed):
    model, ids, outputs, _ = passed
    name, logits, boxes = earlier_layers(model, outputs, ids)[0]
    assert name == "layer0"
    # the library refines from unnormalised states, the loss reads normalised ones, as its own loss does
    start = torch.special.logit(outputs.init_reference_points, eps=1e-5)
    state = outputs.intermediate_hidden_states[:, 0]
    torch.testing.assert_close(boxes, (model.bbox_embed[0](state) + start).sigmoid())
    text = outputs.encoder_last_hidden_state_text
    torch.testing.assert_close(logits[0, :, : ids.shape[1]], state[0] @ text[0].T)
    assert torch.isneginf(logits[1, :, 5:]).all()  # padding of the shorter prompt


def test_loss_reaches_every_part_of_the_model(passed):
    model, ids, outputs, targets = passed
    loss, terms = grounding_loss(model, outputs, ids, targets)
    model.zero_grad()
    loss.backward(retain_graph=True)
    assert torch.isfinite(loss) and set(terms) == {
        f"{stage}/{term}" for stage in ("encoder", "layer0", "decoder") for term in ("class", "box", "giou")
    }
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    assert all(np.isfinite(list(norms.values())))
    for part in (
        "model.backbone.conv_encoder.model.embeddings.patch_embeddings.weight",
        "model.encoder_output_bbox_embed.layers.2.weight",
        "model.enc_output.weight",
        "model.text_backbone.embeddings.word_embeddings.weight",
        "model.decoder.bbox_embed.0.layers.2.weight",
        "model.query_position_embeddings.weight",
    ):
        assert norms[part] > 0, part


def test_the_encoders_own_loss_is_what_teaches_its_box_head(passed):
    model, ids, outputs, targets = passed
    loss, _ = grounding_loss(
        model, outputs, ids, targets, LossConfig(class_weight=0.0, box_weight=5.0, giou_weight=2.0)
    )
    head = model.model.encoder_output_bbox_embed.layers[2].bias
    (taught,) = torch.autograd.grad(loss, head, retain_graph=True)
    assert taught.norm() > 0
    (untaught,) = torch.autograd.grad(outputs.pred_boxes.sum(), head, retain_graph=True, allow_unused=True)
    assert untaught is None  # the decoder's start is detached: without the encoder loss nothing comes back


def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_phrase_much(passed):
    _, ids, outputs, targets = passed
    owners = phrase_of_token(ids)

    def loss_of(says: int) -> float:
        logits = torch.full_like(outputs.logits, -9.0)
        boxes = torch.rand(2, 30, 4, generator=torch.Generator().manual_seed(1))
        for query, (box, named) in enumerate(zip(targets[0].boxes, targets[0].positive, strict=True)):
            boxes[0, query] = box
            phrase = (int(named.nonzero()[0]) + says) % 3
            logits[0, query, : ids.shape[1]] = torch.where(owners[0] == phrase, 9.0, -9.0)
        return float(sum(stage_loss(logits, boxes, owners, targets, LossConfig()).values()))

    assert loss_of(0) < 0.01
    assert loss_of(1) > 1.0


def test_a_fresh_model_is_open_to_text_and_expects_next_to_nothing(processor):
    torch.manual_seed(0)
    model = build_model(len(processor.tokenizer)).eval()
    gates = [p for name, p in model.named_parameters() if name.endswith(("vision_param", "text_param"))]
    assert len(gates) == 4 and all((gate == 0.5).all() for gate in gates)
    text = processor.tokenizer(["a red duck ."], return_tensors="pt")
    outputs = model(pixel_values=torch.randn(1, 3, 128, 128), **text)
    logits = outputs.logits[0, :, : text.input_ids.shape[1]]
    assert -6 < logits.mean() < -2 and 0.1 < logits.std() < 3
