"""open_labelled: folders, tars, parts, errors."""

from pathlib import Path

import numpy as np
import pytest

from hyco.pipeline.datasets import open_labelled
from tests.factories.files import lay, picture, tarred

FOLDERS = {
    "set/train/cat/a.png": picture(1),
    "set/train/cat/b.png": picture(2),
    "set/train/dog/c.png": picture(3),
    "set/val/cat/d.png": picture(4),
    "set/val/dog/notes.txt": "no picture",
    "set/val/dog/e.png": picture(5),
}


@pytest.fixture(params=["folder", "set.tar", "set.tar.gz"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return lay(tmp_path, FOLDERS)
    return tarred(tmp_path / request.param, FOLDERS).parent


def test_folder_and_tar_read_alike(place: Path) -> None:
    test, train, whole = (open_labelled(f"folder:{place}", split) for split in ("test", "train", "all"))
    assert test.classes == ("cat", "dog") and test.names == (("cat",), ("dog",))
    assert test.labels.tolist() == [0, 1] and test.labels.dtype == np.int64
    assert [int(test.image(i)[0, 0, 0]) for i in range(2)] == [4, 5]
    assert test.image(0).shape == (8, 8, 3) and test.image(0).dtype == np.uint8
    assert [int(train.image(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert len(whole) == 5 and [int(whole.image(i)[0, 0, 0]) for i in range(5)] == [1, 2, 3, 4, 5]
    assert whole.labels.tolist() == [0, 0, 1, 0, 1]


def test_a_tar_may_be_named_itself(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tgz", FOLDERS)
    assert len(open_labelled(f"folder:{path}")) == 2


def test_a_class_called_train_is_no_part(tmp_path: Path) -> None:
    lay(tmp_path, {"test/train/a.png": picture(1), "test/bus/b.png": picture(2)})
    assert open_labelled(f"folder:{tmp_path}").classes == ("bus", "train")
    with pytest.raises(FileNotFoundError, match=r"has no train.*expected layout"):
        open_labelled(f"folder:{tmp_path}", "train")


def test_a_set_in_one_piece_is_parted_by_name(tmp_path: Path) -> None:
    files = {f"deep/{kind}/{n}.png": picture(n) for kind in ("x", "y") for n in range(60)}
    lay(tmp_path, files)
    test, train, whole = (open_labelled(f"folder:{tmp_path}", split) for split in ("test", "train", "all"))
    assert len(test) + len(train) == len(whole) == 120
    assert 10 <= len(test) <= 40
    key = [(int(s.labels[i]), int(s.image(i)[0, 0, 0])) for s in (test, train) for i in range(len(s))]
    assert len(set(key)) == 120, "no picture is in both"
    gone = tmp_path / "deep/x/0.png"
    gone.unlink()
    again = open_labelled(f"folder:{tmp_path}", "test")
    assert abs(len(again) - len(test)) <= 1, "other pictures stay where they were"


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"test/a/1.png": picture(1), "train/b/1.png": picture(1)})
    with pytest.raises(ValueError, match="differ in their classes: a, b"):
        open_labelled(f"folder:{tmp_path}", "all")


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    lay(tmp_path, {"test/a/1.png": picture(1)[:40]})
    with pytest.raises(ValueError, match=r"folder: test/a/1\.png: \w+"):
        open_labelled(f"folder:{tmp_path}").image(0)


@pytest.mark.parametrize(
    ("spec", "split", "kind", "words"),
    [
        ("cifar10", "test", ValueError, "is not NAME:DIR"),
        ("cifar11:.", "test", ValueError, "nearest: cifar1"),
        ("zebra:.", "test", ValueError, "there are .*cifar10"),
        ("cifar10:.", "tset", ValueError, "none of train, test, all"),
        ("cifar10:/nowhere", "test", FileNotFoundError, "/nowhere does not exist"),
    ],
)
def test_mistakes(spec: str, split: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        open_labelled(spec, split)


def test_empty_and_torn(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder: .* has no CLASS/\*\.jpg; expected layout"):
        open_labelled(f"folder:{tmp_path}")
    (tmp_path / "torn.tar.gz").write_bytes(b"\x1f\x8b\x08\0 nothing")
    with pytest.raises(ValueError, match=r"torn\.tar\.gz is not a complete tar"):
        open_labelled(f"folder:{tmp_path / 'torn.tar.gz'}")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match="neither a folder nor a tar"):
        open_labelled(f"folder:{tmp_path / 'notes.md'}")
