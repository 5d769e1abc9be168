"""Packed texts beside padded ones: equal features and gradients, and what is computed once."""

import copy

import pytest
import torch
from torch import nn

from hyco.models.encoders.packing import pack, together
from hyco.models.encoders.text import TextConfig, TextTransformer

START, END = 38, 39
TEXT = TextConfig(vocab_size=40, context_length=16, width=32, depth=3, heads=4, end_token=END)


def texts(*rows: tuple[int, ...]) -> torch.Tensor:
    """Ids between a start and an end token, padded with end tokens."""
    longest = max(map(len, rows)) + 2
    return torch.tensor([[START, *row] + [END] * (longest - 1 - len(row)) for row in rows])


def drawn(count: int, words: int, seed: int = 0) -> torch.Tensor:
    """Random texts of up to 14 words out of so few that many begin alike, and some are equal."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 15, (count,), generator=g).tolist()
    return texts(*(tuple(torch.randint(words, (n,), generator=g).tolist()) for n in lengths))


def outcome(tower: TextTransformer, tokens: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Features, and the gradients of all parameters."""
    tower.zero_grad()
    features = tower(tokens)
    features.backward(weights)
    return [features.detach(), *(p.grad.clone() for p in tower.parameters() if p.grad is not None)]


CASES = {
    "many": drawn(40, 3),
    "few in common": drawn(9, 38),
    "one": texts((1, 2)),
    "empty text": texts(()),
    "all equal": texts((1, 2), (1, 2), (1, 2)),
    "one begins another": texts((1,), (1, 2), (), (1, 2, 3)),
    "no end token": torch.tensor([[START, 1, 2], [START, 1, END], [1, 2, 3], [START, END, 5]]),
    "tokens after the end": torch.tensor([[START, 4, END, 7], [START, 4, END, END], [START, 4, 7, END]]),
}


@pytest.mark.parametrize("layout", ["lengths", "one"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_packed_texts_give_the_features_and_gradients_of_padded_ones(case, layout, dtype, tolerance):
    torch.manual_seed(0)
    tower, tokens = TextTransformer(TEXT).to(dtype), CASES[case]
    tower.layout = layout
    reference = copy.deepcopy(tower)
    reference.layout = "padded"
    weights = torch.randn(len(tokens), 32, dtype=dtype)
    got, want = outcome(tower, tokens, weights), outcome(reference, tokens, weights)
    assert len(got) == len(want) == 1 + len(list(tower.parameters()))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= tolerance * b.norm().clamp(min=1)


def test_common_beginnings_and_equal_texts_are_computed_once():
    packing = pack(texts((1, 2), (1, 3), (1, 2), (4,)), END)
    # start | 1 2 end | 3 end | 4 end
    assert len(packing.tokens) == 8 and packing.tokens.tolist().count(START) == 1
    assert packing.groups == ((1, 3), (2, 4)) and len(packing.ends) == 3 and packing.seen is None
    assert packing.text.tolist() == [1, 2, 1, 0]
    assert packing.positions[packing.node].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]
    assert packing.node[packing.place].tolist() == list(range(8))


def test_the_order_of_the_texts_changes_nothing_but_theirs():
    torch.manual_seed(0)
    tower, tokens = TextTransformer(TEXT).double(), drawn(30, 3)
    order = torch.randperm(len(tokens))
    torch.testing.assert_close(tower(tokens)[order], tower(tokens[order]), rtol=1e-12, atol=1e-12)


def test_several_batches_of_texts_are_one():
    a, b = texts((1, 2, 3), (4,)), texts((1, 2, 3))[:, :4]
    both = together([a, torch.cat([b, texts((5, 6))])], END)
    assert both.shape == (4, 5) and both[2].tolist() == [START, 1, 2, 3, END]
    tower = TextTransformer(TEXT).double()
    assert torch.equal(tower(both)[0], tower(both)[2])


@pytest.mark.parametrize("layout", ["lengths", "one"])
def test_under_autocast_the_features_are_those_of_padded_texts_to_bfloat16(layout):
    torch.manual_seed(0)
    tower, tokens = TextTransformer(TEXT), CASES["many"]
    tower.layout = layout
    exact = outcome(tower, tokens, weights := torch.randn(len(tokens), 32))
    with torch.autocast("cpu", torch.bfloat16):
        half = outcome(tower, tokens, weights)
    assert all((a - b).norm() < 0.03 * b.norm().clamp(min=1e-3) for a, b in zip(half, exact, strict=True))


class Adapted(nn.Linear):
    """A linear layer that counts only where it is called."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_an_adapter_around_a_linear_layer_counts_in_every_block():
    torch.manual_seed(0)
    tower, tokens = TextTransformer(TEXT).double(), CASES["many"]
    for block in tower.blocks:
        adapted = Adapted(32, 96).double()
        adapted.load_state_dict(block.qkv.state_dict())
        block.qkv = adapted
    features = tower(tokens)
    tower.layout = "padded"
    torch.testing.assert_close(features, tower(tokens), rtol=1e-12, atol=1e-12)


def test_an_exported_tower_computes_padded_texts_of_any_number_and_length():
    torch.manual_seed(0)
    tower, tokens = TextTransformer(TEXT).eval(), CASES["many"]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("tokens", max=16)
    program = torch.export.export(tower, (tokens[:3],), dynamic_shapes=({0: batch, 1: length},))
    torch.testing.assert_close(program.module()(tokens), tower(tokens))
    torch.testing.assert_close(program.module()(tokens[:2, :9]), tower(tokens[:2, :9]))


@pytest.mark.parametrize("device, count", [("cpu", 8), ("meta", 1)])
def test_attention_runs_by_length_on_a_cpu_and_in_one_block_elsewhere(monkeypatch, device, count):
    """A tower on another device takes tokens of the CPU, where they are packed."""
    tower, seen = TextTransformer(TEXT).to(device), []
    monkeypatch.setattr(
        "hyco.models.encoders.text.pack", lambda *a, **k: seen.append(pack(*a, **k)) or seen[-1]
    )
    tokens = texts(*((1,) * n for n in range(1, 9)))
    assert tower(tokens).device.type == device and len(seen[0].groups) == count
