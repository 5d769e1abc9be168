"""Rows beyond HyCoCLIP's: angles, norms, uncertainty, boxes as keys, cones with negatives and sigmoids.

Against the float64 reference, streamed, across two processes, and where points have no direction.
"""

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

from hyco.models.hyperbolic import lorentz, product
from hyco.models.losses.objective import (
    NODES,
    ContrastRow,
    EntailmentRow,
    NormRow,
    ObjectiveConfig,
    angle_objective,
    argent_objective,
    clip_box_pairs_objective,
    clip_objective,
    cones_objective,
    loss,
    polar_cones_objective,
    siglip_objective,
    uncha_objective,
)
from tests.models.losses.test_objective import BATCHES, curvatures, lift, tangents
from tests.oracle import hycoclip_loss as twin

POLAR = polar_cones_objective()
PART = EntailmentRow(general="image_box", specific="image", weight=0.5, loss="contrastive")
ROWS = {
    "argent": (argent_objective(), twin.argent),
    "uncha": (uncha_objective(), twin.uncha),
    "angle": (angle_objective(), twin.angle),
    "siglip": (siglip_objective(), twin.siglip),
    "cones": (cones_objective(), twin.cones),
    "pairs": (clip_box_pairs_objective(), twin.distance_pairs),
    "polar_cones": (POLAR, twin.polar_cones),
    "part": (replace(clip_objective(), entailment=(PART,)), twin.part_rejection),
}
LEARNED = (2.0, -0.4, 1.2, 3.0)  # log scale, log curvature, log scale of the named temperature, bias


def ours(vectors, owner, config, dtype, learned=LEARNED, geometry="lorentz", distributed=False):
    """Loss, gradients by tangent vectors and the four learned scalars, and terms."""
    leaves = {name: v.to(dtype).clone().requires_grad_() for name, v in vectors.items()}
    scalars = [torch.as_tensor(x, dtype=torch.float64).to(dtype).requires_grad_() for x in learned]
    s, c, named, bias = scalars
    lifted = {name: lift(v, c.exp(), geometry) for name, v in leaves.items()}
    scales = dict.fromkeys(config.temperatures, named.exp())
    own = torch.tensor(owner, dtype=torch.long)
    total, terms = loss(
        lifted,
        own,
        s.exp(),
        c.exp(),
        config,
        geometry,
        distributed,
        scales=scales,
        bias=bias,
        polar=config.norm == POLAR.norm and geometry == "lorentz",
    )
    total.backward()
    zeros = [torch.zeros_like(x) if x.grad is None else x.grad for x in (*leaves.values(), *scalars)]
    return total.detach(), zeros, terms


def plain(vectors, owner, function):
    leaves = {name: v.clone().requires_grad_() for name, v in vectors.items()}
    scalars = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in LEARNED]
    s, c, named, bias = scalars
    points = (torch.stack([twin.lift(v, c.exp()) for v in leaves[name]]) for name in NODES)
    total = function(*points, owner, s.exp(), c.exp(), named.exp(), bias)
    total.backward()
    return total.detach(), [
        torch.zeros_like(x) if x.grad is None else x.grad for x in (*leaves.values(), *scalars)
    ]


