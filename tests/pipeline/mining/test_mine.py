"""Mining with a detector that counts its calls: what is kept and what is never done twice."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hyco.pipeline.config import digest, override
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine
from hyco.pipeline.mining.mine import MineConfig, mine_all, mine_shard, plan, results, summary
from hyco.pipeline.runtime.executor import InProcess, LocalExecutor
from hyco.pipeline.sources.source import Source
from hyco.storage.detections import SCHEMA
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.sealed import unseal
from hyco.storage.store import Store
from tests.factories.grounder import save_tiny
from tests.factories.mining import BOX, config, picture, rows_of, samples, write_tar


def test_one_row_for_each_phrase_and_candidate_with_nothing_cut(source, home, detector):
    mine = config(source)
    unit = plan(mine, Home(home)).pending[0]
    done = []
    record = mine_shard(mine, Home(home), unit, done.append)
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
    first = mine_all(mine, Home(home), InProcess())
    assert detector.calls == 2 and first["images"] == 9 and first["units_done"] == first["units"] == 2
    assert mine_all(mine, Home(home), InProcess()) == first
    for unit in plan(mine, Home(home)).done:
        mine_shard(mine, Home(home), unit)
    assert detector.calls == 2


def test_the_same_data_and_weights_elsewhere_are_the_same_and_anything_that_matters_is_not(
    source, home, detector, tmp_path, monkeypatch
):
    mine = config(source)
    mine_all(mine, Home(home), InProcess())
    moved = tmp_path / "moved"
    source.rename(moved)
    again = config(moved, batch_size=3, chunk=2, device="cpu", error_budget=0.5).replace(
        grounder="onnx:elsewhere"
    )
    assert digest(again) == digest(mine)
    assert mine_all(again, Home(home), InProcess())["images"] == 9 and detector.calls == 2
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
    unit = plan(mine, Home(home)).pending[0]
    detector.digest = "f" * 16
    with pytest.raises(ValueError, match="has digest ffffffffffffffff, the configuration was made for 0123"):
        mine_shard(mine, Home(home), unit)
    assert override(mine, ["batch_size=2"]).weights == config(source).weights == "f" * 16


def test_a_saved_configuration_is_read_where_there_is_no_detector(source, home, detector, monkeypatch):
    mine = config(source)
    mine_all(mine, Home(home), InProcess())
    saved = unseal(Store(home).read_bytes(results(mine, Home(home)).config))
    assert MineConfig.model_validate(saved) == mine

    def absent(spec):
        raise FileNotFoundError(f"{spec} does not exist")

    monkeypatch.setattr(ground, "grounder_digest", absent)
    assert summary(MineConfig.model_validate(saved), Home(home))["images"] == 9
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
    table = rows_of(mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0]), home).to_pylist()
    assert [(row["phrase"], row["x0"], row["score"]) for row in table] == [
        (None, None, None),
        ("a green hat", None, None),
    ]
    assert table[0]["text"] == "It runs."


def test_of_an_older_home_only_units_that_are_read_otherwise_are_mined_again(
    source, home, detector, monkeypatch
):
    name, image, _ = next(samples(1, start=20))
    write_tar(source / "00002.tar", [(name, image, {"captions": ["a red <b>block</b> &amp; a wall"]})])
    mine = config(source)
    manifest = results(mine, Home(home))
    for unit in plan(mine, Home(home)).pending:
        record = mine_shard(mine, Home(home), unit)
        assert record.pop("reading") == 3
        manifest.forget(unit.name)
        manifest.commit(unit.name, record)  # as an older Hyco left it
    before = {
        path: Store(home).read_bytes(path) for path in Store(home).list(results(mine, Home(home)).prefix)
    }
    work = plan(mine, Home(home))
    assert [unit.path for unit in work.done] == ["00000.tar", "00001.tar"]
    assert [unit.path for unit in work.pending] == ["00002.tar"]
    for path in Store(home).list(results(mine, Home(home)).prefix):
        assert Store(home).read_bytes(path) == before[path]
    record = mine_shard(mine, Home(home), work.pending[0])
    assert {"a red block & a wall"} == set(rows_of(record, home)["text"].to_pylist())
    monkeypatch.setattr(Source, "read_otherwise", lambda *_: pytest.fail("a unit was looked at again"))
    assert plan(mine, Home(home)).pending == []


CAPTIONS = ("собака на траве", "犬の写真", "a red dog", "a photo of a собака", "강아지")


def test_captions_in_other_scripts_become_no_parts_and_are_counted(tmp_path, home):
    """With a detector that gives every phrase boxes, as all of them do."""
    write_tar(
        tmp_path / "s" / "0.tar",
        [(str(n), picture("red", n), {"captions": [text]}) for n, text in enumerate(CAPTIONS)],
    )
    mine = MineConfig(source=str(tmp_path / "s"), grounder=f"transformers:{save_tiny(tmp_path / 'tiny')}")
    found = mine_all(mine, Home(home), InProcess())
    (unit,) = plan(mine, Home(home)).done
    record = results(mine, Home(home)).record(unit.name)
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
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    assert record["phrases_unknown"] == 0 and record["captions_unknown"] is None
    older = {name: value for name, value in record.items() if not name.endswith("_unknown")}
    unit = plan(mine, Home(home)).pending[0]
    assert results(mine, Home(home)).commit(unit.name, older)
    found = summary(mine, Home(home))
    assert found["units_done"] == 2 and (found["captions_unknown"], found["captions_read"]) == (0, 0)
    assert found["phrases_unknown"] == 0


def test_of_two_workers_on_one_unit_the_first_result_stands(source, home, detector):
    mine = config(source)
    unit = plan(mine, Home(home)).pending[0]
    manifest = results(mine, Home(home))
    detector.refuse = lambda images: manifest.commit(unit.name, {"images": 5, "winner": True})
    assert mine_shard(mine, Home(home), unit) == {"images": 5, "winner": True}


def test_max_captions_and_phrases(source, home, detector):
    mine = config(source, max_captions=1, nouns={"max_phrases": 1})
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    assert record["captions"] == 5 and record["phrases"] == 5


def test_the_summary_counts_and_the_progress_knows_a_total_after_the_first_unit(source, home, detector):
    heard = []
    found = mine_all(config(source), Home(home), InProcess(), heard.append)
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


def die_in_the_middle(config, home, unit):
    """Mine a unit and be killed between the objects and the record."""
    commit = Manifest.commit
    Manifest.commit = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    try:
        mine_shard(config, Home(home), unit)
    finally:
        Manifest.commit = commit  # type: ignore[method-assign]


def test_a_killed_worker_leaves_nothing_visible_and_the_unit_is_mined_once_more(source, home, tmp_path):
    mine = MineConfig(
        source=str(source), grounder=f"transformers:{save_tiny(tmp_path / 'tiny')}", per_phrase=2
    )
    victim = plan(mine, Home(home)).pending[0]
    with LocalExecutor(1, restarts=1) as executor:
        with pytest.raises(ChildProcessError, match=r"killed by SIGKILL.*00000\.tar"):
            executor.submit(die_in_the_middle, mine, home, victim).result(120)
        store = Store(home)
        assert store.list(results(mine, Home(home)).prefix) == []
        assert (
            len(store.list(results(mine, Home(home)).objects)) == 2
        )  # whole, unnamed, for the garbage collector
        found = mine_all(mine, Home(home), executor)
    assert found["images"] == 9 and len(store.list(results(mine, Home(home)).prefix)) == 2
    records = Manifest(store, results(mine, Home(home)).prefix).records().values()
    named = {record[part]["path"] for record in records for part in ("detections", "failures")}
    assert named <= set(store.list(results(mine, Home(home)).objects))


def test_threads_of_one_process_load_one_after_the_other(source, home, detector, monkeypatch):
    """Two units in a process share its models; two loads at once leave transformers' tensors without data."""
    asked, inside = config(source), threading.Semaphore()
    opened = ground.open_detector

    def alone(*options):
        assert inside.acquire(blocking=False), "two models are being loaded at once"
        time.sleep(0.2)
        inside.release()
        return opened(*options)

    monkeypatch.setattr(ground, "open_detector", alone)
    mine._open_detector.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        done = [
            pool.submit(mine_shard, asked, Home(home), unit)
            for unit in plan(asked, Home(home)).pending[:2] * 2
        ]
    assert all(future.result()["images"] for future in done)
