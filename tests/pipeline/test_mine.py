"""Mining with a detector that counts its calls: what is kept, what is never done twice, what a bad sample costs."""

import io
import json
import os
import signal
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_dino import save_tiny

from models.grounding.detector import Detection
from pipeline import ground
from pipeline import mine as mining
from pipeline.config import digest, override
from pipeline.engine import InProcess, LocalEngine
from pipeline.images import MAX_BYTES
from pipeline.mine import MineConfig, mine_all, mine_shard, phrase_quality, plan, prefix, summary
from pipeline.rows import Limits
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
    assert found == {"recall": 2 / 3, "precision": 2 / 4, "labelled": 3, "boxes": 4, "right": 2, "images": 4}
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
    assert found == {"recall": 1.0, "precision": 1.0, "labelled": 1, "boxes": 1, "right": 1, "images": 1}


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
    with LocalEngine(1, restarts=1) as engine:
        with pytest.raises(ChildProcessError, match=r"killed by SIGKILL.*00000\.tar"):
            engine.submit(die_in_the_middle, mine, home, victim).result(120)
        store = Store(home)
        assert store.list(f"{prefix(mine)}/records") == []
        assert len(store.list(f"{prefix(mine)}/objects")) == 2  # whole, unnamed, for the garbage collector
        found = mine_all(mine, home, engine)
    assert found["images"] == 9 and len(store.list(f"{prefix(mine)}/records")) == 2
    records = Manifest(store, f"{prefix(mine)}/records").records().values()
    named = {record[part]["path"] for record in records for part in ("detections", "failures")}
    assert named <= set(store.list(f"{prefix(mine)}/objects"))