def same(got, want, tolerance):
    assert got[0].item() == pytest.approx(want[0].item(), rel=tolerance)
    for mine, other in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=50 * tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("batch, owner", BATCHES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_value_and_gradient_equal_the_twin(row, batch, owner, dtype, tolerance):
    config, function = ROWS[row]
    vectors = tangents(batch, len(owner), seed=batch)
    same(ours(vectors, owner, config, dtype), plain(vectors, owner, function), tolerance)


@pytest.mark.parametrize("row", ROWS)
def test_coincident_points_equal_the_twin(row):
    config, function = ROWS[row]
    vectors, owner = tangents(5, 5, seed=3), [0, 1, 2, 3, 4]
    vectors["text"][4] = vectors["image"][4]
    vectors["text_box"][2] = vectors["text"][2]
    vectors["image_box"][3] = vectors["text_box"][3]
    same(ours(vectors, owner, config, torch.float32), plain(vectors, owner, function), 2e-5)


@pytest.mark.parametrize("geometry", ["lorentz", "product"])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("pairs_at_once", [1, 20, 47])
def test_a_streamed_matrix_gives_what_a_whole_one_gives(row, pairs_at_once, geometry):
    config, _ = ROWS[row]
    vectors, owner = tangents(9, 7, seed=4), [8, 0, 3, 3, 5, 1, 8]
    learned = (2.0, curvatures(geometry, 3), 1.2, 3.0)
    whole, streamed = (
        ours(vectors, owner, replace(config, pairs_at_once=n), torch.float64, learned, geometry)
        for n in (1 << 20, pairs_at_once)
    )
    assert streamed[0].item() == pytest.approx(whole[0].item(), rel=1e-12)
    for a, b in zip(streamed[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("near", [3, 40])
def test_angles_keep_their_digits_near_the_axis_and_near_each_other(dtype, tolerance, near):
    """Few pairs, taken one by one, and so many that a block is computed in float64; products and streamed too."""
    row = EntailmentRow(general="text", specific="image", weight=1.0, loss="contrastive")
    config = ObjectiveConfig(contrast=(), entailment=(row,), pairs_at_once=300)
    generator = torch.Generator().manual_seed(near)
    text = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    image = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    image[:near] = (1.5 * text + 1e-3 * image)[:near]  # nearly behind it
    image[near // 2 :: 7] = (text + 1e-3 * image)[near // 2 :: 7]  # nearly on it
    if near == 40:
        text = 0.02 * text + text[0]
    c = torch.tensor([0.5, 2.0], dtype=torch.float64)
    given = [t.to(dtype) for t in (text, image, c)]
    found = []
    for wide in (False, True):
        t, i, k = leaves = [(x.double() if wide else x).clone().requires_grad_() for x in given]
        s = torch.tensor(7.0, dtype=t.dtype, requires_grad=True)
        if wide:
            pairs = product.split(t, 2)[:, None], product.split(i, 2)[None]
            scores = -s * lorentz.exterior_angle(*pairs, k).mean(-1)
            own = torch.arange(40)
            entropies = (torch.nn.functional.cross_entropy(matrix, own) for matrix in (scores, scores.T))
            total = sum(entropies) / 2
        else:
            total, _ = loss({"text": t, "image": i}, torch.arange(0), s, k, config, "product")
        found.append((total.detach(), torch.autograd.grad(total, [*leaves, s])))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=tolerance)
    for mine, other in zip(found[0][1], found[1][1], strict=True):
        assert (mine - other).abs().max() < 30 * tolerance * other.abs().max()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-4, 30.0])
@pytest.mark.parametrize("boxes", [0, 3])
def test_gradients_are_finite_at_the_origin_and_far_out(row, size, boxes):
    vectors = tangents(4, boxes, size=size)
    vectors["image"][1] = vectors["image"][0]
    vectors["text"][2], vectors["image"][2] = 2 * vectors["image"][3], -vectors["image"][3]
    total, gradients, terms = ours(vectors, [0, 0, 3][:boxes], ROWS[row][0], torch.float32)
    assert torch.isfinite(total) and all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(g).all() for g in gradients)


def test_a_general_on_the_ray_of_its_specific_has_the_angle_zero_and_opposite_pi():
    row = EntailmentRow(general="text", specific="image", weight=1.0, loss="contrastive")
    config = ObjectiveConfig(contrast=(), entailment=(row,))
    text = torch.tensor([[0.3, 0.4], [-0.3, -0.4]])
    nodes = {"text": text, "image": 2 * text}
    total, _ = loss(nodes, torch.arange(0), torch.tensor(1.0), torch.tensor(1.0), config)
    assert total.item() == pytest.approx(torch.tensor(-torch.pi).exp().log1p().item(), rel=1e-5)


