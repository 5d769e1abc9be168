"""Every new family of the recipes' tables trains: its loss falls, its scalars move, its model loads."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hyco.models.clip import ClipConfig, DualEncoder, config_from_dict
from hyco.models.losses.rows import POLAR_APERTURES
from hyco.pipeline.config import ConfigError, override
from hyco.pipeline.evaluation.metrics.geometry import HYCOCLIP_CONES
from hyco.pipeline.evaluation.sections import cones_of, name_aperture
from hyco.pipeline.training.recipes import by_name
from hyco.pipeline.training.step_log import read_log
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return str(home)


@pytest.mark.parametrize("family", ["argent", "uncha", "angle", "siglip", "cones"])
def test_training_lowers_the_loss(family, home):
    named, tiny = by_name(f"demo_{family}"), tiny_recipe()
    scalars = {name: getattr(named.model, name) for name in ("temperature", "temperatures", "sigmoid_bias")}
    recipe = tiny.replace(objective=named.objective, model=replace(tiny.model, **scalars))
    run = Path(home) / "runs" / family
    train(run, Home(home), "latest", recipe)
    lines = read_log(run)
    assert sum(line["loss"] for line in lines[-3:]) < 0.9 * sum(line["loss"] for line in lines[:3])
    model = DualEncoder.from_pretrained(run / "model")
    start = DualEncoder(recipe.model)
    named = {"uncha": "log_scale_box", "angle": "log_scale_angle", "siglip": "sigmoid_bias"}
    learned = (named | {"cones": "log_scale_cone"}).get(family)
    if learned:
        assert model.state_dict()[learned] != start.state_dict()[learned]


def test_models_without_named_scalars_have_no_new_weights():
    names = set(DualEncoder(tiny_recipe().model).state_dict())
    assert not {name for name in names if name.startswith("log_scale_") or name == "sigmoid_bias"}
    old = {"vision": {}, "text": {}}  # a config.json from before the fields
    assert config_from_dict(old, "old").temperatures == ()


def test_scalars_that_no_row_uses_or_has_are_refused():
    demo, uncha = by_name("demo_hycoclip"), by_name("demo_uncha")
    with pytest.raises(ConfigError, match=r"model\.temperatures \['box'\] must be those"):
        demo.replace(model=uncha.model)
    with pytest.raises(ConfigError, match=r"model\.temperatures \[\] must be those.*\['box'\]"):
        uncha.replace(model=demo.model)
    with pytest.raises(ConfigError, match=r"sigmoid_bias None belongs.*set it, for example to 10"):
        by_name("demo_siglip").replace(model=demo.model)
    assert override(demo, ["model.sigmoid_bias=null"]) == demo
    with pytest.raises(ConfigError, match=r"sigmoid_bias 3\.0 belongs.*set it to null"):
        override(demo, ["model.sigmoid_bias=3"])
    with pytest.raises(ConfigError, match="leave it out of one row"):
        rows = tuple(replace(row, temperature="box") for row in uncha.objective.contrast)
        uncha.replace(objective=replace(uncha.objective, contrast=rows))
    with pytest.raises(ValueError, match="'a b' must be an identifier"):
        ClipConfig(temperatures=("a b",))


def test_the_geometry_report_measures_hinges_or_hycoclips_cones():
    """An angle or a contrastive row has no aperture: as a cone of eta 1 it would report what nothing trained."""
    objectives = {name: asdict(by_name(f"demo_{name}").objective) for name in ("angle", "argent", "meru")}
    assert tuple(cones_of(objectives["angle"])) == tuple(cones_of(objectives["argent"])) == HYCOCLIP_CONES
    assert [(cone.general, cone.eta) for cone in cones_of(objectives["meru"])] == [("text", 1.0)]
    assert cones_of({}) == HYCOCLIP_CONES
    polar = asdict(by_name("demo").objective)
    assert {cone.general: cone.k for cone in cones_of(polar)} == POLAR_APERTURES
    found = [
        name_aperture(one) for one in (polar, objectives["meru"], objectives["angle"], {"aperture": 0.2})
    ]
    assert found == [0.005, 0.1, 0.1, 0.2]


def test_the_bias_starts_at_the_share_of_right_pairs():
    """SigLIP's start: the logit of a typical pair is about minus the logarithm of the batch."""
    recipe = by_name("demo_siglip")
    assert (recipe.model.temperature, recipe.model.sigmoid_bias) == (0.1, 10.3)
