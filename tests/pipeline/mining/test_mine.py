"""Mining with a detector that counts its calls: what is kept, what is never done twice, what a bad sample costs."""

import io
import json
import os
import re
import signal
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_dino import save_tiny

from models.grounding.detector import Detection
from pipeline.config import digest, override
from pipeline.evaluation.mined_boxes import phrase_quality
from pipeline.imaging.decode import MAX_BYTES
from pipeline.mining import grounder as ground
from pipeline.mining import mine as mining
from pipeline.mining.mine import MineConfig, mine_all, mine_shard, plan, prefix, summary
from pipeline.mining.noun_phrases import NounExtractor
from pipeline.runtime.executor import InProcess, LocalExecutor
from pipeline.sources.records import Limits
from pipeline.sources.source import Source
from storage.detections import SCHEMA, read_detections, read_failures
from storage.manifest import Manifest
from storage.sealed import unseal
from storage.store import Store

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


class ColourDetector:
    """Finds the pixels of the colour a phrase names, well or badly: two boxes, the right one first."""

    digest = "0123456789abcdef"

    def __init__(self):
        self.calls, self.asked, self.refuse = 0, [], None

    def __call__(self, images, phrases):
        self.calls += 1
        if self.refuse:
            self.refuse(images)
        self.asked += phrases
        return [self._look(image, texts) for image, texts in zip(images, phrases, strict=True)]

    def _look(self, image, texts):
        boxes, scores, owners = [], [], []
        for number, text in enumerate(texts):
            colour = next((value for name, value in COLOURS.items() if name in text), None)
            if colour is None:
                continue
            ys, xs = np.nonzero(np.abs(image.astype(int) - colour).max(2) < 60)
            if not len(ys):
                continue
            height, width = image.shape[:2]
            right = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
            boxes += [right, [0.0, 0.0, 1.0, 1.0]]
            scores += [0.9, 0.2]
            owners += [number, number]
        if not boxes:
            return Detection.empty()
        return Detection(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(owners))


@pytest.fixture
def detector(monkeypatch):
    detector = ColourDetector()
    monkeypatch.setattr(ground, "open_detector", lambda *args, **options: detector)
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: detector.digest)
    mining._open_detector.cache_clear()
    yield detector
    mining._open_detector.cache_clear()


def picture(colour, seed=0):
    """A 60 x 40 picture with a block at x 10-30, y 5-25, lossless."""
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[-1, -1] = seed  # so that no two pictures are equal
    pixels[5:25, 10:30] = COLOURS[colour]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


BOX = [10 / 60, 5 / 40, 30 / 60, 25 / 40]


