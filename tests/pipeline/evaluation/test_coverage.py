"""Sets that are there in part: n of N in terminal, metrics and report, and refused below a fraction unless allowed."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.datasets.wordnet import WordNet
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.classification import class_names
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.coverage import Coverage, incomplete
from hyco.pipeline.evaluation.evaluate import AssessConfig
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.evaluation.metrics.document import csv_text, upgrade
from hyco.pipeline.evaluation.report.page import page
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.summary import markdown_table, rows
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.storage.sample import Sample
from tests.factories.files import lay
from tests.pipeline.evaluation.test_evaluate import run, scene, tiny, world, write_source
from tests.pipeline.evaluation.test_published_sets import FEW, ColourEmbedder, crepe, paint

__all__ = ["world"]  # a fixture
COLOURS = ("red", "green", "blue", "black")
LIGHT = AssessConfig(draws=100, walks=2, samples=0, answers=0, mistakes=0, strips=0)
PARTLY = LIGHT.replace(min_coverage=0.1)


def photographs(data: Path, count: int = 20, there: int = 3) -> Path:
    """COCO's captions and boxes for `count` photographs, of which `there` are on the disk."""
    folder = data / "coco"
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 16, "height": 16} for n in range(count)]
    for n in range(there):
        paint(folder / f"val2017/{n}.jpg", COLOURS[n % 4])
    captions = [{"image_id": n, "caption": f"a {COLOURS[n % 4]} thing {n}"} for n in range(count)]
    boxes = [{"image_id": n, "bbox": [0, 0, 9, 9], "category_id": n % 4} for n in range(count)]
    categories = [{"id": n, "name": colour} for n, colour in enumerate(COLOURS)]
    (folder / "annotations").mkdir(parents=True)
    for name, held in {"captions": captions, "instances": boxes}.items():
        content = {"images": images, "annotations": held, "categories": categories}
        (folder / f"annotations/{name}_val2017.json").write_text(json.dumps(content))
    return data


def suite(data: Path, names: str, **options):
    return run_suite(ColourEmbedder(), names, data, FEW, **options)


@pytest.mark.parametrize("name", ["coco", "coco_boxes"])
def test_a_set_with_lost_photographs_is_refused_unless_allowed(tmp_path: Path, name: str) -> None:
    photographs(tmp_path)
    found = suite(tmp_path, name)
    why = found["skipped"][f"suite.{name}"]
    assert found["suite"] == {} and why.startswith("3 of 20 images (17 missing), the first of them ")
    assert "3.jpg: below min_coverage 0.95" in why and "--set min_coverage=0" in why
    allowed = suite(tmp_path, name, least=0.0)
    counts = {"used": 3, "of": 20, "missing": 17, "unusable": 0}
    assert allowed["suite"][name]["coverage"]["images"] == counts and allowed["skipped"] == {}
    metrics = upgrade({**allowed, "run": "r"})
    words = "3 of 20 images (17 missing)"
    assert list(incomplete(metrics)) == [(f"suite.{name}", words)]
    assert f"not complete, {words}" in markdown_table(metrics)
    assert [text for _, text in page(metrics, Exhibits())["incomplete"]] == [words]
    assert all("n\xa0=\xa03 of 20" in row[0] for row in rows(metrics))
    assert {row["of"] for row in csv.DictReader(io.StringIO(csv_text(metrics)))} == {"20"}


def test_one_lost_photograph_in_twenty_is_said_and_measured(tmp_path: Path) -> None:
    photographs(tmp_path, 20, 19)
    found = suite(tmp_path, "coco")
    assert found["suite"]["coco"]["coverage"]["images"]["used"] == 19
    assert found["suite"]["coco"]["text_to_image"]["gallery"] == 19


def test_no_photograph_at_all_and_a_complete_set(tmp_path: Path) -> None:
    photographs(tmp_path / "none", 4, 0)
    assert (
        "none of 4 images can be read" in suite(tmp_path / "none", "coco", least=0.0)["skipped"]["suite.coco"]
    )
    photographs(tmp_path / "all", 4, 4)
    assert list(incomplete(suite(tmp_path / "all", "coco,coco_boxes"))) == []


