"""Walks among the names that captions say: which names occur, and the tree of those that are left."""

from pathlib import Path

import numpy as np
import pytest

from hyco.pipeline.experiments import said_names
from hyco.pipeline.experiments.said_names import ancestors, levels, main, occurring
from tests.pipeline.evaluation.test_evaluate import tiny, world, write_run, write_source

__all__ = ["world"]  # a fixture


def test_a_name_occurs_as_whole_words_in_any_number_and_case():
    nodes = [
        {"id": "farm_animal"},
        {"id": "duck", "names": ["duck", "mallard"], "plural": "ducks"},
        {"id": "goose", "names": ["goose"], "plural": "geese"},
        {"id": "hen", "names": ["hen"]},
    ]
    captions = ["Two Ducks", "a mallard and geese", "a duckling, then a farm animal", "duck"]
    assert occurring(nodes, captions) == {"farm_animal": 1, "duck": 3, "goose": 1, "hen": 0}


def test_names_that_are_left_out_are_passed():
    parents = [-1, 0, 1, 2, 1]  # 0 > 1 > 2 > 3, and 4 below 1
    above = ancestors(parents, [1, 3, 4])
    assert above.tolist() == [[False] * 3, [True, False, False], [True, False, False]]


def test_levels_leave_out_the_root():
    assert levels(np.array([[0, 1, 3], [0, 2, 1]]), np.array([1, 2, 3])).tolist() == [2, 3]


@pytest.fixture
def home(world: Path, tmp_path: Path) -> Path:
    """A home with scenes: "bird" is never said in training, and "tool" is."""

    def saying(meta: dict) -> dict:
        meta["captions"][0] = f"some tool, {meta['captions'][0]}"
        return meta

    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/taxonomy.json").write_text((world / "taxonomy.json").read_text())
    write_source(tmp_path / "scenes/heldout", range(100, 124))
    write_source(tmp_path / "scenes/train", range(12), saying)
    return tmp_path


def test_the_command_tells_apart_leaves_below_a_said_name(home: Path, tmp_path: Path, capsys, monkeypatch):
    """Every walk meets all names in turn, so that a name is nearest at one step in six, or in five of those said."""
    run = tmp_path / "run"
    write_run(run, *tiny())

    def in_turn(score, way, pool, root):
        return np.tile(np.arange(60) % len(pool), (len(way), 1))

    monkeypatch.setattr(said_names, "nearest", in_turn)
    assert main([str(run), "--home", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5 of 6 names occur; by depth 1: 1 of 2, 2: 4 of 4"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:] if line]
    found = {(row[0], row[2], row[1]): row[3:] for row in rows[:12]}
    assert len(found) == 12
    singles = [n for n in range(100, 124) if n % 3]
    tools = sum(n % 4 >= 2 for n in singles)
    count = {"any": len(singles), "ancestor occurs": tools, "none occurs": len(singles) - tools}
    at = {
        ("all", "any"): 100 / 6,
        ("all", "ancestor occurs"): 100 / 6,
        ("all", "none occurs"): 100 / 6,
        ("that occur", "any"): 20 * tools / len(singles),
        ("that occur", "ancestor occurs"): 20.0,
        ("that occur", "none occurs"): 0.0,
    }
    for (names, leaf, _), (walks, two, three, ancestor, chance) in found.items():
        assert int(walks) == count[leaf] and (two, three) == ("100", "0")
        assert float(ancestor.split()[0]) == round(at[names, leaf], 1) == float(chance)


def test_a_home_without_scenes_is_refused(tmp_path: Path, capsys):
    assert main([str(tmp_path), "--home", str(tmp_path)]) == 2
    assert "taxonomy.json" in capsys.readouterr().err
