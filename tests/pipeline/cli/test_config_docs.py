"""Every field of every configuration has a description, wherever it is shown."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

import hyco.flows.__main__
from hyco.flows.deployment.prefect_yaml import demo_config
from hyco.pipeline.cli.config_docs import SECTIONS, config, describe, to_markdown
from hyco.pipeline.config import Config
from hyco.pipeline.config_fields import paths

ROOT = Path(__file__).parents[3]


def every_config() -> list[type[Config]]:
    """All configurations of the two packages, including those that no command takes."""
    for package in ("pipeline", "flows"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if "(Config):" in file.read_text():
                importlib.import_module(".".join(("hyco", *file.relative_to(ROOT).with_suffix("").parts)))

    def below(kind: type[Config]) -> Iterator[type[Config]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return [kind for kind in below(Config) if kind.__module__.startswith(("hyco.pipeline.", "hyco.flows."))]


def undescribed(schema: dict[str, Any]) -> Iterator[str]:
    for name, body in {"": schema, **schema.get("$defs", {})}.items():
        for kind in ("properties", "patternProperties"):
            for field, text in body.get(kind, {}).items():
                if not text.get("description"):
                    yield f"{name}.{field}"


def test_every_field_has_a_description_in_its_schema() -> None:
    found = every_config()
    assert len(found) > 20
    missing = {kind.__name__: list(undescribed(kind.model_json_schema())) for kind in found}
    assert {name: fields for name, fields in missing.items() if fields} == {}


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == to_markdown(list(SECTIONS)), (
        "run: hyco config --markdown > docs/configuration.md"
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_the_names_that_are_shown_can_be_set(section: str) -> None:
    module, _, name = SECTIONS[section][0].partition(":")
    known = {".".join(path) for path in paths(getattr(importlib.import_module(module), name))}
    shown = {field.name for field in describe(section) if "[]" not in field.name}
    assert shown <= known
    assert section in str(config.__doc__)


def test_a_section_on_the_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hyco", "config", "recipe"])
    with pytest.raises(SystemExit) as left:
        hyco.flows.__main__.main()
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "optimiser.warmup_steps  int >= 0, default 4000\n    Steps of the linear warm-up" in said
    assert 'precision  "float32" or "bfloat16", default "bfloat16"' in said
    assert "model.vision.widths  [int, int, int], default [8, 16, 32]" in said
    assert "objective.contrast[].weight  float, required" in said
    with pytest.raises(ValueError, match="unknown section 'recipes'; did you mean 'recipe'"):
        config("recipes")


@pytest.mark.parametrize("flow", ["mine", "train", "journey", "retrain"])
def test_derived_fields_are_no_part_of_a_form_and_still_load(flow: str) -> None:
    schema = parameter_schema(getattr(importlib.import_module(f"flows.{flow}"), flow)).model_dump()
    shown = {name: set(body.get("properties", ())) for name, body in schema["definitions"].items()}
    for owner, field in (("MineConfig", "weights"), ("NounConfig", "rules"), ("StartConfig", "digest")):
        assert field not in shown.get(owner, ())
    journey = demo_config().retrain.journey
    stored = {
        "mine": {"config": journey.mine},
        "train": {"recipe": journey.recipe},
        "journey": {"config": journey},
        "retrain": {"config": demo_config().retrain},
    }[flow]
    parameters = {name: value.model_dump(mode="json") for name, value in stored.items()}
    assert "weights" in parameters.get("config", {}) or flow != "mine"
    assert validate({**parameters, "home": "var"}, schema) == []
