"""The loss tables against a float64 reference written from the equations, and across two processes."""

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

from hyco.models.clip import ClipConfig, DualEncoder
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.objective import (
    NODES,
    EntailmentRow,
    ObjectiveConfig,
    clip_box_pairs_objective,
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
    "clip_box_pairs": (clip_box_pairs_objective(), "euclid", twin.clip_box_pairs),
    "phyclip": (hycoclip_objective(), "product", twin.phyclip),
}


def tangents(
    batch: int, boxes: int, dim: int = 6, seed: int = 0, size: float = 0.6
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    counts = {"image": batch, "text": batch, "image_box": boxes, "text_box": boxes}
    return {name: size * torch.randn(counts[name], dim, generator=g, dtype=torch.float64) for name in NODES}


def lift(v, c, geometry):
    if geometry == "euclid":
        return F.normalize(v, dim=-1)
    return product.exp0(v, c, len(c)) if geometry == "product" else lorentz.exp0(v, c)


def ours(vectors, owner, config, geometry, log_scale, log_c, dtype):
    """Loss and gradients of tangent vectors, log scale and log curvature."""
    leaves = {name: v.to(dtype).clone().requires_grad_() for name, v in vectors.items()}
    s, c = log_scale.to(dtype).clone().requires_grad_(), log_c.to(dtype).clone().requires_grad_()
    lifted = {name: lift(v, c.exp(), geometry) for name, v in leaves.items()}
    total, terms = loss(lifted, torch.tensor(owner, dtype=torch.long), s.exp(), c.exp(), config, geometry)
    total.backward()
    return total.detach(), [leaf.grad for leaf in (*leaves.values(), s, c)], terms


def plain(vectors, owner, function, geometry, log_scale, log_c):
    leaves = {name: v.clone().requires_grad_() for name, v in vectors.items()}
    s, c = log_scale.clone().requires_grad_(), log_c.clone().requires_grad_()

    def lifted(v):
        if geometry == "product":
            return torch.cat([twin.lift(piece, own) for piece, own in twin.factors(v, c.exp())])
        return twin.lift(v, c.exp()) if geometry == "lorentz" else v

    def points(name):
        return torch.stack([lifted(v) for v in leaves[name]])

    total = function(*(points(name) for name in NODES), owner, s.exp(), c.exp())
    total.backward()
    return total.detach(), [leaf.grad for leaf in (*leaves.values(), s, c)]


def assert_same(mine, other, tolerance):
    assert mine[0].item() == pytest.approx(other[0].item(), rel=tolerance)
    for a, b in zip(mine[1], other[1], strict=True):
        a, b = (torch.zeros(()) if g is None else g.double() for g in (a, b))
        torch.testing.assert_close(a.expand_as(b), b.expand_as(a), rtol=tolerance * 50, atol=tolerance * 5)


def curvatures(geometry: str, factors: int) -> torch.Tensor:
    """log c: one, or one for each factor."""
    if geometry != "product":
        return torch.tensor(-0.4, dtype=torch.float64)
    return torch.linspace(-1.0, 1.0, factors, dtype=torch.float64)


BATCHES = [(5, [0, 1, 2, 3, 4]), (3, [2, 0, 0, 1, 2, 2, 1]), (1, [0])]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("batch, owner", BATCHES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_value_and_gradient_equal_the_twin(row, batch, owner, dtype, tolerance):
    config, geometry, function = ROWS[row]
    vectors = tangents(batch, len(owner), seed=batch)
    log_scale, log_c = torch.tensor(2.0, dtype=torch.float64), curvatures(geometry, 3)
    expected = plain(vectors, owner, function, geometry, log_scale, log_c)
    got = ours(vectors, owner, config, geometry, log_scale, log_c, dtype)
    assert_same(got, expected, tolerance)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("pairs_at_once", [1 << 20, 4])
def test_points_of_another_type_than_the_scalars(row, pairs_at_once):
    """Float64 points, as an assessment has them, with the float32 scale and curvature of a model."""
    config, geometry, _ = ROWS[row]
    config = replace(config, pairs_at_once=pairs_at_once)
    c = curvatures(geometry, 3).exp().float()
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = {name: v.requires_grad_() for name, v in tangents(3, 4).items()}
        scale, own_c = (x.to(dtype).requires_grad_() for x in (torch.tensor(7.0), c))
        points = {name: lift(v, c.double(), geometry) for name, v in leaves.items()}
        total, _ = loss(points, torch.tensor([2, 0, 0, 1]), scale, own_c, config, geometry)
        total.backward()
        assert total.dtype == torch.float64
        found.append((total.detach(), [v.grad for v in leaves.values() if v.grad is not None], scale.grad))
    torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[0][2].double(), found[1][2], rtol=1e-6, atol=1e-7)


def test_sixty_four_factors_equal_the_twin():
    vectors = tangents(2, 3, dim=128, seed=1)
    vectors["text"][1] = vectors["text"][0]
    vectors["image_box"][2, :64] = vectors["text"][1, :64]  # coincident in half of the factors
    log_scale, log_c = torch.tensor(3.0, dtype=torch.float64), curvatures("product", 64)
    owner = [0, 1, 1]
    expected = plain(vectors, owner, twin.phyclip, "product", log_scale, log_c)
    got = ours(vectors, owner, hycoclip_objective(), "product", log_scale, log_c, torch.float32)
    assert_same(got, expected, 2e-5)


def test_one_factor_is_hycoclip():
    vectors = tangents(5, 4, seed=2)
    owner, log_scale, log_c = [0, 3, 3, 1], torch.tensor(2.0), torch.tensor(0.3)
    one, whole = (
        ours(vectors, owner, hycoclip_objective(), geometry, log_scale, c, torch.float32)
        for geometry, c in (("product", log_c[None]), ("lorentz", log_c))
    )
    assert torch.equal(one[0], whole[0])
    for a, b in zip(one[1], whole[1], strict=True):
        torch.testing.assert_close(a.reshape(b.shape), b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("row", ["hycoclip", "phyclip", "clip_boxes"])
@pytest.mark.parametrize("pairs_at_once", [1, 20, 47])
def test_a_streamed_matrix_gives_what_a_whole_one_gives(row, pairs_at_once):
    """Blocks of one query, of two, and with a remainder; a block of one query is less than one row of keys."""
    config, geometry, _ = ROWS[row]
    vectors, owner = tangents(9, 7, seed=4), [8, 0, 3, 3, 5, 1, 8]
    vectors["text"][3] = vectors["image"][3]
    log_scale, log_c = torch.tensor(2.0), curvatures(geometry, 3)
    whole, streamed = (
        ours(vectors, owner, replace(config, pairs_at_once=n), geometry, log_scale, log_c, torch.float64)
        for n in (1 << 20, pairs_at_once)
    )
    assert streamed[0].item() == pytest.approx(whole[0].item(), rel=1e-12)
    for a, b in zip(streamed[1], whole[1], strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_repeated_captions_and_coincident_embeddings_equal_the_twin():
    """Two samples share a caption, a phrase is its caption, a box is its image, a text meets an image."""
    vectors = tangents(5, 5, seed=3)
    vectors["text"][1] = vectors["text"][0]
    vectors["text_box"][2] = vectors["text"][2]
    vectors["image_box"][3] = vectors["image"][3]
    vectors["text"][4] = vectors["image"][4]
    owner, log_scale = [0, 1, 2, 3, 4], torch.tensor(2.5, dtype=torch.float64)
    for config, geometry, function in ROWS.values():
        log_c = curvatures(geometry, 3)
        expected = plain(vectors, owner, function, geometry, log_scale, log_c)
        got = ours(vectors, owner, config, geometry, log_scale, log_c, torch.float32)
        assert_same(got, expected, 2e-5)


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


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", ["hycoclip", "phyclip"])
@pytest.mark.parametrize("steps", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_step_with_half_precision_encoders_gives_nan(half, row, steps):
    """Rough training of random features: a high rate, repeated captions and images, batches without boxes."""
    config, geometry, _ = ROWS[row]
    torch.manual_seed(0)
    vision = VisionConfig(image_size=8, patch_size=8, width=8, depth=1, heads=1)
    text = TextConfig(vocab_size=8, context_length=4, width=8, depth=1, heads=1, end_token=0)
    space = {"geometry": geometry, "factors": 4 if geometry == "product" else 1}
    model = DualEncoder(ClipConfig(vision=vision, text=text, dim=16, **space))
    encoders = torch.nn.ModuleDict({kind: torch.nn.Linear(6, 16) for kind in ("image", "text")})
    learned = [p for p in (*encoders.parameters(), *model.parameters()) if p.ndim < 2 or p.shape == (16, 6)]
    optimiser = torch.optim.AdamW(learned, lr=0.03)
    for step in range(steps):
        boxes = int(torch.randint(9, ())) if step % 7 else 0
        counts = {"image": 8, "text": 8, "image_box": boxes, "text_box": boxes}
        inputs = {
            name: torch.randn(count, 6) * 10 ** float(torch.randn(())) for name, count in counts.items()
        }
        inputs["text"][1], inputs["image"][2] = inputs["text"][0], inputs["image"][3]
        nodes = {}
        for name, rows in inputs.items():
            with torch.autocast("cpu", half):
                features = encoders[name.removesuffix("_box")](rows)
            assert features.dtype == half
            nodes[name] = (model.lift_image if name.startswith("image") else model.lift_text)(features)
        total, _ = loss(nodes, torch.randint(8, (boxes,)), model.scale, model.curvature, config, geometry)
        optimiser.zero_grad()
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(p.grad).all() for p in learned if p.grad is not None)
        optimiser.step()
        model.constrain_()
    assert all(torch.isfinite(p).all() for p in learned)


def test_scores_rank_by_distance_not_by_inner_product():
    query = torch.tensor([[0.5, 0.0]])
    near_pairs, distance = (
        [0.6, 0.1],
        [5.0, 0.0],
    )  # the far point has the larger inner product in space components
    got = scores("lorentz", query, torch.tensor([near_pairs, distance]), 1.0)
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
