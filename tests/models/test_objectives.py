"""The loss tables against a float64 twin written from the equations, and across two processes."""

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from models.hyperbolic import lorentz
from models.objectives import (
    NODES,
    EntailmentRow,
    ObjectiveConfig,
    clip_objective,
    hycoclip_objective,
    loss,
    meru_objective,
    scores,
)
from tests.oracle import hycoclip_loss as twin

ROWS = {
    "hycoclip": (hycoclip_objective(), "lorentz", twin.hycoclip),
    "meru": (meru_objective(), "lorentz", twin.meru),
    "clip": (clip_objective(), "euclid", twin.clip),
    "clip_boxes": (clip_objective(boxes=True), "euclid", twin.clip_boxes),
}


def tangents(
    batch: int, boxes: int, dim: int = 6, seed: int = 0, size: float = 0.6
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    counts = {"image": batch, "text": batch, "image_box": boxes, "text_box": boxes}
    return {name: size * torch.randn(counts[name], dim, generator=g, dtype=torch.float64) for name in NODES}


def ours(vectors, owner, config, geometry, log_scale, log_c, dtype):
    """Loss and gradients of tangent vectors, log scale and log curvature."""
    leaves = {name: v.to(dtype).clone().requires_grad_() for name, v in vectors.items()}
    s, c = log_scale.to(dtype).clone().requires_grad_(), log_c.to(dtype).clone().requires_grad_()
    lifted = {
        name: lorentz.exp0(v, c.exp()) if geometry == "lorentz" else F.normalize(v, dim=-1)
        for name, v in leaves.items()
    }
    total, terms = loss(lifted, torch.tensor(owner, dtype=torch.long), s.exp(), c.exp(), config, geometry)
    total.backward()
    return total.detach(), [leaf.grad for leaf in (*leaves.values(), s, c)], terms


def plain(vectors, owner, function, geometry, log_scale, log_c):
    leaves = {name: v.clone().requires_grad_() for name, v in vectors.items()}
    s, c = log_scale.clone().requires_grad_(), log_c.clone().requires_grad_()

    def points(name):
        rows = leaves[name]
        return torch.stack([twin.lift(v, c.exp()) for v in rows]) if geometry == "lorentz" else rows

    total = function(*(points(name) for name in NODES), owner, s.exp(), c.exp())
    total.backward()
    return total.detach(), [leaf.grad for leaf in (*leaves.values(), s, c)]


def assert_same(mine, other, tolerance):
    assert mine[0].item() == pytest.approx(other[0].item(), rel=tolerance)
    for a, b in zip(mine[1], other[1], strict=True):
        a, b = (torch.zeros(()) if g is None else g.double() for g in (a, b))
        torch.testing.assert_close(a.expand_as(b), b.expand_as(a), rtol=tolerance * 50, atol=tolerance * 5)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("batch, owner", [(5, [0, 1, 2, 3, 4]), (3, [2, 0, 0, 1, 2, 2, 1]), (1, [0])])
def test_value_and_gradient_equal_the_twin(row, batch, owner):
    config, geometry, function = ROWS[row]
    vectors = tangents(batch, len(owner), seed=batch)
    log_scale, log_c = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    expected = plain(vectors, owner, function, geometry, log_scale, log_c)
    assert_same(ours(vectors, owner, config, geometry, log_scale, log_c, torch.float32), expected, 2e-5)


def test_repeated_captions_and_coincident_embeddings_equal_the_twin():
    """Two samples share a caption, a phrase is its caption, a box is its image, a text meets an image."""
    vectors = tangents(5, 5, seed=3)
    vectors["text"][1] = vectors["text"][0]
    vectors["text_box"][2] = vectors["text"][2]
    vectors["image_box"][3] = vectors["image"][3]
    vectors["text"][4] = vectors["image"][4]
    log_scale, log_c = torch.tensor(2.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    owner = [0, 1, 2, 3, 4]
    expected = plain(vectors, owner, twin.hycoclip, "lorentz", log_scale, log_c)
    assert_same(
        ours(vectors, owner, hycoclip_objective(), "lorentz", log_scale, log_c, torch.float32), expected, 2e-5
    )


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-4, 30.0])
def test_gradients_are_finite_when_everything_collapses_or_is_far_out(size):
    vectors = tangents(4, 3, size=size)
    vectors["image"][1] = vectors["image"][0]
    total, gradients, _ = ours(
        vectors,
        [0, 0, 3],
        hycoclip_objective(),
        "lorentz",
        torch.tensor(math.log(100.0)),
        torch.tensor(0.0),
        torch.float32,
    )
    assert torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_terms_are_named_unweighted_and_add_up():
    config = hycoclip_objective()
    vectors = tangents(4, 4)
    zero = torch.tensor(0.0)
    total, _, terms = ours(vectors, [0, 1, 2, 3], config, "lorentz", zero, zero, torch.float32)
    weights = {f"contrast/{row.query}>{row.key}": row.weight for row in config.contrast}
    weights |= {f"entail/{row.general}>{row.specific}": row.weight for row in config.entailment}
    assert set(terms) == set(weights)
    assert terms["entail/text_box>text"] > 0
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in terms), rel=1e-5)
    assert [row.eta for row in config.entailment] == [0.7, 0.7, 1.2, 1.2]