def write_tar(path, samples):
    """samples: (name, image bytes, meta with captions)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, image, meta in samples:
            for suffix, data in (
                ("png", image),
                ("txt", meta["captions"][0].encode()),
                ("json", json.dumps(meta).encode()),
            ):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def samples(count, start=0):
    for number in range(start, start + count):
        colour = list(COLOURS)[number % 3]
        yield (
            f"{number:05d}",
            picture(colour, number),
            {"captions": [f"a {colour} block on the wall", f"a {colour} block"]},
        )


@pytest.fixture
def source(tmp_path):
    write_tar(tmp_path / "source" / "00000.tar", samples(5))
    write_tar(tmp_path / "source" / "00001.tar", samples(4, start=5))
    return tmp_path / "source"


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def config(source, **options):
    return MineConfig(source=str(source), grounder="onnx:counting", **options)


def rows_of(record, home):
    with Store(home).open(record["detections"]["path"]) as file:
        return read_detections(file)


def failures_of(record, home):
    with Store(home).open(record["failures"]["path"]) as file:
        return read_failures(file)


def test_one_row_for_each_phrase_and_candidate_with_nothing_cut(source, home, detector):
    mine = config(source)
    unit = plan(mine, home).pending[0]
    done = []
    record = mine_shard(mine, home, unit, done.append)
    table = rows_of(record, home)
    assert table.schema.equals(SCHEMA)
    assert sum(done) == 5 and record["images"] == 5 and record["captions"] == 10
    first = [row for row in table.to_pylist() if row["key"] == table["key"][0].as_py()]
    told = [(row["caption"], row["phrase"], row["rule"], row["expression"], row["score"]) for row in first]
    score = [float(np.float32(value)) for value in (0.9, 0.2)]
    assert told == [
        (0, "a red block", "expression", "a red block on the wall", score[0]),
        (0, "a red block", "expression", "a red block on the wall", score[1]),
        (0, "the wall", "chunk", "the wall", None),
        (1, "a red block", "expression", "a red block", score[0]),
        (1, "a red block", "expression", "a red block", score[1]),
    ]
    row = first[0]
    assert [row[name] for name in ("x0", "y0", "x1", "y1")] == pytest.approx(BOX)
    assert row["text"][row["span_start"] : row["span_end"]] == "a red block"
    assert (row["width"], row["height"]) == (60, 40) and row["detector"] == detector.digest
    assert (
        row["rules"].startswith("grit-")
        and len(row["image_sha256"]) == 64
        and row["image_sha256"].startswith(row["key"])
    )
    assert record["phrases"] == 15 and record["phrases_with_boxes"] == 10 and record["boxes"] == 20
    assert detector.asked[0] == ["a red block", "the wall"]  # once, though two captions say it


def test_mining_again_asks_nothing(source, home, detector):
    mine = config(source)
    first = mine_all(mine, home, InProcess())
    assert detector.calls == 2 and first["images"] == 9 and first["units_done"] == first["units"] == 2
    assert mine_all(mine, home, InProcess()) == first
    for unit in plan(mine, home).done:
        mine_shard(mine, home, unit)
    assert detector.calls == 2


def test_the_same_data_and_weights_elsewhere_are_the_same_and_anything_that_matters_is_not(
    source, home, detector, tmp_path, monkeypatch
):
    mine = config(source)
    mine_all(mine, home, InProcess())
    moved = tmp_path / "moved"
    source.rename(moved)
    again = config(moved, batch_size=3, chunk=2, device="cpu", error_budget=0.5).replace(
        grounder="onnx:elsewhere"
    )
    assert digest(again) == digest(mine)
    assert mine_all(again, home, InProcess())["images"] == 9 and detector.calls == 2
    for option in (
        {"per_phrase": 3},
        {"max_captions": 1},
        {"dtype": "bfloat16"},
        {"nouns": {"max_phrases": 1}},
    ):
        assert digest(config(moved, **option)) != digest(mine)
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: "f" * 16)
    assert digest(mine.replace(grounder="onnx:other")) != digest(mine)


def test_weights_that_change_under_a_configuration_are_refused_and_a_new_one_takes_them(
    source, home, detector
):
    mine = config(source)
    unit = plan(mine, home).pending[0]
    detector.digest = "f" * 16
    with pytest.raises(ValueError, match="has digest ffffffffffffffff, the configuration was made for 0123"):
        mine_shard(mine, home, unit)
    assert override(mine, ["batch_size=2"]).weights == config(source).weights == "f" * 16


def test_a_saved_configuration_is_read_where_there_is_no_detector(source, home, detector, monkeypatch):
    mine = config(source)
    mine_all(mine, home, InProcess())
    saved = unseal(Store(home).read_bytes(f"{prefix(mine)}/config.json"))
    assert MineConfig.model_validate(saved) == mine

    def absent(spec):
        raise FileNotFoundError(f"{spec} does not exist")

    monkeypatch.setattr(ground, "grounder_digest", absent)
    assert summary(MineConfig.model_validate(saved), home)["images"] == 9
    with pytest.raises(FileNotFoundError, match="onnx:counting does not exist"):
        config(source)


def test_an_image_without_phrases_and_one_without_boxes_are_in_the_table(tmp_path, home, detector):
    write_tar(
        tmp_path / "s" / "0.tar",
        [
            ("a", picture("red"), {"captions": ["It runs."]}),
            ("b", picture("blue"), {"captions": ["a green hat"]}),
        ],
    )
    mine = config(tmp_path / "s")
    table = rows_of(mine_shard(mine, home, plan(mine, home).pending[0]), home).to_pylist()
    assert [(row["phrase"], row["x0"], row["score"]) for row in table] == [
        (None, None, None),
        ("a green hat", None, None),
    ]
    assert table[0]["text"] == "It runs."


def spoiled(source, count):
    """A shard of 10 samples of which `count` have images that cannot be decoded."""
    good = list(samples(10))
    bad = [(name, image[: len(image) // 2], meta) for name, image, meta in good[:count]]
    write_tar(source / "00000.tar", bad + good[count:])


def test_a_bad_image_is_a_failure_and_not_the_end(tmp_path, home, detector):
    spoiled(tmp_path / "s", 2)
    mine = config(tmp_path / "s", error_budget=0.2)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    failures = failures_of(record, home)
    assert record["images"] == 8 and record["failed"] == 2 == len(failures)
    assert {failure.code for failure in failures} == {"undecodable"} and record["failed_by_code"] == {
        "undecodable": 2
    }
    assert len(set(rows_of(record, home)["key"].to_pylist())) == 8
    assert summary(mine, home)["failures_by_code"] == {"undecodable": 2}


def test_limits_are_part_of_the_configuration(source, home, detector):
    strict = config(source, error_budget=1.0, limits=Limits(max_pixels=16))
    record = mine_shard(strict, home, plan(strict, home).pending[0])
    assert record["images"] == 0 and record["failed_by_code"] == {"too_many_pixels": 5}
    assert digest(strict) != digest(config(source))


def test_limits_can_be_raised(tmp_path, home, detector):
    large = picture("red") + bytes(MAX_BYTES)
    write_tar(tmp_path / "s" / "0.tar", [("a", large, {"captions": ["a red block"]})])
    for limits, images in ((Limits(), 0), (Limits(max_bytes=len(large)), 1)):
        mine = config(tmp_path / "s", error_budget=1.0, limits=limits)
        assert mine_shard(mine, home, plan(mine, home).pending[0])["images"] == images


def test_past_the_error_budget_the_shard_is_named_and_nothing_is_visible(tmp_path, home, detector):
    spoiled(tmp_path / "s", 3)
    mine = config(tmp_path / "s", error_budget=0.2)
    with pytest.raises(
        ValueError, match=r"00000\.tar: 3 of 10 samples failed \(undecodable 3\).*20%.*error_budget"
    ):
        mine_shard(mine, home, plan(mine, home).pending[0])
    assert Store(home).list(f"{prefix(mine)}/records") == [] and plan(mine, home).done == []


def test_of_an_older_home_only_units_that_are_read_otherwise_are_mined_again(
    source, home, detector, monkeypatch
):
    name, image, _ = next(samples(1, start=20))
    write_tar(source / "00002.tar", [(name, image, {"captions": ["a red <b>block</b> &amp; a wall"]})])
    mine = config(source)
    manifest = Manifest(Store(home), f"{prefix(mine)}/records")
    for unit in plan(mine, home).pending:
        record = mine_shard(mine, home, unit)
        assert record.pop("reading") == 2
        manifest.forget(unit.name)
        manifest.commit(unit.name, record)  # as an older Hyco left it
    before = {path: Store(home).read_bytes(path) for path in Store(home).list(f"{prefix(mine)}/records")}
    work = plan(mine, home)
    assert [unit.path for unit in work.done] == ["00000.tar", "00001.tar"]
    assert [unit.path for unit in work.pending] == ["00002.tar"]
    for path in Store(home).list(f"{prefix(mine)}/records"):
        assert Store(home).read_bytes(path) == before[path]
    record = mine_shard(mine, home, work.pending[0])
    assert {"a red block & a wall"} == set(rows_of(record, home)["text"].to_pylist())
    monkeypatch.setattr(Source, "read_otherwise", lambda *_: pytest.fail("a unit was looked at again"))
    assert plan(mine, home).pending == []


def test_rows_that_were_never_downloaded_are_counted_and_no_failures(tmp_path, home, detector):
    images = [image if n % 2 else None for n, (_, image, _) in enumerate(samples(10))]
    columns = {
        "jpg": images,
        "caption": [f"a red block {n}" for n in range(10)],
        "status": ["failed_to_download" if image is None else "success" for image in images],
    }
    (tmp_path / "s").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "s" / "00000.parquet")
    mine = config(tmp_path / "s", error_budget=0.0)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    assert (record["images"], record["failed"], record["not_downloaded"]) == (5, 0, 5)
    found = summary(mine, home)
    assert (found["failures"], found["not_downloaded"]) == (0, 5)
    manifest = Manifest(Store(home), f"{prefix(mine)}/records")
    (name,) = manifest.units()
    manifest.forget(name)
    manifest.commit(name, {key: value for key, value in record.items() if key != "not_downloaded"})
    assert summary(mine, home)["not_downloaded"] == 0, "a record of an older Hyco"


@pytest.mark.parametrize(
    ("limits", "spoil"),
    [
        (Limits(max_caption=30), lambda meta, image: ({"captions": [f"a red block {'x' * 40}"]}, image)),
        (Limits(max_text=100), lambda meta, image: ({**meta, "more": "x" * 200}, image)),
        (Limits(max_bytes=700), lambda meta, image: (meta, image + bytes(700))),
        (Limits(max_pixels=16), lambda meta, image: (meta, image)),
    ],
)
def test_the_remedy_named_by_the_error_budget_works(tmp_path, home, detector, limits, spoil):
    rows = [(name, *reversed(spoil(meta, image))) for name, image, meta in samples(4)]
    write_tar(tmp_path / "s" / "0.tar", rows)
    mine = config(tmp_path / "s", limits=limits)
    with pytest.raises(ValueError, match="4 of 4 samples failed") as told:
        mine_shard(mine, home, plan(mine, home).pending[0])
    field, *_ = re.findall(r"--set limits\.(max_\w+)=N", str(told.value))
    assert "error_budget=" not in str(told.value), "that would mine nothing"
    raised = override(mine, [f"limits.{field}=10000000"])
    assert mine_shard(raised, home, plan(raised, home).pending[0])["images"] == 4


def test_the_error_budget_that_a_message_names_is_enough(tmp_path, home, detector):
    spoiled(tmp_path / "s", 3)
    mine = config(tmp_path / "s", error_budget=0.2)
    with pytest.raises(ValueError, match="Fix the shard, or raise error_budget") as told:
        mine_shard(mine, home, plan(mine, home).pending[0])
    (budget,) = re.findall(r"--set (error_budget=[\d.]+)\)", str(told.value))
    raised = override(mine, [budget])
    assert mine_shard(raised, home, plan(raised, home).pending[0])["images"] == 7


def test_a_poisoned_shard_is_named_and_the_others_are_mined(source, home, detector):
    (source / "00000.tar").write_bytes((source / "00001.tar").read_bytes()[:1000])
    mine = config(source)
    with pytest.raises(ValueError, match=r"00000\.tar"):
        mine_all(mine, home, InProcess())
    assert [unit.path for unit in plan(mine, home).done] == ["00001.tar"]


def test_an_image_the_detector_cannot_bear_costs_only_itself(source, home, detector):
    def refuse(images):
        if any((image[-1, -1] == 2).all() for image in images):
            raise MemoryError("one image of bucket (800, 1333) does not fit")

    detector.refuse = refuse
    mine = config(source, error_budget=0.3)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    (failure,) = failures_of(record, home)
    assert failure.stage == "ground" and failure.code == "out_of_memory" and failure.retryable
    assert record["images"] == 4 and detector.calls == 6


class ForeignError(Exception):
    """Of no class that this project knows, as onnxruntime's and spaCy's are."""


def test_whatever_the_detector_raises_costs_only_its_image(source, home, detector):
    def refuse(images):
        if any((image[-1, -1] == 2).all() for image in images):
            raise ForeignError("no\nmore")

    detector.refuse = refuse
    mine = config(source, error_budget=0.3)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    (failure,) = failures_of(record, home)
    assert (failure.code, failure.message) == ("detector", "ForeignError: no") and record["images"] == 4


def test_whatever_the_parser_raises_costs_only_its_caption(source, home, detector, monkeypatch):
    parse = NounExtractor.__call__

    def refuse(self, captions):
        captions = [*captions]
        if any("green" in caption for caption in captions):
            raise ForeignError("[E999] no parse")
        return parse(self, captions)

    monkeypatch.setattr(NounExtractor, "__call__", refuse)
    mine = config(source, error_budget=0.5)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    failures = failures_of(record, home)
    assert record["images"] == 3 and record["captions"] == 6
    assert {(failure.stage, failure.code) for failure in failures} == {("nouns", "unreadable_caption")}
    assert failures[0].message == "ForeignError: [E999] no parse"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [5]),
        ({"chunk": 2}, [2, 2, 1]),
        ({"chunk_pixels": 3 * 60 * 40}, [3, 2]),
        ({"chunk_pixels": 3 * 60 * 40 - 1}, [2, 2, 1]),
        ({"chunk_pixels": 1}, [1, 1, 1, 1, 1]),
    ],
)
def test_images_decoded_at_a_time_are_bounded_by_number_and_by_pixels(source, home, detector, options, sizes):
    seen = []
    detector.refuse = lambda images: seen.append(len(images))
    mine = config(source, **options)
    assert digest(mine) == digest(config(source))
    assert mine_shard(mine, home, plan(mine, home).pending[0])["images"] == 5
    assert seen == sizes


def test_an_image_that_will_not_be_decoded_takes_no_room(source, home, detector):
    """Its header says 9,000 x 9,000: refused, and the others share a chunk as without it."""
    large = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(large, "PNG")
    good = list(samples(4))
    write_tar(source / "00000.tar", [*good[:2], ("large", large.getvalue(), good[0][2]), *good[2:]])
    seen = []
    detector.refuse = lambda images: seen.append(len(images))
    mine = config(source, error_budget=0.5)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    assert seen == [4] and record["failed_by_code"] == {"too_many_pixels": 1}


CAPTIONS = ("собака на траве", "犬の写真", "a red dog", "a photo of a собака", "강아지")


def test_captions_in_other_scripts_become_no_parts_and_are_counted(tmp_path, home):
    """With a detector that gives every phrase boxes, as all of them do."""
    write_tar(
        tmp_path / "s" / "0.tar",
        [(str(n), picture("red", n), {"captions": [text]}) for n, text in enumerate(CAPTIONS)],
    )
    mine = MineConfig(source=str(tmp_path / "s"), grounder=f"transformers:{save_tiny(tmp_path / 'tiny')}")
    found = mine_all(mine, home, InProcess())
    (unit,) = plan(mine, home).done
    record = Manifest(Store(home), f"{prefix(mine)}/records").record(unit.name)
    rows = [row for row in rows_of(record, home).to_pylist() if row["phrase"]]
    boxes = {(row["text"], row["phrase"]) for row in rows if row["x0"] is not None}
    assert boxes and all(phrase.isascii() or "a " in phrase for _, phrase in boxes)
    foreign = {(row["text"], row["phrase"]) for row in rows} - boxes
    assert foreign and all(not phrase.isascii() for _, phrase in foreign), (
        "what was not asked stays in the table"
    )
    assert record["phrases_unknown"] == found["phrases_unknown"] == len(foreign)
    assert record["captions_unknown"] == 3 and record["captions"] == 5
    assert (found["captions_unknown"], found["captions_read"]) == (3, 5)


def test_a_closed_vocabulary_and_an_older_record_count_no_captions(source, home, detector, monkeypatch):
    mine = config(source)
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    assert record["phrases_unknown"] == 0 and record["captions_unknown"] is None
    older = {name: value for name, value in record.items() if not name.endswith("_unknown")}
    unit = plan(mine, home).pending[0]
    assert Manifest(Store(home), f"{prefix(mine)}/records").commit(unit.name, older)
    found = summary(mine, home)
    assert found["units_done"] == 2 and (found["captions_unknown"], found["captions_read"]) == (0, 0)
    assert found["phrases_unknown"] == 0


def test_of_two_workers_on_one_unit_the_first_result_stands(source, home, detector):
    mine = config(source)
    unit = plan(mine, home).pending[0]
    manifest = Manifest(Store(home), f"{prefix(mine)}/records")
    detector.refuse = lambda images: manifest.commit(unit.name, {"images": 5, "winner": True})
    assert mine_shard(mine, home, unit) == {"images": 5, "winner": True}


def test_max_captions_and_phrases(source, home, detector):
    mine = config(source, max_captions=1, nouns={"max_phrases": 1})
    record = mine_shard(mine, home, plan(mine, home).pending[0])
    assert record["captions"] == 5 and record["phrases"] == 5


def test_the_summary_counts_and_the_progress_knows_a_total_after_the_first_unit(source, home, detector):
    heard = []
    found = mine_all(config(source), home, InProcess(), heard.append)
    assert {
        name: found[name] for name in ("images", "captions", "phrases", "boxes", "phrases_with_boxes")
    } == {
        "images": 9,
        "captions": 18,
        "phrases": 27,
        "boxes": 36,
        "phrases_with_boxes": 18,
    }
    assert found["images_per_second"] > 0 and found["failures"] == 0
    assert heard[-1]["done"] == 9 and heard[-1]["total"] in (9, 10) and heard[-1]["finished"]


def test_quality_against_a_labelled_source(tmp_path, home, detector):
    def label(phrase, box):
        return {
            "phrase": phrase,
            "caption": 0,
            "span": [0, len(phrase)],
            "box": box,
            "leaf": "block",
            "color": None,
        }

    red, blue = label("a red block", BOX), label("A blue block", BOX)
    shifted = label("a red block", [0.5, 0.5, 0.9, 0.9])
    write_tar(
        tmp_path / "s" / "0.tar",
        [
            ("a", picture("red"), {"captions": ["a red block"], "objects": [red]}),
            ("b", picture("blue"), {"captions": ["A blue block", "a blue block"], "objects": [blue, blue]}),
            (
                "c",
                picture("red", 1),
                {"captions": ["a red block"], "objects": [shifted]},
            ),  # looked in the wrong place
            ("d", picture("green"), {"captions": ["a green block"], "objects": []}),  # a box nobody labelled
            ("e", picture("green", 1), {"captions": ["a green block"]}),  # not labelled at all: left out
        ],
    )
    mine = config(tmp_path / "s")
    with pytest.raises(ValueError, match=r"0\.tar is not mined"):
        phrase_quality(mine, home)
    mine_all(mine, home, InProcess())
    found = phrase_quality(mine, home)
    counts = {"labelled": 3, "boxes": 4, "right": 2, "images": 4, "labelled_images": 4}
    assert found == {"recall": 2 / 3, "precision": 2 / 4, **counts}
    assert phrase_quality(mine, home, threshold=0.1, nms_iou=None)["boxes"] == 8
    assert phrase_quality(mine, home, threshold=0.95)["precision"] is None


@pytest.mark.parametrize(
    "objects",
    [
        [{"bbox": [0, 0, 9, 9], "category": "dog"}],
        ["dog"],
        [{"phrase": "a red block", "box": None}],
        [{"phrase": None, "box": BOX}],
        [{"phrase": "a red block", "box": [0, 0, 60, 40]}],  # pixels
    ],
)
def test_objects_of_another_form_are_no_labels(tmp_path, home, detector, objects):
    known = {"captions": ["a red block"], "objects": [*objects, {"phrase": "A red block", "box": BOX}]}
    foreign = {"captions": ["a red block"], "objects": objects}
    write_tar(tmp_path / "s" / "0.tar", [("a", picture("red"), known), ("b", picture("red", 1), foreign)])
    mine = config(tmp_path / "s")
    mine_all(mine, home, InProcess())
    found = phrase_quality(mine, home)
    counts = {"labelled": 1, "boxes": 1, "right": 1, "images": 1, "labelled_images": 1}
    assert found == {"recall": 1.0, "precision": 1.0, **counts}


def die_in_the_middle(config, home, unit):
    """Mine a unit and be killed between the objects and the record."""
    commit = Manifest.commit
    Manifest.commit = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    try:
        mine_shard(config, home, unit)
    finally:
        Manifest.commit = commit  # type: ignore[method-assign]


def test_a_killed_worker_leaves_nothing_visible_and_the_unit_is_mined_once_more(source, home, tmp_path):
    mine = MineConfig(
        source=str(source), grounder=f"transformers:{save_tiny(tmp_path / 'tiny')}", per_phrase=2
    )
    victim = plan(mine, home).pending[0]
    with LocalExecutor(1, restarts=1) as executor:
        with pytest.raises(ChildProcessError, match=r"killed by SIGKILL.*00000\.tar"):
            executor.submit(die_in_the_middle, mine, home, victim).result(120)
        store = Store(home)
        assert store.list(f"{prefix(mine)}/records") == []
        assert len(store.list(f"{prefix(mine)}/objects")) == 2  # whole, unnamed, for the garbage collector
        found = mine_all(mine, home, executor)
    assert found["images"] == 9 and len(store.list(f"{prefix(mine)}/records")) == 2
    records = Manifest(store, f"{prefix(mine)}/records").records().values()
    named = {record[part]["path"] for record in records for part in ("detections", "failures")}
    assert named <= set(store.list(f"{prefix(mine)}/objects"))
