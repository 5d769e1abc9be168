"""Only what is new meets the detector: images of re-written shards, images met twice, captions under other rules."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hyco.models.grounding.dino import DinoDetector
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig, mine_all, mine_shard, plan, results
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.boxes import preset
from hyco.pipeline.sources.columns import Columns
from hyco.storage.home import Home
from tests.factories.grounder import save_tiny
from tests.factories.mining import config, picture, rows_of, samples, write_tar


def mine(source, home, **options) -> dict[str, Any]:
    """Mine as a new process does, and return the records by path."""
    mining._known.cache_clear()
    made = config(source, **options)
    mine_all(made, Home(home), InProcess())
    mined = results(made, Home(home))
    return {unit.path: mined.record(unit.name) for unit in plan(made, Home(home)).done}


def from_scratch(source, home, record, **options):
    """The rows that a home without any earlier result gets of the same unit."""
    (again,) = [one for one in mine(source, f"{home}-2", **options).values() if one["unit"] == record["unit"]]
    return rows_of(again, f"{home}-2")


def test_a_shard_that_is_written_anew_with_n_new_samples_mines_n(source, home, detector):
    mine(source, home)
    asked = len(detector.asked)
    write_tar(source / "00000.tar", [*samples(5), *samples(3, start=30)])
    record = mine(source, home)["00000.tar"]
    assert len(detector.asked) - asked == 3 == record["images"] - record["reused"] and record["images"] == 8
    assert rows_of(record, home).equals(from_scratch(source, home, record)), "as if all were new"


def test_the_same_image_in_another_shard_is_mined_once_whatever_its_neighbours(source, home, detector):
    write_tar(source / "00002.tar", [*samples(2, start=3), *samples(2, start=5), *samples(1, start=30)])
    record = mine(source, home)["00002.tar"]
    assert len(detector.asked) == 10 and record["reused"] == 4
    assert rows_of(record, home).equals(from_scratch(source, home, record))


def test_phrases_decide_and_not_the_words_around_them(tmp_path, home, detector):
    source, image = tmp_path / "s", picture("red")
    write_tar(source / "0.tar", [("a", image, {"captions": ["a red block on the wall"]})])
    mine(source, home)
    write_tar(source / "1.tar", [("a", image, {"captions": ["A red block hangs on the wall."]})])
    record = mine(source, home)["1.tar"]
    assert len(detector.asked) == 1 and record["reused"] == 1
    assert rows_of(record, home).equals(from_scratch(source, home, record))
    write_tar(source / "2.tar", [("a", image, {"captions": ["a red block on the wall", "a blue block"]})])
    record = mine(source, home)["2.tar"]
    assert record["reused"] == 0 and detector.asked[-1] == ["a red block", "the wall", "a blue block"]


def test_other_rules_ground_exactly_the_captions_whose_phrases_changed(tmp_path, home, detector):
    source = tmp_path / "s"
    texts = ["a red block", "a red block on the wall", "a red block in the air", "a red block and a wall"]
    for unit in range(2):
        rows = [(str(n), picture("red", 10 * unit + n), {"captions": [text]}) for n, text in enumerate(texts)]
        write_tar(source / f"{unit}.tar", rows)
    mine(source, home)
    detector.asked.clear()
    words = Path(mining.__file__).with_name("abstract_nouns.txt").read_text() + "\nwall\n"
    (tmp_path / "nouns.txt").write_text(words)
    options = {"nouns": {"abstract": str(tmp_path / "nouns.txt")}}
    records = mine(source, home, **options)
    assert detector.asked == [["a red block"]] * 4, "the two of each shard that say wall"
    assert [record["reused"] for record in records.values()] == [2, 2]
    for record in records.values():
        assert rows_of(record, home).equals(from_scratch(source, home, record, **options))
        assert set(rows_of(record, home)["rules"].to_pylist()) == {record["rules"]}


def test_another_threshold_asks_the_detector_for_nothing(source, home, detector):
    mine(source, home)
    asked = len(detector.asked)
    for threshold in (0.3, 0.1):
        options = PackConfig(image_size=16, threshold=threshold, min_area_px=None)
        pack(config(source), options, Home(home))
    assert len(detector.asked) == asked


@pytest.mark.parametrize("option", [{"per_phrase": 3}, {"dtype": "bfloat16"}])
def test_what_another_precision_or_rank_cut_found_is_not_taken_over(source, home, detector, option):
    mine(source, home)
    mine(source, home, **option)
    assert len(detector.asked) == 18


def test_what_another_detector_found_is_not_taken_over(source, home, detector):
    mine(source, home)
    detector.digest = "f" * 16
    mining._open_detector.cache_clear()
    records = mine(source, home)
    assert len(detector.asked) == 18 and {record["reused"] for record in records.values()} == {0}


def test_what_is_mined_under_other_limits_of_captions_is_taken_over(source, home, detector):
    mine(source, home)
    asked = len(detector.asked)
    records = mine(source, home, max_captions=1)
    assert len(detector.asked) == asked, "the second caption has no phrase of its own"
    for record in records.values():
        assert rows_of(record, home).equals(from_scratch(source, home, record, max_captions=1))


def test_a_home_of_an_older_hyco_is_indexed_when_there_is_something_to_mine(source, home, detector):
    mine(source, home)
    shutil.rmtree(Path(home) / "cache")  # it had none
    asked = len(detector.asked)
    write_tar(source / "00000.tar", [*samples(5), *samples(1, start=30)])
    mine(source, home)
    assert len(detector.asked) - asked == 1


def test_a_worker_that_was_killed_before_its_index_entry_loses_nothing(source, home, detector, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(mining.KnownDetections, "add", lambda *_: None)
        mine(source, home)
    asked = len(detector.asked)
    write_tar(source / "00001.tar", [*samples(4, start=5), *samples(1, start=30)])
    mine(source, home)
    assert len(detector.asked) - asked == 1


def test_workers_learn_what_others_have_found_meanwhile(source, home, detector):
    write_tar(source / "00002.tar", [*samples(5), *samples(1, start=30)])
    made = config(source)
    first, _, third = plan(made, Home(home)).pending
    one = mining._known(home, made.model_dump_json())
    one.look()  # a worker that began earlier
    mining._known.cache_clear()
    mine_shard(made, Home(home), first)
    one.look()
    wanted = [
        row["image_sha256"] for row in rows_of(results(made, Home(home)).record(first.name), home).to_pylist()
    ]
    assert one.find(detector.digest, [(wanted[0], ["a red block", "the wall"])]) != [None]
    assert one.find(detector.digest, [(wanted[0], ["a red block"])]) == [None]
    assert mine_shard(made, Home(home), third)["reused"] == 5


@pytest.mark.parametrize("harm", ["flipped", "deleted"])
def test_detections_that_are_damaged_or_gone_are_found_again(source, home, detector, harm):
    record = mine(source, home)["00000.tar"]
    path = Path(home) / record["detections"]["path"]
    data = path.read_bytes()
    path.write_bytes(data[:80] + bytes([data[80] ^ 1]) + data[81:]) if harm == "flipped" else path.unlink()
    asked = len(detector.asked)
    write_tar(source / "00000.tar", [*samples(5), *samples(1, start=30)])
    record = mine(source, home)["00000.tar"]
    assert len(detector.asked) - asked == 6 and record["reused"] == 0
    assert rows_of(record, home).equals(from_scratch(source, home, record))


@pytest.mark.parametrize("older", [False, True], ids=["ours", "an older Hyco's"])
def test_phrases_of_unknown_tokens_get_no_box_and_are_counted(tmp_path, home, monkeypatch, older):
    """With a real detector: its tokenizer is asked about the words, the network about nothing."""
    source = tmp_path / "s"
    texts = ("a red dog", "犬の写真", "a photo of a собака")
    write_tar(source / "0.tar", [(str(n), picture("red", n), {"captions": [t]}) for n, t in enumerate(texts)])
    made = MineConfig(source=str(source), grounder=f"transformers:{save_tiny(tmp_path / 'tiny')}")

    def record(home):
        mine_all(made, Home(home), InProcess())
        names = {unit.name for unit in plan(made, Home(home)).done}
        return next(one for one in results(made, Home(home)).records().values() if one["unit"] in names)

    with monkeypatch.context() as patch:
        if older:  # it gave them boxes of whatever the image shows
            patch.setattr(DinoDetector, "_unknown", lambda *_: False)
        first = record(home)
    (source / "0.tar").write_bytes((source / "0.tar").read_bytes() + bytes(10240))  # the same samples
    second, scratch = record(home), record(f"{home}-2")
    assert (first["reused"], second["reused"], scratch["reused"]) == (0, 3, 0)
    assert (first["boxes"] > second["boxes"]) is older and second["phrases_unknown"] > 0
    counts = ("images", "captions", "phrases", "boxes", "phrases_unknown", "captions_unknown")
    assert [second[name] for name in counts] == [scratch[name] for name in counts]
    ours, theirs = rows_of(second, home), rows_of(scratch, f"{home}-2")
    if older:  # its prompts were longer, and their rounding another
        boxed = [
            [row["phrase"] for row in rows.to_pylist() if row["x0"] is not None] for rows in (ours, theirs)
        ]
        assert boxed[0] == boxed[1]
    else:
        assert ours.equals(theirs)


def test_the_boxes_of_a_source_are_nobodys_find(tmp_path, home, detector):
    """Of a mixture, what the detector found is taken over, and the boxes are those that the source has now."""
    source, mixed = tmp_path / "s", {"columns": Columns(boxes=preset("objects"))}

    def write(name, x1):
        label = {"phrase": "a red block", "box": [0.1, 0.1, x1, 0.9]}
        write_tar(source / name, [("a", picture("red"), {"captions": ["a red block"], "objects": [label]})])

    write("0.tar", 0.5)
    mine(source, home, **mixed)
    write("1.tar", 0.7)
    record = mine(source, home, **mixed)["1.tar"]
    assert record["reused"] == 1 and rows_of(record, home)["x1"].to_pylist()[-1] == pytest.approx(0.7)
    assert rows_of(record, home).equals(from_scratch(source, home, record, **mixed))
