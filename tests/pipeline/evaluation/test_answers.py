"""Answers image by image: the table per class, and what changed between two runs."""

from pathlib import Path

import pytest

from hyco.pipeline.curation.erase_derived import erase_derived
from hyco.pipeline.evaluation.answers import FILE, Answers, by_class, changed, read, write
from hyco.storage.deletions import Tombstones
from hyco.storage.home import Home

NAMES = ["cat", "dog", "duck"]
FIRST = Answers(NAMES, ["a", "b", "c", "d"], [0, 0, 1, 2], [0, 1, 0, 0])


def test_each_class_has_a_row_the_worst_first() -> None:
    rows = [(row.name, row.images, row.right, row.wrong, row.times) for row in by_class(FIRST)]
    assert rows == [("dog", 1, 0, "cat", 1), ("duck", 1, 0, "cat", 1), ("cat", 2, 1, "dog", 1)]


def test_what_changed_between_two_runs() -> None:
    """The second run has its classes in another order, lacks an image, and has one with another true class."""
    second = Answers(["duck", "cat", "dog"], ["a", "b", "c", "e"], [1, 1, 0, 0], [0, 1, 0, 0])
    found = changed(FIRST, second)
    assert found.both == 2
    assert found.fixed == [("b", "cat", "dog", "cat")] and found.broken == [("a", "cat", "cat", "duck")]
    assert found.classes == [("cat", 2, 1, 1)]


def test_a_file_comes_back_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    write(tmp_path, FIRST)
    assert read(tmp_path) == FIRST
    (tmp_path / FILE).write_text('{"classes": ["x"], "images": ["a"], "truth": [3], "answered": [0]}')
    with pytest.raises(ValueError, match=r"answers\.json cannot be read .* assess the run again"):
        read(tmp_path)
    write(tmp_path, None)
    assert not (tmp_path / FILE).exists()


def test_answers_about_a_deleted_image_are_deleted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    write(tmp_path / "runs/one", FIRST)
    write(tmp_path / "runs/two", Answers(NAMES, ["z"], [0], [0]))
    stones = Tombstones(keys=frozenset({"b"}))
    assert erase_derived(home, stones) == [f"runs/one/{FILE}"]
    assert read(tmp_path / "runs/two") is not None
