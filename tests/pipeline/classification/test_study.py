"""A study: every arm trained and measured once, pairs of heads together, tables that say what the metrics say."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.classification.evaluate import EvaluateConfig
from hyco.pipeline.experiments import classification_study as studies
from hyco.pipeline.experiments.classification_study import StudyConfig, main, marks, run_study
from hyco.pipeline.experiments.grid import write_section
from hyco.storage.home import Home


@pytest.fixture
def small(tiny: FitConfig, squares: Path) -> StudyConfig:
    measure = EvaluateConfig(ood=(f"strange=folder:{squares}",), attacked=6, draws=20)
    return StudyConfig(
        name="small", base=tiny.replace(steps=2), models=("resnet20",), imbalances=(1.0, 0.5), measure=measure
    )


def cells(text: str, *starts: str) -> list[list[str]]:
    """Rows of the tables whose first cells are these."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if row[: len(starts)] == list(starts)]


def test_a_study_is_trained_once_and_tabled(
    small: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doc = tmp_path / "page.md"
    doc.write_text(f"before\n{marks('small')[0]}\nold\n{marks('small')[1]}\nafter\n")
    results = run_study(small, Home(tmp_path), doc=doc)
    heads = [name.split("-")[2] for name in results]
    assert heads == ["softmax", "separation"] * 2, "the heads of one net and set come out one after another"

    text = doc.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert (tmp_path / "small.md").read_text() in text
    (row,) = cells(text, "resnet20", "balanced")
    shown = [float(cell.split()[0]) for cell in row[2:4]]
    runs = [tmp_path / "fits" / f"small-resnet20-{head}-1-0" for head in ("softmax", "separation")]
    right = []
    for run, percent in zip(runs, shown, strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        held = load_file(run / "logits.safetensors")
        right.append(held["logits"].argmax(1) == held["labels"])
        assert (
            percent
            == round(100 * metrics["metrics"]["classification.accuracy"]["value"], 1)
            == round(100 * right[-1].mean(), 1)
        )
    gap = 100 * (right[1].mean() - right[0].mean())
    assert float(row[4].split()[0].replace("\N{MINUS SIGN}", "-")) == pytest.approx(np.round(gap, 1))
    assert cells(text, "resnet20", "softmax", "IF 0.5")[0][3].endswith("(3 classes)")
    assert len(cells(text, "resnet20", "separation", "balanced", "strange")) == 2

    monkeypatch.setattr(studies, "evaluate", None)  # nothing is left to measure
    before = text
    run_study(small, Home(tmp_path), doc=doc)
    assert doc.read_text() == before


def test_several_seeds_show_their_spread(small: StudyConfig, tmp_path: Path) -> None:
    run_study(
        small.replace(imbalances=(1.0,), seeds=(0, 1), measure=EvaluateConfig(draws=20)), Home(tmp_path)
    )
    (row,) = cells((tmp_path / "small.md").read_text(), "resnet20", "balanced")
    values = [
        json.loads(path.read_text())["metrics"]["classification.accuracy"]["value"]
        for path in sorted(tmp_path.glob("fits/small-resnet20-softmax-*/metrics.json"))
    ]
    assert row[2] == f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def test_a_page_without_a_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="add the lines '<!-- study cpu: begin -->'"):
        write_section(page, marks("cpu"), "text")
    assert main(["cpu", "--data", "cifar10:/nowhere", "--home", str(tmp_path)]) == 2
    assert "/nowhere" in capsys.readouterr().err


def test_named_studies_are_whole() -> None:
    for name, make in studies.STUDIES.items():
        arms = dict(make("cifar10:x", ()).arms())
        assert len(arms) == len(list(make("cifar10:x", ()).arms())), f"{name} gives two arms one name"
        assert {config.head for config in arms.values()} == {"softmax", "separation"}
        budgets = {(c.steps, c.epochs, c.batch_size, c.lr, c.schedule, c.image_size) for c in arms.values()}
        assert len(budgets) == 1, f"{name} gives its arms different budgets"