def test_norms_are_lowest_at_the_root_of_one_half_and_finite_at_the_origin():
    config = ObjectiveConfig(contrast=(), norm=(NormRow(node="image", weight=1.0),))
    lengths = torch.tensor([0.0, 1e-6, 0.3, 0.5**0.5, 2.0])
    points = torch.stack([lengths, 0 * lengths], 1).requires_grad_()
    empty = torch.zeros(0, dtype=torch.long)
    total, terms = loss({"image": points}, empty, torch.tensor(1.0), torch.tensor(1.0), config)
    total.backward()
    assert points.grad is not None and set(terms) == {"norm/image"}
    slopes = 5 * points.grad[:, 0]
    assert slopes[0] == 0 and slopes[1] == pytest.approx(-1e4, rel=1e-4)
    assert slopes[2] == pytest.approx(0.6 - 1 / 0.3, rel=1e-5) and abs(slopes[3]) < 1e-6
    assert slopes[4] == pytest.approx(3.5)


def test_a_floor_of_the_norms_costs_the_squared_log_of_what_is_missing():
    """Radii in units of the curvature; no cost and no slope above the floor, a finite slope at the origin."""
    c = torch.tensor(4.0)
    points = torch.tensor([[0.05, 0.0], [0.0, 0.3], [0.0, 0.0]]).requires_grad_()  # radii 0.1, 0.6, 0
    boxes = torch.zeros(0, 2)
    nodes = {"image": points, "text": points.detach(), "image_box": boxes, "text_box": boxes}
    config = ObjectiveConfig(contrast=(), norm=(NormRow(node="image", weight=1.0, radius=0.4),))
    own = torch.zeros(0, dtype=torch.long)
    total, terms = loss(nodes, own, torch.tensor(1.0), c, config)
    origin = math.log(0.4) - (math.log(1e-4) - 1 + math.log(2))  # the tangent of the log at 1e-4
    assert terms["norm/image"].item() == pytest.approx((math.log(4) ** 2 + origin**2) / 3, rel=1e-5)
    total.backward()
    assert points.grad is not None and bool(points.grad.isfinite().all())
    assert points.grad[0, 0] < 0 and not points.grad[1].any()
    band = replace(config, norm=(NormRow(node="image", weight=1.0, radius=0.4, ceiling=0.5),))
    wider, _ = loss(nodes, own, torch.tensor(1.0), c, band)
    assert wider.item() == pytest.approx(total.item() + math.log(0.6 / 0.5) ** 2 / 3, rel=1e-5)
    with pytest.raises(ValueError, match=r"ceiling 0\.1 must be at least the radius 0\.4"):
        NormRow(node="image", weight=1.0, radius=0.4, ceiling=0.1)
    with pytest.raises(ValueError, match=r"radius -0\.1 must not be negative"):
        NormRow(node="text", weight=1.0, radius=-0.1)


@pytest.mark.parametrize("kind", ["hinge", "membership"])
def test_a_row_has_the_aperture_it_names(kind):
    """A row with K of its own is the row of an objective with that K; others keep the objective's."""
    row = EntailmentRow(general="text", specific="image", weight=1.0, loss=kind)
    vectors, owner = tangents(5, 0, seed=2, size=0.3), []
    own, whole, plain = (
        ours(
            vectors,
            owner,
            ObjectiveConfig(contrast=(), entailment=(replace(row, aperture=a),), aperture=k),
            torch.float64,
        )[0].item()
        for a, k in ((0.03, 0.1), (0.0, 0.03), (0.0, 0.1))
    )
    assert own == whole != plain
    with pytest.raises(ValueError, match=r"aperture 0\.1 of loss 'angle'"):
        replace(row, loss="angle", aperture=0.1)


