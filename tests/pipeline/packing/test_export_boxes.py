"""Exports of boxes: COCO json and FiftyOne's layout, complete when labels.json exists, and repeatable."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hyco.pipeline.cli  # noqa: F401  registers the verbs
from hyco.pipeline.cli.app import app
from hyco.pipeline.curation.delete import delete
from hyco.pipeline.imaging.decode import inspect
from hyco.pipeline.packing.export_boxes import export_boxes
from hyco.pipeline.packing.pack import pack
from hyco.storage.home import Home
from hyco.storage.versions import Version
from tests.pipeline.packing.test_pack import SIZE, Mined, made, packing_config, samples_of  # noqa: F401


@pytest.fixture
def packed(made: tuple[Mined, str]) -> tuple[Home, Version]:  # noqa: F811
    mined, home = made
    return Home(home), pack(mined, packing_config(image_size=SIZE, holdout=0.3), Home(home))


def labels(folder: Path) -> dict:
    return json.loads((folder / "labels.json").read_text())


def test_coco(packed: tuple[Home, Version], tmp_path: Path) -> None:
    home, version = packed
    out = tmp_path / "out"
    found = export_boxes(home, version, "coco", out)
    for split in ("train", "val"):
        held, samples = labels(out / split), samples_of(home.url, version, split)
        assert found[split] == {"images": len(samples), "boxes": sum(len(one.parts) for one in samples)}
        assert [image["file_name"] for image in held["images"]] == [f"{one.key}.jpg" for one in samples]
        names = {category["id"]: category["name"] for category in held["categories"]}
        assert len({row["id"] for row in held["annotations"]}) == len(held["annotations"])
        for image, sample in zip(held["images"], samples, strict=True):
            data = (out / split / "data" / image["file_name"]).read_bytes()
            assert data == sample.image and (image["width"], image["height"]) == inspect(data)[:2]
            assert image["captions"] == list(sample.captions)
            rows = [row for row in held["annotations"] if row["image_id"] == image["id"]]
            for row, part in zip(rows, sample.parts, strict=True):
                assert names[row["category_id"]] == part.phrase.lower()
                x, y, w, h = row["bbox"]
                size = (image["width"], image["height"]) * 2
                assert [x, y, x + w, y + h] == pytest.approx(
                    [v * n for v, n in zip(part.box, size, strict=True)]
                )
                assert (
                    row["area"] == pytest.approx(w * h) and row["score"] == part.score and row["iscrowd"] == 0
                )


def test_fiftyone(packed: tuple[Home, Version], tmp_path: Path) -> None:
    home, version = packed
    export_boxes(home, version, "fiftyone", tmp_path / "out")
    held, samples = labels(tmp_path / "out/train"), samples_of(home.url, version)
    assert held.keys() == {"labels"}, "without classes, a label is a text"
    assert set(held["labels"]) == {path.stem for path in (tmp_path / "out/train/data").iterdir()}
    for sample in samples:
        for row, part in zip(held["labels"][sample.key], sample.parts, strict=True):
            x, y, w, h = row["bounding_box"]
            assert (x, y, x + w, y + h) == pytest.approx(part.box)
            assert (row["label"], row["confidence"]) == (part.phrase.lower(), part.score)
            assert row["attributes"] == {"rule": "chunk"}


def test_an_interrupted_export_is_finished_and_other_folders_are_refused(
    packed: tuple[Home, Version], tmp_path: Path
) -> None:
    home, version = packed
    out = tmp_path / "out"
    export_boxes(home, version, "coco", out)
    whole = labels(out / "train")
    first = out / "train/data" / whole["images"][0]["file_name"]
    (out / "train/labels.json").unlink()
    first.unlink()
    (out / "train/data/.tmp-1-x.jpg").write_bytes(b"half")
    export_boxes(home, version, "coco", out)
    assert labels(out / "train") == whole and first.is_file()
    assert len(list((out / "train/data").iterdir())) == len(whole["images"])
    with pytest.raises(ValueError, match=r"holds something else .* give another --out"):
        export_boxes(home, version, "fiftyone", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds something else"):
        export_boxes(home, version, "coco", tmp_path / "mine")


def test_deleted_images_leave_the_export(packed: tuple[Home, Version], tmp_path: Path) -> None:
    home, version = packed
    out = tmp_path / "out"
    export_boxes(home, version, "coco", out)
    gone = labels(out / "train")["images"][0]["key"]
    delete(home, keys=[gone])
    export_boxes(home, version, "coco", out)
    assert not (out / f"train/data/{gone}.jpg").exists()
    assert gone not in {image["key"] for image in labels(out / "train")["images"]}


def test_the_command(packed: tuple[Home, Version], tmp_path: Path) -> None:
    home, version = packed
    given = [
        "boxes",
        version.name[:6],
        "--format",
        "fiftyone",
        "--out",
        str(tmp_path / "o"),
        "--home",
        home.url,
    ]
    answer = CliRunner().invoke(app, given)
    assert answer.exit_code == 0 and '"images"' in answer.output
    assert (tmp_path / "o/val/labels.json").is_file()
