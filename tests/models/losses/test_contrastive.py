"""The fused contrast where float32 is short of digits, and the fused cones beside their plain reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.contrastive import PairLoss, contrast
from hyco.models.losses.entailment import cone_excess


def pair_by_pair(points, tables, scale, c):
    """The same total from `lorentz.distance` of every pair."""
    total = points[0].new_zeros(())
    for table in tables:
        q, k = (product.split(points[place], len(c)) for place in (table.query, table.key))
        scores = -scale * lorentz.distance(q[:, None], k[None], c).mean(-1)
        total = total + table.weight * F.cross_entropy(scores, table.target, reduction="sum")
        if table.reverse_target is not None:
            total = total + table.reverse_weight * F.cross_entropy(
                scores.T, table.reverse_target, reduction="sum"
            )
    return total


def both(points, c, scale=50.0, pairs_at_once=1 << 20):
    """Value and gradients of ours in float32 and of the reference in float64, of the very same points."""
    own = torch.arange(len(points[0]))
    weight = torch.tensor(0.5 / len(own))
    tables = [PairLoss(0, 1, own, weight, own, weight), PairLoss(2, 1, own.flip(0), weight)]
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [p.to(dtype).requires_grad_() for p in (*points, c)]
        s = torch.tensor(scale, dtype=dtype, requires_grad=True)
        if dtype == torch.float32:
            total, _ = contrast(leaves[:-1], tables, s, leaves[-1], pairs_at_once)
        else:
            total = pair_by_pair(leaves[:-1], tables, s, leaves[-1])
        found.append((total, torch.autograd.grad(total, [*leaves, s])))
    return found


def cloud(size: float, gap: float, count: int = 6, dim: int = 8, sets: int = 3) -> list[torch.Tensor]:
    """Sets whose i-th points lie `gap` from each other; the points of a set are about `size` apart."""
    generator = torch.Generator().manual_seed(0)
    middle = 0.4 + size * torch.randn(count, dim, generator=generator)
    return [middle + gap * torch.randn(count, dim, generator=generator) for _ in range(sets)]


@pytest.mark.parametrize("factors", [1, 4])
@pytest.mark.parametrize("size, gap", [(1.0, 1e-3), (1.0, 3e-2), (0.0, 1e-5), (0.0, 1e-3), (1e-4, 1e-5)])
@pytest.mark.parametrize("pairs_at_once", [1 << 20, 30])
def test_near_pairs_keep_their_digits(factors, size, gap, pairs_at_once):
    """Few near pairs, taken one by one, and so many that a block is computed in float64."""
    c = torch.linspace(0.5, 2.0, factors)
    points = [p.float() for p in cloud(size, gap)]
    points[1][0] = points[0][0]
    ours, twin = both(points, c, pairs_at_once=pairs_at_once)
    assert ours[0].item() == pytest.approx(twin[0].item(), rel=1e-5, abs=1e-6)
    for got, want in zip(ours[1], twin[1], strict=True):
        assert (got - want).abs().max() < 1e-3 * max(want.abs().max(), 3e-3)


def test_a_plain_float32_product_would_not_do():
    """What the near pairs are for: the product alone is off by more than the distance."""
    x, y = (p.float() for p in cloud(1.0, 1e-4, sets=2))
    x_t, y_t = (1 + x.square().sum(-1)).sqrt(), (1 + y.square().sum(-1)).sqrt()
    naive = torch.acosh((x_t[:, None] * y_t - x @ y.T).clamp(min=1)).diagonal()
    exact = lorentz.distance(x.double(), y.double(), 1.0)
    assert ((naive - exact).abs() / exact).max() > 0.1


def test_tensor_core_precision_is_kept_out(monkeypatch):
    allowed = []
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", allowed.append)
    both([p.float() for p in cloud(1.0, 0.3)], torch.ones(1))
    assert allowed == ["highest", "medium"]


def test_no_gradient_is_made_where_none_is_wanted():
    points = [p.float() for p in cloud(1.0, 0.3, sets=2)]
    own, weight = torch.arange(6), torch.tensor(1.0)
    total, sums = contrast(points, [PairLoss(0, 1, own, weight)], torch.tensor(3.0), torch.ones(1))
    assert not total.requires_grad and total == sums[0, 0] and sums[0, 1] == 0


SIZES = [(0.6, 1.0), (0.6, 1e-3), (0.05, 0.05), (30.0, 30.0), (1e-4, 1e-4), (1e-4, 1.0), (1.0, 1e-6)]


@pytest.mark.parametrize("size, gap", SIZES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 2e-5)])
@pytest.mark.parametrize("factors", [None, 5])
def test_fused_cones_equal_their_plain_twin(size, gap, dtype, tolerance, factors):
    generator = torch.Generator().manual_seed(3)
    shape = (40, 6) if factors is None else (40, factors, 6)
    x = (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    y = (x + gap * torch.randn(shape, generator=generator)).to(dtype)
    y[3] = x[3]
    c = torch.tensor(0.7) if factors is None else torch.linspace(0.2, 3.0, factors)
    weight = torch.rand(shape[:-1], generator=generator)
    fused = [t.to(dtype, copy=True).requires_grad_() for t in (x, y, c)]
    plain = [t.to(torch.float64, copy=True).requires_grad_() for t in (x, y, c)]
    got = cone_excess(*fused, eta=0.7, k=0.1)
    angle, aperture = lorentz.exterior_angle(*plain), lorentz.half_aperture(plain[0], plain[2], 0.1)
    want = torch.relu(angle - 0.7 * aperture)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=max(tolerance, 1e-7))
    ours = torch.autograd.grad((got * weight).sum(), fused)
    theirs = torch.autograd.grad((want * weight).sum(), plain)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert (mine - other).abs().max() <= tolerance * other.abs().max()
    # By the curvature the terms of a pair cancel, the more the nearer it is.
    scale = sum(float((g * p).detach().abs().sum()) for g, p in zip(theirs, plain, strict=True))
    assert (ours[2] - theirs[2]).abs().max() <= tolerance * max(1.0, scale)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1e-3, 1e4])
def test_cones_have_finite_gradients_everywhere(size):
    x = size * torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 3.0]]) * max(size, 1.0)
    y[3] = x[3]
    leaves = [t.clone().requires_grad_() for t in (x, y, torch.tensor(1.0))]
    excess = cone_excess(*leaves, eta=1.2, k=0.1)
    gradients = torch.autograd.grad(excess.sum(), leaves)
    assert torch.isfinite(excess).all() and (excess <= math.pi).all()
    assert all(torch.isfinite(g).all() for g in gradients)
