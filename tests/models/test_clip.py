"""The dual encoder: the lift, its constraints, precision, forward for the loss, and round trips to disk."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from hyco.models.clip import RADIUS_GRADIENT, ClipConfig, DualEncoder, load_weights
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.hyperbolic import lorentz
from hyco.models.losses.objective import hycoclip_objective, loss
from tests.oracle import hycoclip_loss as oracle

TINY = ClipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
    text=TextConfig(vocab_size=50, context_length=8, width=32, depth=1, heads=2, end_token=49),
    dim=16,
)
TOKENS = torch.tensor([[48, 3, 4, 49], [48, 7, 49, 49], [48, 9, 8, 49]])
BOX_TOKENS = torch.tensor([[48, 4, 49], [48, 8, 49]])


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(TINY)


def images(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 16, 16, 3), generator=g, dtype=torch.uint8)


def test_lift_is_the_exponential_map_of_the_scaled_projection(model):
    pixels = model.normalise(images(3))
    v = model.project_image(pixels) * model.visual_alpha.exp()
    u = v.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.encode_image(pixels), u.sinh() * v / u, rtol=1e-5, atol=1e-6)


def test_projections_have_no_bias_and_embeddings_start_near_radius_one():
    """exp(a) = D^-1/2 undoes the width of the projection: sqrt(c)|v| starts near 1 for any size of model."""
    for width, dim in ((32, 16), (96, 64)):
        torch.manual_seed(0)
        vision, text = replace(TINY.vision, width=width), replace(TINY.text, width=width)
        model = DualEncoder(replace(TINY, vision=vision, text=text, dim=dim))
        assert model.visual_projection.bias is None and model.textual_projection.bias is None
        lifted = model.encode_text(TOKENS).norm(dim=-1).asinh()
        assert 0.7 < lifted.mean() < 1.4


def test_scalars_are_constrained_outside_forward(model):
    with torch.no_grad():
        model.log_scale.fill_(10)
        model.visual_alpha.fill_(1)
        model.log_curvature.fill_(-9)
    model.encode_text(TOKENS)
    assert model.scale > 1000  # forward changes nothing
    model.constrain_()
    assert model.scale.item() == pytest.approx(100) and model.visual_alpha == 0
    assert model.curvature.item() == pytest.approx(0.1)
    with torch.no_grad():
        model.log_curvature.fill_(9)
    model.constrain_()
    assert model.curvature.item() == pytest.approx(10)


def test_initial_scalars_are_the_stated_values():
    model = DualEncoder(replace(TINY, curvature=0.25, temperature=0.1))
    assert model.curvature.item() == pytest.approx(0.25) and model.scale.item() == pytest.approx(10)
    assert model.textual_alpha.item() == pytest.approx(math.log(16**-0.5))


def test_geometry_stays_float32_under_autocast(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nodes, scale, curvature = model(images(3), TOKENS, images(2, 1), BOX_TOKENS)
    assert all(points.dtype == torch.float32 for points in nodes.values())
    assert scale.dtype == curvature.dtype == torch.float32
    exact = model(images(3), TOKENS, images(2, 1), BOX_TOKENS)[0]
    for name in nodes:
        assert (nodes[name] - exact[name]).norm() < 0.05 * exact[name].norm()


def test_forward_gives_every_node_as_the_encoders_do_and_reaches_every_parameter(model):
    nodes, scale, curvature = model(images(3), TOKENS, images(2, 1), BOX_TOKENS)
    torch.testing.assert_close(nodes["image_box"], model.encode_image(model.normalise(images(2, 1))))
    torch.testing.assert_close(nodes["image"], model.encode_image(model.normalise(images(3))))
    torch.testing.assert_close(nodes["text_box"], model.encode_text(BOX_TOKENS))
    total, _ = loss(nodes, torch.tensor([0, 2]), scale, curvature, hycoclip_objective())
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_batch_without_boxes_has_empty_box_nodes(model):
    nodes, _, _ = model(images(3), TOKENS)
    assert nodes["image_box"].shape == nodes["text_box"].shape == (0, 16)
    assert nodes["image"].shape == (3, 16)


def test_pixels_are_normalised_with_the_mean_and_the_standard_deviation(model):
    """The published code divides by what it should subtract; a constant image shows the difference."""
    grey = torch.full((1, 16, 16, 3), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert model.normalise(grey)[0, :, 3, 5].tolist() == pytest.approx(expected)


def test_euclidean_embeddings_are_unit_vectors_without_curvature():
    model = DualEncoder(replace(TINY, geometry="euclid"))
    names = [name for name, _ in model.named_parameters()]
    assert not any("alpha" in name or "curvature" in name for name in names)
    points = model.encode_text(TOKENS)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model.score(points, points).diagonal(), torch.ones(3))
    model.constrain_()


PRODUCT = replace(TINY, geometry="product", factors=4)


def test_a_product_has_a_curvature_and_a_lift_for_each_factor(tmp_path):
    model = DualEncoder(PRODUCT)
    assert model.curvature.tolist() == [1.0] * 4
    assert model.visual_alpha.item() == pytest.approx(math.log((16 / 4) ** -0.5))
    with torch.no_grad():
        model.log_curvature.copy_(torch.tensor([-9.0, -1.0, 0.5, 9.0]))
    model.constrain_()
    c = model.curvature.tolist()
    assert c == pytest.approx([0.1, math.exp(-1), math.exp(0.5), 10.0])
    projected = model.project_text(TOKENS)
    points = model.lift_text(projected)
    each = []
    for i in range(4):
        own = DualEncoder(replace(TINY, dim=4))
        with torch.no_grad():
            own.textual_alpha.copy_(model.textual_alpha)
            own.log_curvature.copy_(model.log_curvature[i])
        piece = points[:, 4 * i : 4 * i + 4]
        torch.testing.assert_close(piece, own.lift_text(projected[:, 4 * i : 4 * i + 4]))
        each.append(own.score(piece, piece))
    torch.testing.assert_close(model.score(points, points), sum(each) / 4, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = DualEncoder.from_pretrained(tmp_path)
    assert again.config == PRODUCT and torch.equal(again.encode_text(TOKENS), points)


def test_alphas_of_the_factors_lift_each_factor_and_load_as_published(tmp_path):
    """A factor with its own alpha equals a plain hyperboloid with it; one alpha for all is the old model."""
    model, shared = DualEncoder(replace(PRODUCT, factor_alphas=True)), DualEncoder(PRODUCT)
    assert model.visual_alpha.shape == model.textual_alpha.shape == (4,)
    assert model.visual_alpha.unique().item() == shared.visual_alpha.item()
    with torch.no_grad():
        model.textual_alpha.copy_(torch.tensor([-2.0, -1.0, -0.5, 0.5]))
    model.constrain_()
    assert model.textual_alpha.tolist() == [-2.0, -1.0, -0.5, 0.0]
    projected = model.project_text(TOKENS)
    points, c = model.lift_text(projected).double(), torch.ones((), dtype=torch.float64)
    for factor, alpha in enumerate(model.textual_alpha.double()):
        piece = projected.double()[:, 4 * factor : 4 * factor + 4] * alpha.exp()
        lifted = torch.stack([oracle.lift(v, c) for v in piece])
        torch.testing.assert_close(points[:, 4 * factor : 4 * factor + 4], lifted, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(DualEncoder.from_pretrained(tmp_path).textual_alpha, model.textual_alpha)
    with pytest.raises(ValueError, match="factor_alphas belong to geometry 'product', not 'lorentz'"):
        replace(TINY, factor_alphas=True)


def test_a_product_reaches_every_parameter():
    torch.manual_seed(0)
    model = DualEncoder(PRODUCT)
    nodes, scale, curvature = model(images(3), TOKENS, images(2, 1), BOX_TOKENS)
    total, _ = loss(nodes, torch.tensor([0, 2]), scale, curvature, hycoclip_objective(), "product")
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert model.log_curvature.grad is not None and bool(model.log_curvature.grad.all())


def test_save_and_load_give_the_same_embeddings(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = DualEncoder.from_pretrained(tmp_path)
    assert again.config == TINY
    assert torch.equal(again.encode_text(TOKENS), model.encode_text(TOKENS))
    pixels = model.normalise(images(2))
    assert torch.equal(again.encode_image(again.normalise(images(2))), model.encode_image(pixels))


def test_loading_says_what_differs(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        DualEncoder.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["dim"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"textual_projection\.weight is \(16, 32\) there and \(24, 32\) here"
    ):
        DualEncoder.from_pretrained(tmp_path)
    config["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="colour"):
        DualEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weight is nothing there"):
        load_weights(nn.Linear(2, 2), {"bias": torch.zeros(2)}, "here")


def test_torn_files_are_named_with_what_to_do(model, tmp_path):
    model.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"/model\.safetensors is not a safetensors file .*: .* again"):
        DualEncoder.from_pretrained(tmp_path)
    for said, fault in (
        ("{", r"/config\.json is not JSON .*: .* again"),
        ("[]", r"/config\.json holds a list, not an object"),
        ('{"vision": 5, "text": {}}', r"/config\.json is not a dual encoder's"),
        ('{"vision": {}, "text": {}, "pixel_mean": 1}', r"/config\.json is not a dual encoder's"),
    ):
        config.write_text(said)
        with pytest.raises(ValueError, match=fault):
            DualEncoder.from_pretrained(tmp_path)


def test_impossible_configs_are_refused():
    odd = ClipConfig()
    object.__setattr__(odd, "geometry", "sphere")  # past the type check that tests alone have
    with pytest.raises(ValueError, match="geometry 'sphere' is unknown: use lorentz, product or euclid"):
        odd.__post_init__()
    with pytest.raises(ValueError, match="factors 5 must divide dim 16"):
        replace(PRODUCT, factors=5)
    with pytest.raises(ValueError, match="factors 4 need geometry 'product', not 'lorentz'"):
        replace(TINY, factors=4)
    with pytest.raises(ValueError, match="curvature 20"):
        ClipConfig(curvature=20.0)
    with pytest.raises(ValueError, match=r"temperature 0\.001"):
        ClipConfig(temperature=0.001)


POLAR = replace(TINY, polar=True, image_radii=(0.1, 2.0), text_radii=(0.01, 0.1))


def test_a_polar_model_has_radii_between_its_bounds_and_compares_directions():
    torch.manual_seed(0)
    model = DualEncoder(POLAR)
    with torch.no_grad():
        texts = model.encode_text(TOKENS)
        assert texts.norm(dim=-1).tolist() == pytest.approx([(0.01 * 0.1) ** 0.5] * 3, rel=0.01), "the middle"
        model.log_curvature.fill_(math.log(4))
        for height, bounds in ((30.0, (0.1, 2.0)), (-30.0, (0.01, 0.1))):
            projected = torch.cat([torch.randn(5, 16), torch.full((5, 1), height)], 1)
            for lift, found in zip((model.lift_text, model.lift_image), bounds[::-1], strict=True):
                far = 2.0 if lift == model.lift_image else 0.1
                near = 0.1 if lift == model.lift_image else 0.01
                radius = 2 * lift(projected).norm(dim=-1)  # sqrt(c) |x|
                assert radius.tolist() == pytest.approx([far if height > 0 else near] * 5, rel=1e-4), found
        a, b = texts, model.encode_image(model.normalise(images(3)))
        cosine = torch.cosine_similarity(a[:, None], b[None], dim=-1)
        torch.testing.assert_close(model.score(a, b), cosine)
        torch.testing.assert_close(model.nearness(a, b), -lorentz.pairwise_distance(a, b, 4.0))


def test_the_radii_of_a_polar_model_hardly_change_its_towers():
    """The direction's gradient reaches the towers in full, that of the radius by a small factor."""
    model = DualEncoder(POLAR)
    with torch.no_grad():
        model.textual_projection.weight[-1].normal_(generator=torch.Generator().manual_seed(0))
    full = torch.autograd.grad(model.encode_text(TOKENS)[:, 0].sum(), model.textual.norm.weight)[0]
    by_radius = torch.autograd.grad(model.project_text(TOKENS)[:, -1].sum(), model.textual.norm.weight)[0]
    features = model.textual(TOKENS)
    plain = torch.autograd.grad(
        (features @ model.textual_projection.weight[-1]).sum(), model.textual.norm.weight
    )[0]
    torch.testing.assert_close(by_radius, RADIUS_GRADIENT * plain)
    assert full.abs().max() > 0


def test_a_polar_model_is_stored_and_loaded(tmp_path):
    DualEncoder(POLAR).save_pretrained(tmp_path)
    assert DualEncoder.from_pretrained(tmp_path).config == POLAR


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"geometry": "euclid"}, "polar needs geometry 'lorentz', not 'euclid'"),
        ({"text_radii": (0.2, 0.1)}, r"text_radii 0\.2, 0\.1 must be 0 < least <= greatest"),
    ],
)
def test_a_polar_model_needs_a_hyperboloid_and_radii_in_order(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(POLAR, **changes)
