# ruff: noqa: F811  (fixtures)
"""Boxes that a source has become detections and parts without a detector, and can be mixed with mined ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.config import ConfigError, override
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.evaluate import evaluate
from hyco.pipeline.evaluation.mined_boxes import phrase_quality
from hyco.pipeline.evaluation.report.examples import mined_samples
from hyco.pipeline.mining.mine import MineConfig, mine_all, results
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.boxes import BoxFields, objects_from, preset
from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.look import lines, look
from hyco.pipeline.sources.source import open_source
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from hyco.storage.sample import Part
from hyco.storage.versions import read_ref
from tests.factories.files import lay, tarred
from tests.factories.mining import BOX, COLOURS, config, detector, picture, rows_of  # noqa: F401  (used by name)
from tests.factories.training import tiny_recipe
from tests.pipeline.sources.test_source import read

CAPTION = "a red block on the wall near a lamp"
GRIT = {
    "caption": CAPTION,
    "noun_chunks": [
        [0, 11, *BOX, 0.9],
        [15, 23, 0.0, 0.0, 1.0, 1.0, 0.7],
        [29, 35, 0.5, 0.5, 0.9, 0.9, 0.66],
    ],
    "ref_exps": [[0, 23, *BOX, 0.9]],
}


def grit_parquet(root: Path, count: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Any]] = {name: [value] * count for name, value in GRIT.items()}
    rows["caption"] = [f"{CAPTION} number {n}" for n in range(count)]
    rows |= {"jpg": [picture("red", n) for n in range(count)], "key": [f"{n:09d}" for n in range(count)]}
    rows |= {
        "url": ["http://x"] * count,
        "clip_similarity_vitb32": [0.3] * count,
        "status": ["success"] * count,
    }
    pq.write_table(pa.table(rows), root / "00000.parquet")
    return root


def boxed(source: Path, name: str = "grit", **fields: Any) -> MineConfig:
    asked = preset(name).replace(**fields)
    return MineConfig(source=str(source), grounder="source", columns=Columns(boxes=asked))


def parts_of(mine: MineConfig, home: Home, **options: Any) -> list[tuple[Part, ...]]:
    version = pack(mine, PackConfig(image_size=16, min_area_px=None, **options), home)
    return [sample.parts for ref in version.shards["train"] for sample in read_ref(home.store, ref)]


def test_grit_becomes_a_version_that_is_trained_and_assessed(tmp_path: Path) -> None:
    home, mine = Home(str(tmp_path / "home")), boxed(grit_parquet(tmp_path / "grit", 40))
    found = mine_all(mine, home, InProcess())
    assert (found["images"], found["phrases"], found["boxes"], found["failures"]) == (40, 120, 120, 0)
    version = pack(mine, PackConfig(image_size=16, holdout=0.2, shard_size=8, min_area_px=None), home)
    assert version.counts["parts"] == 40 * 3 and version.detectors == ["source:noun_chunks,ref_exps"]
    run = home.runs / "grit"
    train(run, home, "latest", tiny_recipe(steps=4))
    metrics = evaluate(run, home, EvaluationSpec(config=AssessConfig(draws=100)))
    shown = mined_samples(read_ref(home.store, version.shards["train"][0]), 1, 60)[0]["boxes"]
    assert shown[0]["tip"] == "a red block, score 0.90, chunk, source:noun_chunks,ref_exps"
    assert metrics["retrieval"] and phrase_quality(mine, home)["precision"] is None


def test_boxes_of_grit_are_filtered_like_mined_ones(tmp_path: Path) -> None:
    home, mine = Home(str(tmp_path / "home")), boxed(grit_parquet(tmp_path / "grit"))
    mine_all(mine, home, InProcess())
    (record,) = results(mine, home).records().values()
    rows = rows_of(record, home.url).to_pylist()[:3]
    assert [(row["phrase"], row["rule"], row["expression"]) for row in rows] == [
        ("a red block", "expression", "a red block on the wall"),
        ("the wall", "chunk", "the wall"),
        ("a lamp", "chunk", "a lamp"),
    ]
    first = parts_of(mine, home)[0]
    assert [(part.phrase, part.span, part.origin) for part in first] == [
        ("a red block", (0, 11), "source:noun_chunks,ref_exps"),
        ("the wall", (15, 23), "source:noun_chunks,ref_exps"),
        ("a lamp", (29, 35), "source:noun_chunks,ref_exps"),
    ]
    assert first[0].box == pytest.approx(BOX) and first[0].score == pytest.approx(0.9)
    assert [part.phrase for part in parts_of(mine, home, threshold=0.8)[0]] == ["a red block"]
    (grown,) = parts_of(mine, home, phrases="expression")[0]
    assert (grown.phrase, grown.span, grown.rule) == ("a red block on the wall", (0, 23), "expression")


def test_the_same_fields_in_the_json_of_a_tar(tmp_path: Path) -> None:
    as_text = {
        **GRIT,
        "noun_chunks": json.dumps(GRIT["noun_chunks"]),
        "exif": '{"Image Orientation": "Rotated 90 CW"}',
    }
    members: dict[str, bytes | str] = {}
    for number, told in enumerate((GRIT, as_text, {"caption": "nothing here"})):
        members |= {f"{number}.png": picture("red", number), f"{number}.json": json.dumps(told)}
    tarred(tmp_path / "s/0.tar", members)
    home, mine = Home(str(tmp_path / "home")), boxed(tmp_path / "s")
    assert mine_all(mine, home, InProcess())["images"] == 3
    first, second = parts_of(mine, home)
    assert (
        [part.phrase for part in first]
        == ["a red block", "the wall", "a lamp"]
        == [part.phrase for part in second]
    )
    text = "\n".join(lines(look(open_source(mine.source, columns=mine.columns)), "DIR"))
    assert "6 boxes in these rows" in text and "turned" not in text, (
        "boxes belong to the pixels as they are stored"
    )


def test_coco_captions_with_instances(tmp_path: Path) -> None:
    lay(tmp_path / "coco/val2017", {"0.png": picture("red", 0)})
    images = [{"id": 5, "file_name": "0.png", "width": 60, "height": 40}]
    said = [
        {"image_id": 5, "id": n, "caption": text}
        for n, text in enumerate(("two things", "red blocks and a wall"))
    ]
    boxes = [
        {"image_id": 5, "category_id": 1, "bbox": [10, 5, 20, 20], "iscrowd": 0},
        {"image_id": 5, "category_id": 2, "bbox": [0, 0, 30, 30], "iscrowd": 0},
        {"image_id": 5, "category_id": 1, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    ]
    kinds = [{"id": 1, "name": "block"}, {"id": 2, "name": "lamp"}]
    instances = json.dumps({"images": images, "annotations": boxes, "categories": kinds})
    lay(
        tmp_path / "coco/annotations",
        {"captions_val2017.json": json.dumps({"images": images, "annotations": said})},
    )
    home, mine = Home(str(tmp_path / "home")), boxed(tmp_path / "coco", "coco")
    with pytest.raises(ValueError, match=r"no row has a field objects; .*put instances_\*\.json beside"):
        mine_all(mine, home, InProcess())
    lay(tmp_path / "coco/annotations", {"instances_val2017.json": instances})
    mine_all(mine, home, InProcess())
    (found,) = parts_of(mine, home)
    assert [(part.phrase, part.caption, part.span, part.score) for part in found] == [
        ("lamp", 0, (-1, -1), 1.0),
        ("block", 1, (4, 9), 1.0),
    ]
    assert found[1].box == pytest.approx(BOX)


def test_own_objects_and_mined_boxes_in_one_version(tmp_path: Path, detector: Any) -> None:
    label = {"phrase": "a small lamp", "box": [0.6, 0.5, 0.9, 0.9], "caption": 0, "span": None}
    told = json.dumps({"captions": ["a red block"], "objects": [label]})
    tarred(tmp_path / "s/0.tar", {"0.png": picture("red"), "0.json": told})
    mixed = config(tmp_path / "s", columns=Columns(boxes=preset("objects")))
    home = Home(str(tmp_path / "home"))
    found = mine_all(mixed, home, InProcess())
    assert detector.calls == 1 and (found["phrases"], found["boxes"]) == (2, 3)
    (parts,) = parts_of(mixed, home)
    assert {(part.phrase, part.origin, round(part.score, 2)) for part in parts} == {
        ("a red block", "", 0.9),
        ("a small lamp", "source:objects", 1.0),
    }
    assert sorted(home.versions.load("latest").detectors) == [detector.digest, "source:objects"]
    mine_all(boxed(tmp_path / "s", "objects"), home, InProcess())
    assert detector.calls == 1


PIXELS = [6.0, 4.0, 30.0, 20.0]
FRACTIONS = [0.1, 0.1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("held", "fields"),
    [
        ([{"phrase": "a dog", "box": FRACTIONS}], {}),
        ([{"phrase": "a dog", "box": PIXELS}], {"pixels": True}),
        ([{"phrase": "a dog", "box": [6, 4, 24, 16]}], {"pixels": True, "form": "xywh"}),
        ([{"phrase": "a dog", "box": [0.3, 0.3, 0.4, 0.4]}], {"form": "cxcywh"}),
        (
            [{"phrase": "a dog", "x": 6, "y": 4, "width": 24, "height": 16, "region_id": 3}],
            {"box": "x,y,width,height", "form": "xywh", "pixels": True},
        ),
        ({"category": ["a dog"], "bbox": [FRACTIONS]}, {"phrase": "category", "box": "bbox"}),
        (json.dumps([{"phrase": "a dog", "box": FRACTIONS, "score": None}]), {}),
    ],
)
def test_spellings_of_a_box(held: Any, fields: dict[str, Any]) -> None:
    meta = {"regions": held, "id": 3}
    (found,) = objects_from(meta, ["a dog"], BoxFields(field="regions", **fields), lambda: (60, 40)) or []
    assert found["phrase"] == "a dog" and found["box"] == pytest.approx(FRACTIONS) and found["score"] == 1.0
    assert meta == {"id": 3}


@pytest.mark.parametrize(
    "entry",
    [
        {"phrase": "", "box": FRACTIONS},
        {"phrase": 3, "box": FRACTIONS},
        {"phrase": "a", "box": None},
        {"phrase": "a", "box": [0.5, 0.5, 0.5, 0.6]},
        {"phrase": "a", "box": [0, 0, float("nan"), 1]},
        {"phrase": "a", "box": [0, 0, 1]},
        {"phrase": "a", "box": "0011"},
        {"phrase": "a", "box": [2, 2, 3, 3]},
        "a dog",
    ],
)
def test_what_is_no_box_is_passed_over(entry: Any) -> None:
    assert objects_from({"objects": [entry]}, ["a dog"], preset("objects"), lambda: (60, 40)) == []


@pytest.mark.parametrize(
    "span",
    [
        [],
        [0],
        [0, 3, 0, 0, 1],
        ["a", 3, 0, 0, 1, 1],
        [2, 99, 0, 0, 1, 1],
        [-3, 2, 0, 0, 1, 1],
        None,
        [1, 2, 1, 1, 0, 0],
    ],
)
def test_what_is_no_span_of_grit_is_passed_over(span: Any) -> None:
    assert objects_from({"noun_chunks": [span]}, ["a dog"], preset("grit"), lambda: (60, 40)) == []


def test_spans_follow_the_caption_as_it_is_cleaned(tmp_path: Path) -> None:
    told = {
        "caption": "  <b>a dog</b> &amp; a cat",
        "noun_chunks": [[5, 10, 0, 0, 1, 1, 0.9], [21, 26, 0, 0, 1, 1, 0.8]],
    }
    path = tarred(tmp_path / "0.tar", {"0.png": picture("red"), "0.json": json.dumps(told)})
    (sample,), _ = read(open_source(path, columns=Columns(boxes=preset("grit"))))
    spans = [item["span"] for item in sample.meta["objects"]]
    assert [sample.captions[0][start:end] for start, end in spans] == ["a dog", "a cat"]


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    grit_parquet(tmp_path / "grit")
    with pytest.raises(ConfigError, match="grounder 'source' needs the boxes of the source: give --boxes"):
        MineConfig(source="x", grounder="source")
    with pytest.raises(ConfigError, match="--boxes grid: unknown preset; did you mean 'grit'"):
        preset("grid")
    mine = override(boxed(tmp_path / "grit"), ["columns.boxes.field=chunks"])
    with pytest.raises(
        ValueError, match=r"no row has a field chunks; the fields are .*noun_chunks.*columns\.boxes\.field"
    ):
        mine_all(mine, Home(str(tmp_path / "home")), InProcess())