def test_uncertain_parts_count_less():
    """Parts near the origin are uncertain: their weight is exp(-u), over its mean."""
    vectors = tangents(3, 3, seed=5)
    vectors["image_box"][0] *= 1e-3
    row = ContrastRow(query="image_box", key="text", weight=1.0)
    weighted, flat = (
        ours(vectors, [0, 1, 2], ObjectiveConfig(contrast=(r,)), torch.float64)[1][2].norm(dim=-1)
        for r in (replace(row, uncertainty=True), row)
    )
    share = weighted / flat
    assert share[0] < 0.8 and share[1] > 1 and share[2] > 1


@pytest.mark.parametrize("geometry", ["lorentz", "product"])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("steps", [25, pytest.param(250, marks=pytest.mark.slow)])
def test_no_step_gives_nan(row, geometry, steps):
    """Rough training of points: a high rate, repeated points, batches without boxes."""
    torch.manual_seed(0)
    leaves = {name: v.float().requires_grad_() for name, v in tangents(8, 8, dim=12).items()}
    log_c = curvatures(geometry, 3).float().requires_grad_()
    s, named, bias = (torch.tensor(x, requires_grad=True) for x in (2.0, 1.0, 5.0))
    learned = [*leaves.values(), log_c, s, named, bias]
    optimiser = torch.optim.AdamW(learned, lr=0.3)
    config = ROWS[row][0]
    for step in range(steps):
        boxes = int(torch.randint(9, ())) if step % 7 else 0
        nodes = {name: lift(v, log_c.exp(), geometry) for name, v in leaves.items()}
        nodes |= {name: nodes[name][:boxes] for name in NODES if name.endswith("box")}
        nodes["text"] = torch.cat(
            [nodes["text"][:1], nodes["text"][:1], nodes["image"][2:3], nodes["text"][3:]]
        )
        scales = dict.fromkeys(config.temperatures, named.exp())
        owner = torch.randint(8, (boxes,))
        total, _ = loss(nodes, owner, s.exp(), log_c.exp(), config, geometry, scales=scales, bias=bias)
        optimiser.zero_grad()
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(p.grad).all() for p in learned if p.grad is not None)
        optimiser.step()
        with torch.no_grad():
            log_c.clamp_(-2.3, 2.3)
            s.clamp_(max=4.6), named.clamp_(max=4.6)


@pytest.mark.parametrize("row", ROWS)
def test_terms_have_a_name_each_and_add_up(row):
    """Only hinges are called "entail": the report draws these as angles outside a cone."""
    config, _ = ROWS[row]
    total, _, terms = ours(tangents(5, 4), [0, 3, 3, 1], config, torch.float64)
    kinds = {"hinge": "entail", "angle": "angle", "contrastive": "negatives", "membership": "member"}
    weights = {f"contrast/{r.query}>{r.key}": r.weight for r in config.contrast}
    weights |= {f"{kinds[r.loss]}/{r.general}>{r.specific}": r.weight for r in config.entailment}
    weights |= {f"norm/{r.node}": r.weight for r in config.norm}
    assert set(terms) == set(weights)
    assert len(weights) == len(config.contrast) + len(config.entailment) + len(config.norm)
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in terms), rel=1e-9)


def test_impossible_rows_are_refused():
    with pytest.raises(ValueError, match="use query 'text_box' and key 'image'"):
        ContrastRow(query="image", key="text_box", weight=1.0)
    for query, key in (("images", "text"), ("text", "images"), ("images", "images")):
        with pytest.raises(ValueError, match="'images' and 'texts' are compared with each other only"):
            ContrastRow(query=query, key=key, weight=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="belong to loss 'angle'"):
        EntailmentRow(general="text", specific="image", weight=1.0, adaptive=True)
    with pytest.raises(ValueError, match=r"delta 0\.0"):
        EntailmentRow(general="text", specific="image", weight=1.0, loss="angle", delta=0.0)
    with pytest.raises(ValueError, match="belongs to losses 'contrastive' and"):
        EntailmentRow(general="text", specific="image", weight=1.0, temperature="a")
    nodes, one = tangents(2, 2), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"model\.temperatures"):
        loss(nodes, torch.arange(2), one, one, uncha_objective())
    with pytest.raises(ValueError, match=r"model\.sigmoid_bias"):
        loss(nodes, torch.arange(2), one, one, siglip_objective())
    with pytest.raises(ValueError, match="geometry 'lorentz'"):
        norms = replace(clip_objective(), norm=(NormRow(node="text", weight=1.0),))
        loss(nodes, torch.arange(2), one, one, norms, "euclid")


