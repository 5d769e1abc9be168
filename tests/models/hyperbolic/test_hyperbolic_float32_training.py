"""Embeddings of a deep tree train in float32: every chart, both optimisers, points and tangent rows."""

import pytest
import torch
from torch.nn import functional as F

from hyco.models.hyperbolic import lorentz, poincare
from hyco.models.hyperbolic import nn as hnn
from hyco.models.hyperbolic.optim import RiemannianAdam, RiemannianSGD, parameter_groups

DEPTH, EDGE, DIMENSIONS, PAIRS = 8, 1.5, 5, 1024
TABLES = {
    "lorentz points": ("lorentz", True),
    "ball points": ("poincare", True),
    "rows": ("lorentz", False),
    "ball rows": ("poincare", False),
}


@pytest.mark.parametrize("radius", [5.0, 8.0, 11.0])
@pytest.mark.parametrize("step", [0.05, 0.3, 1.0])
def test_transport_keeps_lengths_in_float32(radius, step):
    """The first moment of Adam is carried along by transport: a length that grows at radius 11 becomes NaN in Adam.

    Bound: float32's 6e-8 times sinh(radius), by which rounding a point already moves it.
    """
    torch.manual_seed(0)
    x = lorentz.exp0(F.normalize(torch.randn(400, DIMENSIONS), dim=1) * radius, 1.0)

    def tangents(length):
        g, radial = torch.randn(400, DIMENSIONS), F.normalize(x, dim=1)
        outward = (g * radial).sum(1, keepdim=True) * radial
        v = g - outward + outward * lorentz.time(x, 1.0)
        return v * (length / lorentz.tangent_norm(x, v, 1.0))

    y = lorentz.project(lorentz.exp(x, tangents(step), 1.0), 1.0)
    carried = lorentz.transport(x, y, tangents(1.0), 1.0)
    off = (lorentz.tangent_norm(y, carried, 1.0) - 1).abs().max()
    assert off < 1e-6 + 6e-8 * torch.tensor(radius + step).sinh()


def tree_distances(depth: int, edge: float):
    """Two nodes of each of the pairs of a binary tree, and their distances along it."""
    nodes = torch.arange(1, 2 ** (depth + 1))
    first, second = torch.triu_indices(len(nodes), len(nodes), 1)
    level = torch.log2(nodes + 0.5).floor().long()
    shared = torch.zeros(len(first), dtype=torch.long)
    for up in range(1, depth + 1):  # levels at which the two have the same ancestor
        a, b = (nodes[i] >> (level[i] - up).clamp(min=0) for i in (first, second))
        shared += (a == b) & (level[first] >= up) & (level[second] >= up)
    return first, second, edge * (level[first] + level[second] - 2 * shared).float()


def train(table: str, make, steps: int):
    """Absolute relative errors pull with the same force at any distance and drive points to the rim.

    With them Adam met NaN at step 281 while transport lost lengths.
    """
    torch.manual_seed(0)
    first, second, wanted = tree_distances(DEPTH, EDGE)
    model, points = TABLES[table]
    space = {"lorentz": lorentz, "poincare": poincare}[model]
    net = hnn.Embedding(2 ** (DEPTH + 1) - 1, DIMENSIONS, points=points, model=model)
    optimiser = make(parameter_groups(net))
    for step in range(steps):
        pair = torch.randint(len(wanted), (PAIRS,))
        x = net.weight if points else space.exp0(net.weight, 1.0)
        found = space.distance(x[first[pair]], x[second[pair]], 1.0)
        optimiser.zero_grad()
        (found / wanted[pair] - 1).abs().mean().backward()
        assert net.weight.grad is not None and net.weight.grad.isfinite().all(), f"gradient at step {step}"
        optimiser.step()
        assert net.weight.isfinite().all(), f"points at step {step}"


def adam(groups):
    return RiemannianAdam(groups, lr=0.05)


def sgd(groups):
    return RiemannianSGD(groups, lr=10.0, momentum=0.9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [adam, sgd])
@pytest.mark.parametrize("table", TABLES)
def test_ten_thousand_steps_in_float32(table, make):
    train(table, make, 10_000)
