"""Marks of bad images and boxes: created once, taken back by name, refused when damaged."""

from pathlib import Path

import pytest

from hyco.pipeline.integrity.repair import remedy, repair
from hyco.pipeline.integrity.verify import verify
from hyco.storage.home import Home
from hyco.storage.marks import Mark, Marks, box_name
from hyco.storage.objects import DamagedError
from hyco.storage.store import Store

KEY = "0123456789abcdef0123456789abcdef"
BOX = (0.1, 0.2, 0.50001, 0.9)


@pytest.fixture(params=["local", "memory"])
def marks(request: pytest.FixtureRequest, tmp_path: Path) -> Marks:
    return Marks(Store(tmp_path if request.param == "local" else f"memory://{tmp_path.name}"))


def test_marking_and_undoing_twice_change_nothing(marks: Marks) -> None:
    assert marks.put(KEY, version="v-1") and not marks.put(KEY)
    assert marks.put(KEY, "A dog", BOX) and not marks.put(KEY, "a dog", (0.1, 0.2, 0.5, 0.9)), (
        "case, four decimals"
    )
    assert marks.put(KEY, "a cat", BOX)
    names = {KEY, box_name(KEY, "a dog", BOX), box_name(KEY, "a cat", BOX)}
    assert marks.names() == names == {mark.name for mark in marks.entries()}
    assert {(mark.phrase, mark.box) for mark in marks.entries()} == {("", ()), ("A dog", BOX), ("a cat", BOX)}
    assert marks.undo(box_name(KEY, "a dog", BOX)) and not marks.undo(box_name(KEY, "a dog", BOX))
    assert marks.undo(KEY) and marks.names() == {box_name(KEY, "a cat", BOX)}


@pytest.mark.parametrize("key", ["", "../x", "A", "a-b", "k" * 65])
def test_a_key_that_is_none_is_refused(marks: Marks, key: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        marks.put(key)
    with pytest.raises(ValueError, match="no name of a mark"):
        marks.undo(key)


@pytest.mark.parametrize("box", [(0.1, 0.2), (0, 0, 2, 1), (float("nan"), 0, 1, 1)])
def test_a_box_outside_the_image_is_refused(marks: Marks, box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions from 0 to 1"):
        marks.put(KEY, "a dog", box)


def test_a_damaged_mark_is_named_and_repaired(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.marks.put(KEY, "a dog", BOX)
    [path] = (tmp_path / "marks").iterdir()
    path.write_bytes(path.read_bytes().replace(b"a dog", b"a cat"))
    with pytest.raises(DamagedError, match="changed since it was written"):
        home.marks.entries()
    assert [damage.kind for damage in verify(home, None)] == ["mark"]
    assert "marked again in hyco serve" in " ".join(remedy(repair(home)))
    assert home.marks.entries() == [] and verify(home, None) == []


def test_a_record_under_another_name_is_damaged(tmp_path: Path) -> None:
    marks = Marks(Store(tmp_path))
    marks.put(KEY)
    (tmp_path / f"marks/{KEY}.json").rename(tmp_path / "marks/other.json")
    with pytest.raises(DamagedError, match=f"it is of {KEY}"):
        marks.entries()


def test_the_name_of_a_mark_says_what_it_marks() -> None:
    assert Mark(KEY).name == KEY
    assert Mark(KEY, "a dog", BOX).name.partition("-")[0] == KEY
