"""Recipes: the paper's numbers, one-line errors, and configurations that survive JSON."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch

from hyco.models.clip import DualEncoder
from hyco.models.encoders.vit import VisionConfig, VisionTransformer
from hyco.pipeline.config import ConfigError, digest, essence, override
from hyco.pipeline.end_to_end import run_dir
from hyco.pipeline.training.recipes import (
    RECIPES,
    OptimiserConfig,
    Recipe,
    by_name,
    demo,
    hycoclip_vit_b,
    hycoclip_vit_s,
)
from hyco.pipeline.training.run_protocol import learning_rate
from hyco.pipeline.training.train import make_optimiser
from hyco.storage.home import Home


def test_the_papers_recipe_has_the_papers_numbers():
    recipe = hycoclip_vit_s()
    assert (recipe.steps, recipe.batch_size, recipe.data.parts, recipe.data.flip) == (500_000, 768, 1, 0.0)
    assert recipe.data.crop_scale == (0.5, 1.0)
    optimiser = recipe.optimiser
    assert (optimiser.lr, optimiser.beta1, optimiser.beta2) == (5e-4, 0.9, 0.98)
    assert (optimiser.weight_decay, optimiser.warmup_steps) == (0.2, 4000)
    vision, text = recipe.model.vision, recipe.model.text
    assert (vision.width, vision.depth, vision.heads, vision.patch_size, vision.image_size) == (
        384,
        12,
        12,
        16,
        224,
    )
    assert (text.width, text.depth, text.heads, text.vocab_size, text.context_length) == (
        512,
        12,
        8,
        49408,
        77,
    )
    assert (recipe.model.dim, recipe.model.temperature, recipe.model.max_scale) == (512, 0.07, 100.0)
    assert (recipe.model.curvature, recipe.model.curvature_min, recipe.model.curvature_max) == (
        1.0,
        0.1,
        10.0,
    )
    assert [row.weight for row in recipe.objective.contrast] == [0.25] * 4
    assert {row.weight for row in recipe.objective.entailment} == {0.1}
    assert recipe.objective.aperture == 0.1
    large = hycoclip_vit_b()
    assert (
        large.model.vision.width == 768 and large.replace(name="hycoclip_vit_s", model=recipe.model) == recipe
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_survives_json(name):
    recipe = by_name(name)
    assert recipe.name == name
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe and digest(again) == digest(recipe)
    with torch.device("meta"):
        DualEncoder(recipe.model)


def test_families_differ_from_hycoclip_in_rows_and_geometry_only():
    base, clip, boxes = (by_name(f"demo_{member}") for member in ("hycoclip", "clip", "clip_boxes"))
    assert clip.model.geometry == boxes.model.geometry == "euclid" and not clip.objective.uses_boxes
    assert boxes.objective.contrast == base.objective.contrast and not boxes.objective.entailment
    meru = by_name("meru_vit_s")
    assert meru.replace(name="hycoclip_vit_s", objective=hycoclip_vit_s().objective) == hycoclip_vit_s()
    assert [(row.eta, row.weight) for row in meru.objective.entailment] == [(1.0, 0.2)]


def test_the_demo_is_polar_cones_on_two_thirds_of_hycoclips_samples():
    ours, cones, hyco = (by_name(name) for name in ("demo", "demo_polar_cones", "demo_hycoclip"))
    assert ours.steps * ours.batch_size * 3 == hyco.steps * hyco.batch_size * 2
    assert (ours.model, ours.objective, ours.data) == (cones.model, cones.objective, cones.data)
    assert ours.model.polar and not hyco.model.polar and ours.model.vision == hyco.model.vision
    assert ours.entailment_start / ours.steps == cones.entailment_start / cones.steps
    assert ours.entailment_ramp / ours.steps == cones.entailment_ramp / cones.steps


def test_a_run_begun_while_the_demo_was_hycoclip_is_found_again_and_no_new_one_takes_its_place(tmp_path):
    """CHANGELOG: --recipe demo_hycoclip --set name=demo."""
    home, version = Home(str(tmp_path)), "v-c1904b172fc7"
    before = override(by_name("demo_hycoclip"), ["name=demo"])
    names = [run_dir(home, recipe, version).name for recipe in (before, demo())]
    assert names[0] == "demo-c1904b17-55c96a45" and names[1] == f"demo-c1904b17-{digest(demo())[:8]}"
    assert names[0] != names[1]


def test_phyclip_is_hycoclip_in_a_product_of_eight_dimensional_factors():
    paper, base = by_name("phyclip_vit_s"), hycoclip_vit_s()
    assert (paper.model.geometry, paper.model.factors, paper.model.dim) == ("product", 64, 512)
    space = {"geometry": "lorentz", "factors": 1}
    same = paper.replace(name=base.name, model=replace(paper.model, **space))
    assert same == base
    assert by_name("demo_phyclip").model.factors == by_name("photos_phyclip").model.factors == 16


def test_the_published_families_have_their_own_budget_alphas_and_sizes():
    own, shared = by_name("meru_own_vit_b"), by_name("meru_vit_b")
    assert own.steps * own.batch_size == 120_000 * 2048  # Desai et al. 2023, section 4
    assert own.replace(name=shared.name, steps=shared.steps, batch_size=shared.batch_size) == shared
    assert (
        by_name("phyclip_own_vit_l").model.factor_alphas and not by_name("phyclip_vit_l").model.factor_alphas
    )
    large = by_name("hycoclip_vit_l").model.vision
    assert isinstance(large, VisionConfig) and (large.width, large.depth, large.heads) == (1024, 24, 16)
    with torch.device("meta"):
        tower = VisionTransformer(large)
    assert (
        round(sum(p.numel() for p in tower.parameters()) / 1e6) == 303
    )  # Dosovitskiy et al. 2021, table 1: 307 M


def test_later_options_are_no_part_of_the_digest_while_they_are_not_set():
    recipe = by_name("demo_hycoclip")
    names = essence(recipe)
    assert "init" not in names["model"]["vision"] and "letterbox" not in names["data"]
    assert "factor_alphas" not in names["model"]
    changed = override(recipe, ["model.vision.init=truncated", "data.letterbox=true"])
    assert digest(changed) != digest(recipe)


def test_what_cannot_work_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"unknown recipe 'dem'; did you mean 'demo'\?"):
        by_name("dem")
    with pytest.raises(ConfigError, match=r"'optimiser\.lrr' of Recipe; did you mean 'optimiser\.lr'"):
        override(demo(), ["optimiser.lrr=1"])
    with pytest.raises(
        ConfigError, match=r"'warmup_steps' of Recipe; did you mean 'optimiser\.warmup_steps'\?"
    ):
        override(demo(), ["warmup_steps=5"])
    with pytest.raises(
        ConfigError, match=r"unknown option 'model\.vision\.widht'.*mean 'model\.vision\.width'"
    ):
        override(demo(), ["model.vision.widht=64"])
    with pytest.raises(ConfigError, match="not a multiple of patch_size"):
        override(demo(), ["model.vision.image_size=50"])
    with pytest.raises(ConfigError, match="entailment rows need geometry 'lorentz'"):
        override(by_name("demo_hycoclip"), ["model.geometry=euclid"])
    with pytest.raises(ConfigError, match="warmup_steps 40 exceeds steps 10"):
        override(demo(), ["steps=10", "optimiser.warmup_steps=40"])


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.04, 0.19, 0.399])
@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().entailment_start])
def test_a_polar_recipe_that_is_shortened_by_steps_says_what_else_to_set(name, fraction):
    """Otherwise its cones would hardly be trained, or not at all, and the metrics would say so minutes later."""
    whole = by_name(name)
    steps = max(1, int(fraction * whole.steps))
    with pytest.raises(ConfigError, match=f"exceed steps {steps}, so that the cones would hardly") as told:
        override(whole, [f"steps={steps}"])
    remedy = re.findall(r"--set (\S+)", str(told.value))
    shorter = override(whole, [f"steps={steps}", *remedy])
    assert shorter.steps == steps and shorter.entailment_share(steps - 1) == 1.0


def test_the_demo_in_300_steps():
    """All that does not fit is named at once, in the demo's own proportions."""
    with pytest.raises(ConfigError, match=r": add --set entailment_start=45 --set entailment_ramp=75$"):
        override(demo(), ["steps=300"])
    both = "--set optimiser.warmup_steps=3 --set entailment_start=9 --set entailment_ramp=15"
    with pytest.raises(ConfigError, match=f"warmup_steps 80 exceeds steps 60; entailment.*: add {both}$"):
        override(demo(), ["steps=60"])


