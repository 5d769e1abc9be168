"""Attention over lists of keys in C++ beside the plain form: the same block with the kernels switched off."""

import copy

import pytest
import torch

from hyco.models.encoders import block, listed
from hyco.models.encoders.block import Block
from hyco.models.encoders.packing import pack

END = 39
built = pytest.mark.skipif(listed.kernels() is None, reason="no C++ compiler, or another kind of machine")
SIZES = {"even": (32, 4), "odd": (36, 3), "one head": (20, 1), "wide": (80, 2)}  # width, heads


def texts(count: int, words: int) -> torch.Tensor:
    """Texts of 1 to 9 words out of few, so that many begin alike, padded with end tokens."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(words, (count, 10), generator=g)
    length = torch.randint(1, 10, (count, 1), generator=g)
    return tokens.masked_fill(torch.arange(10) >= length, END)


def outcome(one: Block, x: torch.Tensor, half: bool, **options) -> list[torch.Tensor]:
    """What comes out, and the slopes of the input and of all parameters."""
    one.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = one(x, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(weights.to(out.dtype))
    slopes = [p.grad for p in (x, *one.parameters())]
    return [out.detach(), *(slope for slope in slopes if slope is not None)]


def compare(one: Block, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, half: bool, **options) -> None:
    """float32 to 1e-5; in bfloat16 no farther from float64 than the plain form."""
    calls = []
    kernel = listed.attend_listed
    monkeypatch.setattr(block, "attend_listed", lambda *given: calls.append(1) or kernel(*given))
    got = outcome(one, x, half, **options)
    assert calls
    monkeypatch.setattr(block, "usable", lambda *_: False)
    plain = outcome(one, x, half, **options)
    exact = outcome(copy.deepcopy(one).double(), x.double(), False, **options)
    assert len(calls) == 1 and len(got) == len(plain) == len(exact)
    for ours, theirs, true in zip(got, plain, exact, strict=True):
        if half:
            size = true.norm() + 1e-6 * true.numel()
            assert (ours - true).norm() < 1.2 * (theirs - true).norm() + 1e-3 * size
        else:
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@built
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("layout", ["lengths", "one"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_packed_texts(size, last, layout, half, monkeypatch):
    width, heads = SIZES[size]
    torch.manual_seed(0)
    packing = pack(texts(40, 3), END, equal_lengths=layout == "lengths")
    one = Block(width, heads, 1, 2.0, causal=True)
    x = torch.randn(len(packing.tokens), width)
    compare(one, x, monkeypatch, half, packing=packing, at=packing.ends if last else None)


@built
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 37), (5, 10)])
def test_one_query_of_each_row(rows, tokens, causal, half, monkeypatch):
    torch.manual_seed(0)
    one = Block(36, 3, 1, 2.0, causal=causal)
    at = torch.arange(rows) % tokens
    compare(one, torch.randn(rows, tokens, 36), monkeypatch, half, at=at)


@built
def test_long_texts_take_a_product_for_each_length(monkeypatch):
    one = Block(32, 4, 1, 2.0, causal=True)
    for tokens, listed_ones in ((block.FEW_KEYS, 1), (block.FEW_KEYS + 1, 0)):
        ids = torch.arange(2 * tokens).view(2, tokens) % 31
        ids[:, -1] = END
        calls = []
        kernel = listed.attend_listed
        monkeypatch.setattr(
            block, "attend_listed", lambda *given, c=calls, k=kernel: c.append(1) or k(*given)
        )
        packing = pack(ids, END)
        one(torch.randn(len(packing.tokens), 32), packing=packing)
        assert len(calls) == listed_ones


@pytest.mark.parametrize("reason", ["switch", "float64", "meta", "func"])
def test_plain_torch_elsewhere(reason, monkeypatch):
    x = torch.randn(3, 8)
    if reason == "switch":
        monkeypatch.setenv("HYCO_KERNELS", "0")
        assert listed.kernels.__wrapped__() is None
    elif reason == "func":
        assert not torch.func.vmap(lambda row: row if listed.usable(row) else row + 1)(x).equal(x)
    else:
        assert not listed.usable(x.double() if reason == "float64" else x.to("meta"))


@built
def test_threads_change_nothing():
    torch.manual_seed(0)
    packing = pack(texts(60, 3), END)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        q = torch.randn(len(packing.tokens), 96, generator=torch.Generator().manual_seed(2)).requires_grad_()
        out = listed.attend_listed(None, q, 4, packing.keys())
        out.square().sum().backward()
        found.append((out.detach(), q.grad))
    torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