def test_a_share_of_entailment_scales_its_rows_and_nothing_else():
    nodes = {name: lorentz.exp0(v.float(), 1.0) for name, v in tangents(4, 4).items()}
    owner, scale, c = torch.arange(4), torch.tensor(5.0), torch.tensor(1.0)
    none, half, whole = (
        loss(nodes, owner, scale, c, hycoclip_objective(), entailment_share=s)[0].item()
        for s in (0.0, 0.5, 1.0)
    )
    contrast = replace(hycoclip_objective(), entailment=())
    assert none == pytest.approx(loss(nodes, owner, scale, c, contrast)[0].item(), rel=1e-6)
    assert half == pytest.approx((none + whole) / 2, rel=1e-6) and whole > none + 0.1


def test_a_batch_without_boxes_keeps_the_whole_image_terms():
    vectors = tangents(4, 0)
    zero = torch.tensor(0.0)
    total, gradients, terms = ours(vectors, [], hycoclip_objective(), "lorentz", zero, zero, torch.float32)
    assert terms["contrast/image_box>text"] == 0
    assert terms["contrast/image>text"] > 0
    assert torch.isfinite(total) and gradients[0].abs().sum() > 0


def test_half_precision_embeddings_are_computed_in_float32():
    vectors = tangents(4, 4)
    nodes = {name: lorentz.exp0(v.float(), 1.0).bfloat16() for name, v in vectors.items()}
    owner, scale, c = torch.arange(4), torch.tensor(14.0), torch.tensor(1.0)
    wide = {name: points.float() for name, points in nodes.items()}
    expected = loss(wide, owner, scale, c, hycoclip_objective())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(nodes, owner, scale, c, hycoclip_objective())[0]
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_scores_rank_by_distance_not_by_inner_product():
    query = torch.tensor([[0.5, 0.0]])
    near, far = [0.6, 0.1], [5.0, 0.0]  # the far point has the larger inner product in space components
    got = scores("lorentz", query, torch.tensor([near, far]), 1.0)
    assert got[0, 0] > got[0, 1]
    assert got[0, 1].item() == pytest.approx(-(math.asinh(5.0) - math.asinh(0.5)), rel=1e-5)


def test_impossible_rows_are_refused():
    with pytest.raises(ValueError, match="part cannot contain"):
        EntailmentRow(general="text", specific="image_box", eta=1.0, weight=1.0)
    with pytest.raises(ValueError, match="geometry 'lorentz'"):
        entailing = replace(meru_objective(), contrast=())
        zero = torch.tensor(0.0)
        ours(tangents(2, 0), [], entailing, "euclid", zero, zero, torch.float32)


def test_uses_boxes():
    assert hycoclip_objective().uses_boxes and clip_objective(boxes=True).uses_boxes
    assert not meru_objective().uses_boxes and not ObjectiveConfig(contrast=()).uses_boxes


OWNERS = ([0, 2, 2], [1])  # rank 0 has three boxes, rank 1 has one


def _rank(rank: int, port_file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    vectors = tangents(6, 4, seed=9)
    boxes = slice(0, 3) if rank == 0 else slice(3, 4)
    own = {
        name: v[boxes if name.endswith("box") else slice(3 * rank, 3 * rank + 3)].float().requires_grad_()
        for name, v in vectors.items()
    }
    log_scale, log_c = torch.tensor(1.0, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    nodes = {name: lorentz.exp0(v, log_c.exp()) for name, v in own.items()}
    total, _ = loss(
        nodes,
        torch.tensor(OWNERS[rank]),
        log_scale.exp(),
        log_c.exp(),
        hycoclip_objective(),
        distributed=True,
    )
    total.backward()
    gradients = {name: v.grad for name, v in own.items()} | {"scale": log_scale.grad, "c": log_c.grad}
    torch.save({"loss": total.detach(), **gradients}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one():
    """Averaged over ranks as DDP averages: the loss, and the gradient of every embedding and scalar."""
    vectors = tangents(6, 4, seed=9)
    owner = [*OWNERS[0], *(3 + o for o in OWNERS[1])]
    total, gradients, _ = ours(
        vectors, owner, hycoclip_objective(), "lorentz", torch.tensor(1.0), torch.tensor(0.2), torch.float32
    )
    expected = dict(zip([*NODES, "scale", "c"], gradients, strict=True))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as out:
        mp.spawn(_rank, (f"{out}/store", out), nprocs=2)
        ranks = [torch.load(Path(out) / f"{r}.pt", weights_only=True) for r in range(2)]
    assert sum(r["loss"] for r in ranks).item() / 2 == pytest.approx(total.item(), rel=1e-5)
    for name in NODES:
        # DDP divides by the number of ranks what each rank adds to the shared weights.
        joined = torch.cat([r[name] for r in ranks]) / 2
        torch.testing.assert_close(joined, expected[name], rtol=1e-4, atol=1e-6)
    for name in ("scale", "c"):
        torch.testing.assert_close(sum(r[name] for r in ranks) / 2, expected[name], rtol=1e-4, atol=1e-6)