def test_a_gallery_stands_beside_every_recall(tmp_path: Path) -> None:
    photographs(tmp_path, 8, 8)
    metrics = upgrade({**suite(tmp_path, "coco"), "run": "r"})
    recalls = [row[0] for row in rows(metrics) if "R@" in row[0]]
    assert len(recalls) == 6 and all("among 8" in row for row in recalls)
    assert {row["gallery"] for row in csv.DictReader(io.StringIO(csv_text(metrics)))} == {"8"}
    drawn = {**suite(tmp_path, "coco", limit=5), "run": "r"}
    assert all(", among 5" in row[0] for row in rows(drawn))
    assert list(incomplete(drawn)) == [("suite.coco", "5 of 5 images, drawn from 8")]


def test_photographs_that_cannot_be_decoded_count_too(tmp_path: Path) -> None:
    photographs(tmp_path, 10, 10)
    for n in (2, 3):
        (tmp_path / f"coco/val2017/{n}.jpg").write_bytes(b"\xff\xd8 torn")
    for name in ("coco", "coco_boxes"):
        assert "8 of 10 images (2 unusable): below" in suite(tmp_path, name)["skipped"][f"suite.{name}"]


def test_images_that_lost_their_captions_are_missed(tmp_path: Path) -> None:
    path = photographs(tmp_path, 10, 10) / "coco/annotations/captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:4]
    path.write_text(json.dumps(content))
    assert "4 of 10 captioned images (6 missing)" in suite(tmp_path, "coco")["skipped"]["suite.coco"]
    content["annotations"][0]["caption"] = None
    path.write_text(json.dumps(content))
    assert "None is not text" in suite(tmp_path, "coco")["skipped"]["suite.coco"]


def test_kinds_without_a_file_and_kinds_without_photographs(tmp_path: Path) -> None:
    crepe(tmp_path / "sugarcrepe", tmp_path / "coco/val2017")
    why = suite(tmp_path, "sugarcrepe")["skipped"]["suite.sugarcrepe"]
    assert "2 of 7 kinds (5 missing), the first of them add_att, replace_att" in why
    allowed = suite(tmp_path, "sugarcrepe", least=0.0)
    assert ("suite.sugarcrepe", "2 of 7 kinds (5 missing)") in list(incomplete(allowed))
    # Most photographs are there, but all those of one kind are lost: the mean would be over the other kinds.
    folder = tmp_path / "vl_checklist"
    for n in range(60):
        paint(folder / f"vg/{n}.jpg", "red")
    pair = {"POS": ["red"], "NEG": ["blue"]}
    files = {
        kind: [[f"{n}.jpg", pair] for n in range(60)] for kind in ("Attribute/vg/color", "Object/Size/vg")
    }
    files["Relation/swig_action"] = [["lost.jpg", pair]]
    for name, content in files.items():
        lay(folder, {f"data/{name}.json": json.dumps(content)})
    why = suite(tmp_path, "vl_checklist")["skipped"]["suite.vl_checklist"]
    assert "0 of 1 pairs of relation_action (1 missing)" in why
    (folder / "data/Relation/swig_action.json").unlink()
    assert "2 of 3 kinds (1 missing)" in suite(tmp_path, "vl_checklist")["skipped"]["suite.vl_checklist"]


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    return encode_jpeg(pixels)


def test_a_labelled_set_is_held_to_what_is_published(tmp_path: Path) -> None:
    lay(tmp_path, {f"cifar10/test/{k}/{n}.jpg": jpeg(n) for k in ("cat", "dog") for n in range(3)})
    embedder = Embedder(*tiny())
    found = run_suite(embedder, "cifar10", tmp_path, FEW)
    assert "2 of 10 classes (8 missing): below" in found["skipped"]["suite.cifar10"]
    allowed = run_suite(embedder, "cifar10", tmp_path, FEW, least=0.0)
    words = "2 of 10 classes (8 missing); 6 of 10,000 published images (9,994 missing)"
    assert list(incomplete(allowed)) == [("suite.cifar10", words)]


