"""What a training of `hyco fit` refuses before it starts, and the names of its runs."""

import json
from pathlib import Path

import pytest

from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.classification.evaluate import EvaluateConfig, check
from hyco.pipeline.classification.train import fit, prepare, run_name
from hyco.pipeline.config import ConfigError, digest

TREE = {
    "nodes": [
        {"id": "color", "parent": None, "names": []},
        {"id": "red", "parent": "color", "names": []},
        {"id": "blue", "parent": "color", "names": []},
        {"id": "green", "parent": "color", "names": []},
    ],
}


@pytest.fixture
def balanced(tiny: FitConfig, tmp_path: Path) -> FitConfig:
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    return tiny.replace(head="balanced", hierarchy=str(tmp_path / "tree.json"))


@pytest.mark.parametrize("hierarchy", [None, "none.json", "other.json"])
def test_a_refused_hierarchy_leaves_no_run(
    balanced: FitConfig, tmp_path: Path, hierarchy: str | None
) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"nodes": TREE["nodes"][:3]}))
    given = str(tmp_path / hierarchy) if hierarchy else None
    with pytest.raises((ValueError, FileNotFoundError), match=r"hierarchy|no taxonomy|no leaf 'green'"):
        fit(tmp_path / "run", balanced.replace(hierarchy=given))
    assert not (tmp_path / "run").exists()


def test_too_few_images_leave_no_run(tiny: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fill a batch of 500"):
        fit(tmp_path / "run", tiny.replace(batch_size=500))
    assert not (tmp_path / "run").exists()


def test_more_neighbours_than_training_images_are_found_before_the_training(tiny: FitConfig) -> None:
    asked = EvaluateConfig(scores=("knn",), neighbours=121)
    check(asked, tiny)  # without unknown images nothing is scored
    check(asked.replace(neighbours=80), tiny.replace(known=2))
    with pytest.raises(ValueError, match="neighbours 81 is more than the 80 training images: lower it"):
        check(asked.replace(neighbours=81), tiny.replace(known=2))


def test_a_run_is_named_by_the_content_of_its_hierarchy(
    balanced: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = run_name(balanced, tmp_path)
    monkeypatch.chdir(tmp_path)
    spelled = balanced.replace(hierarchy="./tree.json")
    assert run_name(spelled, tmp_path) == name
    (tmp_path / "copy.json").write_bytes((tmp_path / "tree.json").read_bytes())
    assert run_name(balanced.replace(hierarchy="copy.json"), tmp_path) == name
    prepare(tmp_path / name, spelled)
    assert prepare(tmp_path / name, balanced.replace(hierarchy="copy.json")).hierarchy == str(
        tmp_path / "copy.json"
    )
    (tmp_path / "copy.json").write_text(json.dumps(TREE | {"more": 1}))
    assert run_name(balanced.replace(hierarchy="copy.json"), tmp_path) != name
    with pytest.raises(ConfigError, match="hierarchy"):
        prepare(tmp_path / name, balanced.replace(hierarchy="copy.json"))


def test_a_run_of_an_earlier_name_is_continued(balanced: FitConfig, tmp_path: Path) -> None:
    earlier = f"folder-resnet20-balanced-{digest(balanced.replace(data='folder'))[:8]}"
    assert run_name(balanced, tmp_path) != earlier
    (tmp_path / earlier).mkdir()
    assert run_name(balanced, tmp_path) == earlier
