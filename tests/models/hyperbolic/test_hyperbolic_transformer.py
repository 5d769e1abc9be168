"""Rotary positions by complex numbers and by distances; the block against its parts, and a task that needs places."""

import pytest
import torch
from torch import nn

from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic import poincare


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_rotary_is_a_product_of_complex_numbers():
    u = torch.randn(2, 7, 12, dtype=torch.double)
    z = torch.view_as_complex(u.view(2, 7, 3, 2, 2))
    turn = torch.polar(
        torch.ones(7, 2, dtype=torch.double),
        torch.arange(7, dtype=torch.double)[:, None] * torch.tensor([1.0, 100.0**-0.5], dtype=torch.double),
    )
    want = torch.view_as_real(z * turn[:, None]).reshape(2, 7, 12)
    assert torch.allclose(hnn.RotaryPositions(12, 3, base=100.0)(u), want, rtol=1e-12, atol=1e-13)


def test_distances_depend_on_the_difference_of_places():
    """One query and one key at all places: a Toeplitz matrix of distances, not a constant one."""
    turn = hnn.RotaryPositions(6, 1)
    q, k = (poincare.exp0(turn(torch.randn(1, 6, dtype=torch.double).expand(9, 6)), 0.7) for _ in range(2))
    d = poincare.pairwise_distance(q, k, 0.7)
    assert torch.allclose(d[1:, 1:], d[:-1, :-1], rtol=1e-10) and d.std() > 0.1
    assert torch.allclose(d.diagonal(), d[0, 0].expand(9), rtol=1e-10)


def test_a_block_is_its_parts_and_knows_places():
    block = hnn.TransformerBlock(8, 2, hidden=12, c=0.6).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.2)
    u, c = 0.5 * torch.randn(2, 5, 8, dtype=torch.double), 0.6

    def moved(branch, x):
        return poincare.log0(poincare.add(poincare.exp0(branch, c), poincare.exp0(x, c), c), c)

    mha = hnn.MultiheadAttention(8, 2, c=c).double()
    mha.load_state_dict(
        {
            k.replace("query.0", "query").replace("key.0", "key"): v
            for k, v in block.attention.state_dict().items()
        }
    )
    turn = hnn.RotaryPositions(8, 2)
    for part in (mha.query, mha.key):
        part.register_forward_hook(lambda _, __, out: turn(out))
    x = moved(mha(block.norm1(u)), u)
    x = moved(block.contract(nn.functional.gelu(block.expand(block.norm2(x)))), x)
    assert torch.allclose(block(u), x, rtol=1e-8, atol=1e-10)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert not torch.allclose(block(u)[:, order], block(u[:, order]), rtol=1e-2)
    bare = hnn.TransformerBlock(8, 2, base=None).double()
    assert torch.allclose(bare(u)[:, order], bare(u[:, order]), rtol=1e-8, atol=1e-10)


def test_a_block_learns_to_look_one_place_back():
    """The token before each place, under a causal mask: impossible without positions."""
    tokens = torch.randint(4, (16, 8))
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    losses = {}
    for base in (100.0, None):
        torch.manual_seed(0)
        table, head = nn.Embedding(4, 16), hnn.MLR(16, 4)
        block = hnn.TransformerBlock(16, 2, hidden=16, base=base)
        with torch.no_grad():
            table.weight.mul_(0.2)
        net = nn.ModuleList([table, block, head])
        optimiser = torch.optim.AdamW(net.parameters(), 2e-2)
        for _ in range(60):
            optimiser.zero_grad()
            logits = head(block(table(tokens), mask=mask))[:, 1:]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, :-1].flatten())
            loss.backward()
            optimiser.step()
        losses[base] = loss.item()
    assert losses[100.0] < 0.5 * losses[None]


def test_errors_name_the_sizes():
    with pytest.raises(ValueError, match="embed_dim 6 is not an even multiple of num_heads 2"):
        hnn.TransformerBlock(6, 2)
    assert hnn.TransformerBlock(6, 2, base=None)(torch.zeros(1, 2, 6)).shape == (1, 2, 6)