def test_files_that_a_list_names_and_that_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single lost file cost the whole set; now each is counted."""
    names = [f"{k}/{n}" for k in ("pie", "tart") for n in range(20)]
    lists = {
        "meta/classes.txt": "pie\ntart\n",
        "meta/test.txt": "\n".join(names),
        "meta/train.txt": "pie/0\n",
    }
    root = lay(tmp_path / "food101", lists | {f"images/{name}.jpg": jpeg(1) for name in names[1:]})
    monkeypatch.setattr(
        "hyco.pipeline.evaluation.benchmarks.classification.published", lambda known, test: []
    )
    embedder = Embedder(*tiny())
    found = run_suite(embedder, "food101", tmp_path, FEW)["suite"]["food101"]
    assert found["coverage"]["images"] == {"used": 39, "of": 40, "missing": 1, "unusable": 0}
    for name in names[1:10]:
        (root / f"images/{name}.jpg").unlink()
    why = run_suite(embedder, "food101", tmp_path, FEW)["skipped"]["suite.food101"]
    assert "30 of 40 images (10 missing), the first of them" in why and "pie/0.jpg" in why


def test_lists_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    files = {
        "classes.txt": "1 a\n2 b\n",
        "images.txt": "1 a/1.jpg\n",
        "image_class_labels.txt": "1 1\n2 2\n",
        "train_test_split.txt": "1 0\n2 0\n",
    }
    with pytest.raises(ValueError, match="its lists do not match"):
        open_labelled(f"cub:{lay(tmp_path / 'cub', files)}")


def test_a_parquet_set_with_a_lost_file_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [jpeg(1), jpeg(2)], "label": ["a", "b"]})
    for n in (0, 2):
        pq.write_table(table, tmp_path / f"test-{n:05d}-of-00003.parquet")
    with pytest.raises(ValueError, match=r"has 2 of the 3 files of test-\*-of-00003"):
        open_labelled(f"folder:{tmp_path}")
    pq.write_table(table, tmp_path / "test-00001-of-00003.parquet")
    assert len(open_labelled(f"folder:{tmp_path}")) == 6


def jsonl(folder: Path, count: int, there: int) -> str:
    """Captioned images as a jsonl names them; the first `there` are on the disk."""
    folder.mkdir(parents=True)
    lines = []
    for n in range(count):
        image, meta = scene(n)
        if n < there:
            (folder / f"{n}.jpg").write_bytes(image)
        lines.append(json.dumps({"file": f"{n}.jpg", **meta}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_a_held_out_source_with_lost_images(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = jsonl(tmp_path / "held", 20, 4)
    refused = run(world, assess_source=source, config=LIGHT)
    why = refused["skipped"]["retrieval"]
    assert why.startswith("4 of 20 images (16 missing), the first of them ") and "min_coverage 0.95" in why
    assert refused["retrieval"] is None and "assessed" not in refused
    found = run(world, assess_source=source, config=PARTLY)
    assert found["coverage"]["images"] == {"used": 4, "of": 20, "missing": 16, "unusable": 0}
    assert found["retrieval"]["text_to_image"]["gallery"] == 4
    report = (world / "home/runs/r/report.html").read_text()
    assert "Held-out images: not complete" in report and "4 of 20 images (16 missing)" in report
    recalls = [row[0] for row in rows(found) if "R@" in row[0]]
    assert recalls and all("among " in row for row in recalls)


def test_held_out_images_beyond_the_limit_are_told(world: Path) -> None:
    config = LIGHT.replace(max_images=10, max_parts=5)
    found = run(world, assess_source=str(world / "heldout"), config=config)
    assert found["coverage"]["images"] == {"used": 10, "of": 10, "missing": 0, "unusable": 0, "listed": 40}
    assert found["coverage"]["parts"]["used"] == 5 and found["coverage"]["parts"]["listed"] > 10
    val = run(world, config=config)["coverage"]
    assert val["images"]["listed"] == 22


def test_files_of_a_source_that_were_not_opened_are_told(tmp_path: Path) -> None:
    for n in range(3):
        write_source(tmp_path / str(n), range(10 * n, 10 * n + 10))
        (tmp_path / str(n) / "00000.tar").rename(tmp_path / f"{n}.tar")
    found = of_source(str(tmp_path), 12)
    assert (len(found.scenes), found.listed, found.files, found.unread) == (12, 20, 3, 1)
    assert (
        "2 of 2 source files, drawn from 3"
        in dict(incomplete({"coverage": {c.unit: c.numbers() for c in found.coverage()}}))["held_out"]
    )


def test_labels_that_cannot_be_understood_are_counted(world: Path, tmp_path: Path) -> None:
    """Boxes in pixels instead of fractions were passed over, and the report said there were none."""

    def pixels(meta):
        return meta | {
            "objects": [item | {"box": [64 * v for v in item["box"]]} for item in meta["objects"]],
            "foils": [*meta["foils"], {"kind": "noun"}],
        }

    write_source(tmp_path / "odd", range(6), pixels)
    found = run(world, assess_source=str(tmp_path / "odd"), config=LIGHT)
    listed = sum(len(scene(n)[1]["objects"]) + 3 for n in range(6))
    good = 2 * 6
    counts = {"used": good, "of": listed, "missing": 0, "unusable": listed - good}
    assert found["coverage"]["objects and foils"] == counts
    assert found["parts"] is None
    one = Scene.of_sample(Sample("k", b"", ("c",), {"objects": "x", "foils": None}))
    assert (one.entries, one.odd) == (1, 1)


def test_how_many_scenes_carry_one_label_is_told(world: Path, tmp_path: Path) -> None:
    def every_other(meta):
        return meta if len(meta["captions"][1]) % 2 else {k: v for k, v in meta.items() if k != "labels"}

    write_source(tmp_path / "some", range(8), every_other)
    options = {"assess_source": str(tmp_path / "some"), "taxonomy": str(world / "taxonomy.json")}
    found = run(world, config=LIGHT, **options)["zero_shot"]
    assert found["images"] <= found["labelled"] < found["scenes"] == 8


def test_old_metrics_stay_readable() -> None:
    ways, ks = ("image_to_text", "text_to_image"), {"r1": 0.5, "r5": 0.6, "r10": 0.7}
    old = {
        "retrieval": dict.fromkeys(ways, ks)
        | {"chance": dict.fromkeys(ways, ks), "images": 20, "captions": 50, "distinct": 48},
        "suite": {"coco": {"image_to_text": {"r1": 0.5, "chance": {"r1": 0.1}, "n": 9, "undecodable": 1}}},
        "intervals": {},
        "skipped": {},
    }
    told = [row[0] for row in rows(upgrade(old))]
    assert "Image to caption R@1 (among 50 captions)" in told
    assert "Caption to image R@1 (among 20 images)" in told
    assert list(incomplete(old)) == []


def test_a_fraction_is_refused_below_and_not_at_the_limit() -> None:
    Coverage("images", 20, 1).require(0.95)
    Coverage("images", 0).require(1.0)
    with pytest.raises(ValueError, match="18 of 20 images"):
        Coverage("images", 20, 1, 1).require(0.95)


def test_labelled_images_that_were_not_mined_are_told() -> None:
    import pyarrow as pa

    from hyco.pipeline.evaluation.mined_boxes import BoxMatcher
    from hyco.storage.detections import SCHEMA

    tally = BoxMatcher(0.35, 0.6, 0.5)
    label = {"phrase": "a dog", "box": [0.1, 0.1, 0.5, 0.5]}
    tally.add(pa.Table.from_pylist([], schema=SCHEMA), {"lost": [label], "unlabelled": None})
    found = tally.result()
    assert (found["images"], found["labelled_images"], found["recall"]) == (0, 1, None)
    words = "0 of 1 labelled images (1 missing)"
    assert list(incomplete({"mining": {"quality": found}})) == [("mining", words)]
    assert list(incomplete({"mining": {"quality": {"images": 3}}})) == []


def test_a_class_whose_name_the_list_lacks_is_not_asked_for_by_its_wnid(tmp_path: Path) -> None:
    """A photo of a n00000042: the class was lost to every model, and nothing said so."""
    wnids = ["n00000042", "n00000099"]
    files = {
        "wnids.txt": "\n".join(wnids),
        "words.txt": f"{wnids[1]}\tdog\n",
        "val/val_annotations.txt": "".join(f"{n}.JPEG\t{wnid}\t0\t0\t1\t1\n" for n, wnid in enumerate(wnids)),
    }
    test = open_labelled(f"tiny_imagenet:{lay(tmp_path, files)}")
    assert test.names == ((wnids[0],), ("dog",))
    assert class_names(test, None) is None

    class Words(WordNet):
        def __init__(self):
            """Without a file."""

        def names(self, wnids):
            return [("cat",), ("hound",)]

    assert class_names(test, Words()) == [("cat",), ("dog",)]
