"""One journey for every command: there is always something held out to assess on, and the same words pack the same."""

import sys
from dataclasses import replace

import pytest
import yaml

from hyco.flows.__main__ import main as hyco
from hyco.flows.deployment.config import first
from hyco.flows.deployment.prefect_yaml import demo_config
from hyco.pipeline.config import ConfigError, digest
from hyco.pipeline.embedder import save_model
from hyco.pipeline.end_to_end import checked, compose, packing_for
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.training.recipes import RECIPES, StartConfig
from tests.pipeline.evaluation.test_evaluate import tiny

NAMES = ("demo", "demo_meru", "photos", "hycoclip_vit_s", "meru_vit_s", "clip_vit_s", "phyclip_vit_s")
DEMO = PackConfig(image_size=96, threshold=0.3, min_area_px=None, quality=92)  # what `make demo` packs with


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("hyco.pipeline.mining.grounder.grounder_digest", lambda spec: "g1")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jsonl").write_text("{}\n")
    return str(tmp_path / "source")


@pytest.mark.parametrize("recipe", NAMES)
def test_something_is_held_out_unless_other_images_are_named(source, recipe):
    assert compose(source, "transformers:none", recipe).pack.holdout == 0.1
    named = compose(source, "transformers:none", recipe, assess_source="held").pack
    assert named.holdout == (0.1 if recipe == "photos" else 0)


def test_the_demo_is_packed_as_ever_and_the_first_deployment_like_any_other(source):
    named = compose(source, "transformers:none", "demo", assess_source="held").pack
    assert digest(named) == digest(DEMO) == digest(demo_config().retrain.journey.pack)
    assert digest(first("home").retrain.journey.pack) == digest(DEMO.replace(holdout=0.1))


def test_packing_goes_by_the_whole_name_of_a_recipe_or_by_the_size_of_its_model(source, monkeypatch):
    """hycoclip_vit_s_384 got the crops of 224 pixels that belong to hycoclip_vit_s, demo_large the demo's of 96."""
    for name, recipe in list(RECIPES.items()):
        packed = packing_for(name, "held")
        assert packed.image_size >= recipe().model.vision.image_size, name
        for suffix in ("_384", "_large"):
            large = recipe().replace(name=name + suffix, model=sized(recipe().model, 384))
            monkeypatch.setitem(RECIPES, name + suffix, lambda large=large: large)
            assert compose(source, "transformers:none", name + suffix).pack == PackConfig(
                image_size=384, holdout=0.1
            )
            monkeypatch.delitem(RECIPES, name + suffix)
    assert packing_for("demo_phyclip", "held") == DEMO == packing_for("demo_poincare_resnet", "held")
    with pytest.raises(ConfigError, match="unknown recipe 'demo_'"):
        packing_for("demo_", None)


def sized(model, size):
    patch = {} if model.vision.kind != "vit" else {"patch_size": 16}
    return replace(model, vision=replace(model.vision, image_size=size, **patch))


SMALL = (
    "recipe.model.vision.image_size=112",
    "pack.image_size is 96, but the model is trained on images of 112",
)


@pytest.mark.parametrize("verb", ["pack", "journey", "deploy"])
def test_smaller_crops_than_the_model_sees_are_refused_with_a_remedy_that_works(
    source, tmp_path, monkeypatch, capsys, verb
):
    class StartedError(Exception):
        pass

    def started(*args, **options):
        raise StartedError

    monkeypatch.setattr("hyco.pipeline.packing.pack.pack", started)
    monkeypatch.setattr("hyco.flows.__main__.ensure_server", started)
    monkeypatch.setattr("hyco.flows.deployment.prefect_yaml.text", started)
    prefix = "retrain.journey." if verb == "deploy" else ""
    more = {
        "pack": ["--workers", "0"],
        "journey": ["--workers", "0"],
        "deploy": ["--yaml", str(tmp_path / "p")],
    }
    command = ["hyco", verb, "--source", source, "--grounder", "transformers:none", "--recipe", "demo"]
    command += ["--home", str(tmp_path), *more[verb], "--set", prefix + SMALL[0]]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as refused:
        hyco()
    said = capsys.readouterr().err
    assert refused.value.code == 2 and SMALL[1] in said
    remedy = said.split("add ")[1].split()
    assert remedy == ["--set", f"{prefix}pack.image_size=112"]
    monkeypatch.setattr(sys, "argv", [*command, *remedy])
    with pytest.raises(StartedError):
        hyco()


def test_the_size_of_a_checkpoint_to_start_from_counts(source, tmp_path):
    model, tokenizer = tiny()
    save_model(tmp_path / "clip", model, tokenizer)
    journey = compose(source, "transformers:none", "hycoclip_from_clip")
    begun = journey.recipe.replace(start=StartConfig(checkpoint=str(tmp_path / "clip")))
    size = model.config.vision.image_size
    assert size < 224 and checked(journey) is journey
    small = journey.replace(recipe=begun, pack=journey.pack.replace(image_size=size))
    assert checked(small) is small, "the recipe's own 224 pixels are not what will be trained on"
    with pytest.raises(
        ConfigError, match=rf"trained on images of {size} pixels: add --set pack.image_size={size}"
    ):
        checked(small.replace(pack=journey.pack.replace(image_size=size - 1)))
    elsewhere = journey.recipe.replace(start=StartConfig(checkpoint="/on/another/machine"))
    checked(journey.replace(recipe=elsewhere))


@pytest.mark.parametrize("words", [[], ["--assess-source", "held"]])
def test_hyco_pack_packs_what_a_journey_packs(source, tmp_path, monkeypatch, words):
    class PackedError(Exception):
        pass

    def pack(mine, config, home, executor, **options):
        raise PackedError(digest(config))

    monkeypatch.setattr("hyco.pipeline.packing.pack.pack", pack)
    command = ["hyco", "pack", "--source", source, "--grounder", "transformers:none", "--recipe", "demo"]
    monkeypatch.setattr(sys, "argv", [*command, "--home", str(tmp_path), "--workers", "0", *words])
    journey = compose(source, "transformers:none", "demo", assess_source="held" if words else None)
    with pytest.raises(PackedError, match=digest(journey.pack)):
        hyco()


@pytest.mark.parametrize(("words", "holdout"), [([], 0.1), (["--assess-source", "held"], 0.0)])
def test_hyco_deploy_packs_what_a_journey_packs(source, tmp_path, monkeypatch, words, holdout):
    out = tmp_path / "prefect.yaml"
    command = ["hyco", "deploy", "--source", source, "--grounder", "transformers:none", "--recipe", "demo"]
    monkeypatch.setattr(sys, "argv", [*command, "--home", str(tmp_path), "--yaml", str(out), *words])
    with pytest.raises(SystemExit) as left:
        hyco()
    assert left.value.code == 0
    deployed = {one["name"]: one["parameters"] for one in yaml.safe_load(out.read_text())["deployments"]}
    # A value that is the default is left out.
    for pack in (deployed["retrain"]["config"]["journey"]["pack"], deployed["pack"]["config"]):
        assert PackConfig.model_validate(pack).holdout == holdout
