"""`hyco assess --assess-source`: when the training's source has moved, and on a model directory that has no run."""

import json
import shutil
from pathlib import Path

import pytest

from hyco.pipeline.evaluation.evaluate import EvaluationSpec, evaluate_model
from hyco.pipeline.evaluation.report.summary import rows
from hyco.pipeline.training.recipes import demo
from hyco.pipeline.training.run_dir import RunConfig
from hyco.storage.sealed import seal, unseal
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.pipeline.evaluation.test_coverage import LIGHT
from tests.pipeline.evaluation.test_evaluate import tiny, world, write_run, write_source
from tests.pipeline.evaluation.test_suite import command

__all__ = ["world"]  # a fixture
QUICK = [
    word
    for name in ("draws=100", "walks=2", "samples=0", "answers=0", "mistakes=0", "strips=0")
    for word in ("--set", name)
]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Captioned images of one's own."""
    write_source(tmp_path / "own", range(6))
    return tmp_path / "own"


@pytest.mark.parametrize("held_out", [True, False])
def test_a_run_whose_source_has_moved(
    world: Path, own: Path, tmp_path: Path, monkeypatch, capsys, held_out: bool
) -> None:
    home = tmp_path / "home"
    shutil.copytree(world / "home", home)
    store = Store(str(home))
    (record,) = (home / "versions").glob("v-*.json")
    name = Versions(store).load().name
    run = home / "runs/moved"
    write_run(run, *tiny())
    config = RunConfig(home=str(home), version=name, recipe=demo())
    (run / "config.json").write_text(config.model_dump_json())
    held = unseal(record.read_bytes())
    held["config"] = {
        "mine": {
            "source": str(tmp_path / "moved away"),
            "grounder": "transformers:absent",
            "weights": "0" * 16,
        },
        "pack": {},
    }
    record.chmod(0o644)
    record.write_bytes(seal(held))
    words = ["--assess-source", str(own)] if held_out else []
    said = command(monkeypatch, capsys, "assess", "--run", str(run), "--home", str(home), *words, *QUICK)
    assert "R@10 (among" in said and "not measured: mining: mining is left out of the report: source" in said
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["assessed"]["images"] == (6 if held_out else 22)
    assert metrics["mining"] is None and "moved away does not exist" in metrics["skipped"]["mining"]


def test_a_model_directory_on_captions_of_ones_own(
    world: Path, own: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    model, tokenizer = tiny()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save(folder)
    words = ["--assess-source", str(own), "--taxonomy", str(world / "taxonomy.json")]
    said = command(monkeypatch, capsys, "assess", "--run", str(folder), *words, *QUICK)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "Image to caption" in said and str(folder / "report.html") in said
    assert "Image to caption R@1 (among 12 captions)" in [row[0] for row in rows(metrics)]
    assert metrics["assessed"]["source"] == str(own) and metrics["retrieval"]["images"] == 6
    assert metrics["zero_shot"]["classes"] == 4 and metrics["geometry"] and metrics["skipped"] == {}
    assert "R@10" in (folder / "report.html").read_text()
    again = ["--assess-source", str(own), "--beside", str(folder)]
    command(monkeypatch, capsys, "assess", "--run", str(folder), *again, *QUICK)
    beside = json.loads((folder / "metrics.json").read_text())["beside"]
    assert [one["source"] for one in beside] == [str(own), str(own)]


def test_a_model_directory_needs_something_to_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a suite with its data, or an assess_source"):
        evaluate_model(tmp_path, EvaluationSpec(config=LIGHT))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_model(tmp_path, EvaluationSpec(assess_source=str(tmp_path / "nowhere")))


def test_images_that_all_have_one_caption(tmp_path: Path) -> None:
    write_source(tmp_path / "own", range(3), lambda meta: meta | {"captions": ["a thing"], "objects": []})
    model, tokenizer = tiny()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save(folder)
    config = LIGHT.replace(answers=2)
    found = evaluate_model(folder, EvaluationSpec(assess_source=str(tmp_path / "own"), config=config))
    assert found["skipped"]["retrieval"] == "all held-out images share one caption"
    assert "and the nearest captions." in (folder / "report.html").read_text()
