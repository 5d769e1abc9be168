"""Balanced prototypes: both terms and the head against float64 references, and what the embedding gains."""

import numpy as np
import pytest
import torch

from hyco.models.heads.balanced_prototypes import (
    BalancedPrototypes,
    depths_of,
    distortion,
    embed_hierarchy,
    spread,
    tree_distances,
)
from tests.oracle import prototype_heads as plain

# A wide shallow branch and a narrow deep one.
UNEVEN = [-1, 0, 0, 1, 1, 1, 1, 1, 1, 2, 9, 9]


def test_distances_of_a_tree() -> None:
    found = tree_distances(UNEVEN)
    for i in range(len(UNEVEN)):
        for j in range(len(UNEVEN)):
            assert found[i, j] == plain.edges_between(UNEVEN, i, j)
    assert depths_of(UNEVEN) == [plain.edges_between(UNEVEN, 0, node) for node in range(len(UNEVEN))]
    for parents in ([0], [-1, 2, 0], [-1, -1]):
        with pytest.raises(ValueError, match="the root is node 0, and parents come first"):
            depths_of(parents)


@pytest.mark.parametrize("c", [0.5, 1.0])
def test_terms_are_the_twins(c: float) -> None:
    tangents = torch.randn(len(UNEVEN), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tangents[0] = 0
    found = distortion(tangents, tree_distances(UNEVEN), c)
    assert found.item() == pytest.approx(plain.distortion(tangents.numpy(), UNEVEN, c), abs=1e-9)
    depths = torch.tensor(depths_of(UNEVEN))
    assert spread(tangents, depths).item() == pytest.approx(plain.spread(tangents.numpy(), UNEVEN), abs=1e-12)


def test_the_embedding_keeps_distances_and_balances_levels() -> None:
    found = {weight: embed_hierarchy(UNEVEN, 8, steps=80, balance=weight).numpy() for weight in (0.0, 1.0)}
    errors = {weight: plain.distortion(points, UNEVEN, 1.0) for weight, points in found.items()}
    gaps = {weight: plain.spread(points, UNEVEN) for weight, points in found.items()}
    start = plain.distortion(embed_hierarchy(UNEVEN, 8, steps=0).numpy(), UNEVEN, 1.0)
    assert errors[0.0] < 0.5 * start and errors[1.0] < 0.6 * start
    assert gaps[1.0] < 0.25 * gaps[0.0], "nodes of one level have one radius"
    again = embed_hierarchy(UNEVEN, 8, steps=80)
    assert np.array_equal(found[1.0], again.numpy()), "seeded"
    with pytest.raises(ValueError, match="dim 1 is too few"):
        embed_hierarchy(UNEVEN, 1)


def test_the_head_is_minus_the_distance() -> None:
    torch.manual_seed(0)
    prototypes = embed_hierarchy(UNEVEN, 6, steps=20)[3:9]
    head, features = BalancedPrototypes(prototypes, 4).double(), torch.randn(7, 4, dtype=torch.float64)
    projected = (features @ head.projection.weight.T + head.projection.bias).detach().numpy()
    expected = [
        [-plain.hyperboloid_distance(row, point, 1.0) for point in prototypes.float().double().numpy()]
        for row in projected
    ]
    np.testing.assert_allclose(head(features).detach(), expected, atol=1e-9)
    assert "prototypes" in head.state_dict() and not head.prototypes.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert head.float()(features.float()).dtype == torch.float32
