"""A training that this machine would need months for says so before it starts."""

import pytest
import torch

from hyco.pipeline.training import cost
from hyco.pipeline.training.recipes import RECIPES, by_name
from tests.factories.training import tiny_recipe


def test_a_short_training_is_not_measured() -> None:
    assert cost.estimate(by_name("demo")) is None
    assert cost.require_feasible(by_name("photos")) is None


@pytest.mark.parametrize("name", ["demo", "demo_clip", "demo_phyclip", "demo_poincare_resnet"])
def test_every_kind_of_recipe_can_be_measured(name: str) -> None:
    found = cost.estimate(RECIPES[name]().replace(steps=cost.WORTH_MEASURING, batch_size=128))
    assert found is not None and found.rate > 0
    assert found.days == pytest.approx(found.samples / found.rate / 86400)


def test_months_on_a_cpu_are_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "resolve_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(cost, "_samples_per_second", lambda recipe, device: 4.0)
    recipe = tiny_recipe().replace(name="hycoclip_vit_s", steps=500_000, batch_size=768)
    with pytest.raises(
        ValueError, match=r"384,000,000 samples at about 4 samples/s on this CPU: 1,111 days.*--force"
    ):
        cost.require_feasible(recipe)
    forced = cost.require_feasible(recipe, force=True)
    assert forced is not None and round(forced.days) == 1111
    # The remedy: fewer steps.
    assert cost.require_feasible(recipe.replace(steps=1000)) is None


def test_what_is_measured_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def step(model: object, recipe: object, device: torch.device, batch: int) -> float:
        told.append(f"a step of {batch}")
        return 0.1 * batch

    monkeypatch.setattr(cost, "resolve_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(cost, "_step", step)
    recipe = tiny_recipe().replace(name="hycoclip_vit_s", steps=500_000, batch_size=768)
    with pytest.raises(ValueError, match="at about 10 samples/s"):
        cost.require_feasible(recipe, tell=told.append)
    said = (
        "recipe hycoclip_vit_s trains on 384,000,000 samples: measuring the speed of a few steps on this CPU"
    )
    assert told == [said, "a step of 1", "a step of 4", "a step of 4"]


def test_a_slow_step_is_the_last_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def step(model: object, recipe: object, device: torch.device, batch: int) -> float:
        taken.append(batch)
        return 5.0

    monkeypatch.setattr(cost, "resolve_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(cost, "_step", step)
    found = cost.estimate(tiny_recipe().replace(steps=500_000, batch_size=768))
    assert found is not None and found.rate == 0.2 and taken == [1]


def test_a_gpu_is_told_the_cost_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(cost, "_samples_per_second", lambda recipe, device: 100.0)
    found = cost.require_feasible(tiny_recipe().replace(steps=500_000, batch_size=768), processes=8)
    assert found is not None and str(found).endswith("on this GPU: 6 days")
