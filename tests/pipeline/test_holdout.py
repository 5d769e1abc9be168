"""One journey for every command: there is always something held out to assess on, and the same words pack the same."""

import sys

import pytest
import yaml

from flows.__main__ import main as hyco
from flows.deploy_config import first
from flows.prefect_yaml import demo_config
from pipeline.config import digest
from pipeline.journey import compose
from pipeline.pack import PackConfig

RECIPES = ("demo", "demo_meru", "photos", "hycoclip_vit_s", "meru_vit_s", "clip_vit_s", "phyclip_vit_s")
DEMO = PackConfig(image_size=96, threshold=0.3, min_area_px=None, quality=92)  # what `make demo` packs with


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.ground.grounder_digest", lambda spec: "g1")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jsonl").write_text("{}\n")
    return str(tmp_path / "source")


@pytest.mark.parametrize("recipe", RECIPES)
def test_something_is_held_out_unless_other_images_are_named(source, recipe):
    assert compose(source, "transformers:none", recipe).pack.holdout == 0.1
    named = compose(source, "transformers:none", recipe, assess_source="held").pack
    assert named.holdout == (0.1 if recipe == "photos" else 0)


def test_the_demo_is_packed_as_ever_and_the_first_deployment_like_any_other(source):
    named = compose(source, "transformers:none", "demo", assess_source="held").pack
    assert digest(named) == digest(DEMO) == digest(demo_config().retrain.journey.pack)
    assert digest(first("home").retrain.journey.pack) == digest(DEMO.replace(holdout=0.1))


@pytest.mark.parametrize("words", [[], ["--assess-source", "held"]])
def test_hyco_pack_packs_what_a_journey_packs(source, tmp_path, monkeypatch, words):
    class PackedError(Exception):
        pass

    def pack(mine, config, home, engine):
        raise PackedError(digest(config))

    monkeypatch.setattr("pipeline.pack.pack", pack)
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
    assert deployed["retrain"]["config"]["journey"]["pack"]["holdout"] == holdout
    assert deployed["pack"]["config"]["holdout"] == holdout