OWNERS = ([0, 2, 2], [1])  # rank 0 has three boxes, rank 1 has one


def _rank(rank: int, port_file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    for owners in (OWNERS, ([0, 2, 2, 1], [])):
        boxes = slice(0, len(owners[0])) if rank == 0 else slice(len(owners[0]), 4)
        own = {
            name: v[boxes if name.endswith("box") else slice(3 * rank, 3 * rank + 3)]
            for name, v in tangents(6, 4, seed=9).items()
        }
        for row, (config, _) in ROWS.items():
            total, gradients, terms = ours(own, owners[rank], config, torch.float32, distributed=True)
            torch.save([total, gradients, terms], f"{out}/{row}-{len(owners[0])}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one():
    """Averaged over ranks as DDP averages; with three boxes and one, and with all boxes on one rank."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as out:
        mp.spawn(_rank, (f"{out}/store", out), nprocs=2)
        for owners in (OWNERS, ([0, 2, 2, 1], [])):
            owner = [*owners[0], *(3 + o for o in owners[1])]
            for row, (config, _) in ROWS.items():
                total, gradients, terms = ours(tangents(6, 4, seed=9), owner, config, torch.float32)
                names = [Path(out) / f"{row}-{len(owners[0])}-{rank}.pt" for rank in range(2)]
                ranks = [torch.load(name, weights_only=True) for name in names]
                assert sum(r[0] for r in ranks).item() / 2 == pytest.approx(total.item(), rel=1e-5), row
                for name, term in terms.items():
                    assert sum(r[2][name] for r in ranks).item() / 2 == pytest.approx(term.item(), rel=1e-4)
                for place, want in enumerate(gradients):
                    parts = [r[1][place] for r in ranks]
                    got = (torch.cat(parts) if place < len(NODES) else sum(parts)) / 2
                    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6, msg=f"{row} {place}")


@pytest.mark.parametrize("near", [0, 2, 12])
def test_cosines_and_cones_of_one_matrix_keep_their_digits(near):
    """No pair, few pairs and nearly all pairs on one ray, which are taken one by one and as a block in float64."""
    vectors = tangents(12, 12, seed=near)
    for general, specific in (("text", "image"), ("text_box", "text")):
        vectors[specific][:near] = 2.0 * vectors[general][:near] + 1e-3 * vectors[specific][:near]
    if near == 12:
        vectors = {name: 0.02 * v + vectors["text"][0] for name, v in vectors.items()}
    rounded = {name: v.float() for name, v in vectors.items()}
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = {name: v.to(dtype).requires_grad_() for name, v in rounded.items()}
        scale = torch.tensor(3.0, dtype=dtype)
        total, _ = loss(leaves, torch.arange(12), scale, scale / 6, POLAR, scales={"cone": scale}, polar=True)
        found.append((total.detach(), torch.autograd.grad(total, list(leaves.values()))))
    same(*found, 2e-5)


def test_membership_of_a_polar_model_needs_no_matrix_of_its_own():
    vectors, owner = tangents(40, 40, seed=0), list(range(40))
    flops = []
    for config in (POLAR, replace(POLAR, entailment=())):
        with FlopCounterMode(display=False) as counted:
            ours(vectors, owner, config, torch.float32)
        flops.append(counted.get_total_flops())
    assert flops[0] < 1.5 * flops[1]


def test_a_polar_loss_needs_one_hyperboloid():
    with pytest.raises(ValueError, match="polar needs geometry 'lorentz', not 'euclid'"):
        loss({}, torch.arange(0), torch.ones(()), 1.0, clip_objective(), "euclid", polar=True)