def test_a_ramp_longer_than_the_training_stays_readable():
    """Runs from before `entailment_start` have it: `hyco train --recipe demo_hycoclip --set steps=480`."""
    assert override(by_name("demo_hycoclip"), ["steps=480"]).entailment_share(480) == 0.8
    assert override(demo(), ["steps=640"]).entailment_share(640) == 1.0  # the shortest that fits as it is


def test_entailment_ramp_rises_to_one():
    ramp = by_name("demo_hycoclip").replace(entailment_ramp=10)
    assert [ramp.entailment_share(step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert hycoclip_vit_s().entailment_share(0) == 1.0  # the paper has none
    late = ramp.replace(entailment_start=20)
    assert [late.entailment_share(step) for step in (0, 20, 25, 30)] == [0.0, 0.0, 0.5, 1.0]
    at_once = late.replace(entailment_ramp=0)
    assert [at_once.entailment_share(step) for step in (0, 19, 20)] == [0.0, 0.0, 1.0]
    assert digest(ramp) == digest(ramp.replace(entailment_start=0)) != digest(late)


def test_digest_ignores_how_often_things_are_written():
    recipe = demo()
    assert digest(recipe.replace(log_every=7, checkpoint_minutes=3.0)) == digest(recipe)
    assert digest(recipe.replace(data=recipe.data.replace(threads=5))) == digest(recipe)
    assert digest(recipe.replace(seed=1)) != digest(recipe)


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 20, 2.0, 4) for step in range(21)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[12] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi / 2))) and rates[20] == pytest.approx(
        0
    )
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_weight_decay_spares_norms_biases_and_scalars():
    """The published code decays them: `0.0 or wd` is wd."""
    with torch.device("meta"):
        model = DualEncoder(by_name("demo_hycoclip").model)
    optimiser = make_optimiser(model, OptimiserConfig())
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    got = {name: decay[id(p)] for name, p in model.named_parameters()}
    spared = {name for name, value in got.items() if value == 0.0}
    assert spared == {
        n for n in got if "norm" in n or n.endswith("bias") or "alpha" in n or n.startswith("log_")
    }
    assert {got[n] for n in got if n not in spared} == {0.2}
    assert "textual.tokens.weight" not in spared and "visual.class_token" not in spared
