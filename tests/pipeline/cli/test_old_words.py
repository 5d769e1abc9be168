"""The words of earlier releases work exactly like the present ones, and --help shows the present ones alone."""

from typing import Any

import pytest
import typer.main

import hyco.flows.__main__
from hyco.pipeline.cli.app import OLD_VERBS, app


@pytest.fixture(scope="module")
def hyco() -> Any:
    return typer.main.get_command(app)


@pytest.fixture
def context(hyco: Any) -> Any:
    return hyco.make_context("hyco", ["status"])


@pytest.mark.parametrize("old", OLD_VERBS)
def test_an_old_verb_is_the_present_one(hyco: Any, context: Any, old: str) -> None:
    assert hyco.get_command(context, old) is hyco.get_command(context, OLD_VERBS[old])
    assert OLD_VERBS[old] in hyco.list_commands(context)
    assert old not in hyco.list_commands(context)


@pytest.mark.parametrize("flag", ["--force", "--anyway"])
def test_promote_is_forced_by_either_word(hyco: Any, context: Any, flag: str, monkeypatch, tmp_path) -> None:
    forced = []

    def challenge(*given: Any, anyway: bool, **rest: Any) -> None:
        forced.append(anyway)
        raise RuntimeError("asked")

    monkeypatch.setattr("hyco.pipeline.registry.promotion.challenge", challenge)
    monkeypatch.setattr("hyco.pipeline.evaluation.evaluate.evaluate", lambda *given, **rest: {})
    monkeypatch.setattr("hyco.pipeline.training.run_dir.RunConfig.model_validate_json", lambda text: _Known())
    run = tmp_path / "runs" / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    promote = hyco.get_command(context, "promote")
    with pytest.raises(RuntimeError, match="asked"):
        promote.main([str(run), "--home", str(tmp_path), flag], standalone_mode=False)
    assert forced == [True]
    assert flag == "--force" or flag not in promote.get_help(promote.make_context("promote", ["run"]))


class _Known:
    version = "v-1"
