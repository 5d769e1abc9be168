"""Shapes and types that annotations state are checked in every test run (pyproject's --jaxtyping-packages)."""

import importlib
from pathlib import Path

import jaxtyping
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def annotated() -> list[str]:
    """Modules that annotate with jaxtyping."""
    files = (
        path
        for top in ("models", "pipeline", "storage", "flows", "demo")
        for path in (ROOT / top).rglob("*.py")
    )
    return sorted(
        ".".join(("hyco", *path.relative_to(ROOT).with_suffix("").parts))
        for path in files
        if "from jaxtyping import" in path.read_text()
    )


def test_every_annotated_module_is_loaded_through_the_check():
    """A module imported before a hook is installed is never checked: 25 of 32 once were not."""
    names = annotated()
    assert {"hyco.models.clip", "hyco.pipeline.evaluation.report.charts", "hyco.demo.grounder_loss"} <= set(
        names
    )
    loaders = {name: type(importlib.import_module(name).__spec__.loader).__name__ for name in names}  # pyright: ignore[reportOptionalMemberAccess]
    missing = [name for name, loader in loaders.items() if loader != "_JaxtypingLoader"]
    assert not missing, f"add to --jaxtyping-packages in pyproject.toml: {missing}"


def test_a_wrong_shape_is_refused_and_an_int_is_a_float():
    from hyco.pipeline.evaluation.report import charts, horopca

    with pytest.raises(jaxtyping.TypeCheckError, match="busemann"):
        horopca.busemann(torch.ones(3, 2), torch.ones(3))
    assert charts.ticks(0, 1) == charts.ticks(0.0, 1.0)
