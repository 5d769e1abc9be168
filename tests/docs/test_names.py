"""The files and names that docs/extending.md and docs/decisions.md speak of exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = ("extending.md", "decisions.md")
ABSENT = {"flows/evaluate.py", "pipeline/datasets/sets/shapes.toml"}  # a name avoided, and an example


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = set(re.findall(r"\b((?:flows|pipeline|models|storage|demo|tests|docs)/[\w/]*(?:\.\w+)?)", text))
    missing = [path for path in named - ABSENT if not (ROOT / path).exists()]
    assert len(named) > 10 and not missing


def test_the_plug_in_points_exist() -> None:
    for module, names in {
        "hyco.pipeline.mining.grounder": ("BACKENDS", "Backend"),
        "hyco.models.grounding.detector": ("best_boxes", "digest_of", "check_asked", "Reader", "Detection"),
        "hyco.pipeline.training.recipes": ("_siblings",),
        "hyco.models.losses.objective": ("ContrastRow", "EntailmentRow", "ObjectiveConfig", "loss"),
        "hyco.pipeline.datasets.adapters": ("ADAPTERS",),
        "hyco.pipeline.datasets.dataset_card": ("Card",),
        "hyco.pipeline.packing.dataset_gate": ("dataset_check", "Subject", "Check"),
        "hyco.models.hyperbolic.nn": ("HyperbolicModule",),
    }.items():
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == []
