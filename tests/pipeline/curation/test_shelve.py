"""A shard that is set aside stops nothing, is named wherever a person looks, and comes back when it is repaired."""

import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hyco.flows.__main__ import main
from hyco.pipeline.curation.shelve import shelve, unshelve
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.evaluation.config import EvaluationSpec
from hyco.pipeline.evaluation.held_out import of_source
from hyco.pipeline.integrity.repair import repair
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.mining.mine import mine_all, plan
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.registry.retraining import RetrainConfig, unmined, unpublished
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.columns import USUAL
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.shelf import Shelf
from hyco.storage.store import Store
from tests.factories.mining import config, samples, write_tar
from tests.factories.training import tiny_recipe

PACK = PackConfig(image_size=32, min_area_px=None, gate=QualityConfig(max_failed=None))


@pytest.fixture
def torn(source: Path) -> Path:
    """A source of three shards, the last of which is cut."""
    write_tar(source / "00002.tar", samples(3, start=9))
    whole = (source / "00002.tar").read_bytes()
    (source / "00002.tar").write_bytes(whole[:1500])
    return source


def retrain(source: Path) -> RetrainConfig:
    journey = JourneyConfig(mine=config(source), pack=PACK, recipe=tiny_recipe())
    return RetrainConfig(journey=journey, settle_s=0)


def test_one_bad_shard_stops_everything_until_it_is_set_aside(torn, home, detector) -> None:
    opened, mine = Home(home), config(torn)
    with pytest.raises(ValueError, match=r"00002\.tar"):
        mine_all(mine, opened, InProcess())
    with pytest.raises(ValueError, match="1 of 3 units are not mined"):
        pack(mine, PACK, opened)
    assert [unit.path for unit in unmined(retrain(torn), opened)] == ["00002.tar"]
    entry = shelve(opened, "00002.tar", "cut while it was copied")
    assert (entry.path, entry.source) == ("00002.tar", str(torn))
    found = mine_all(mine, opened, InProcess())
    assert (found["units"], found["images"]) == (2, 9)
    version = pack(mine, PACK, opened)
    assert version.counts["images"] == 9 and len(version.units) == 2
    assert not unmined(retrain(torn), opened) and not unpublished(retrain(torn), opened)
    assert of_source(str(torn), 99, USUAL, opened).listed == 9, "an evaluation goes on too"
    with pytest.raises(ValueError, match=r"00002\.tar"):
        of_source(str(torn), 99)
    before = EvaluationSpec(assess_source=str(torn)).digest(opened)
    unshelve(opened, "00002.tar")
    assert EvaluationSpec(assess_source=str(torn)).digest(opened) != before
    with pytest.raises(ValueError, match="not mined"):
        pack(mine, PACK, opened)


def test_a_repaired_file_and_a_removed_one_leave_the_shelf_by_themselves(torn, home, detector) -> None:
    opened, mine = Home(home), config(torn)
    plan(mine, opened)
    shelve(opened, str(torn / "00002.tar"), "torn")
    assert len(plan(mine, opened).pending) == 2 and opened.shelf.units()
    write_tar(torn / "00002.tar", samples(3, start=9))
    assert len(plan(mine, opened, settle_s=60).pending) == 0 and opened.shelf.units(), (
        "it may still be written to"
    )
    assert len(plan(mine, opened).pending) == 3 and not opened.shelf.units()
    shelve(opened, "00000.tar", "a person's wish")
    (torn / "00000.tar").unlink()
    assert len(plan(mine, opened).pending) == 2 and not opened.shelf.units()


def test_a_shard_that_is_packed_already_leaves_the_next_version_and_returns(source, home, detector) -> None:
    opened, mine = Home(home), config(source)
    mine_all(mine, opened, InProcess())
    first = pack(mine, PACK, opened)
    shelve(opened, "00001.tar", "wrong captions")
    assert unpublished(retrain(source), opened)
    assert pack(mine, PACK, opened).counts["images"] == 5
    unshelve(opened, "00001.tar")
    assert pack(mine, PACK, opened).name == first.name
    assert detector.calls == 2, "nothing was mined again"


def test_what_cannot_be_set_aside_is_said(source, home, detector, tmp_path) -> None:
    opened = Home(home)
    plan(config(source), opened)
    with pytest.raises(ValueError, match="say with --reason"):
        shelve(opened, "00000.tar", " ")
    with pytest.raises(ValueError, match=rf"no shard 7\.tar in {source}"):
        shelve(opened, "7.tar", "why")
    shelve(opened, "00000.tar", "why")
    with pytest.raises(ValueError, match=r"hyco shelve 00000\.tar --back"):
        shelve(opened, "00000.tar", "why")
    with pytest.raises(ValueError, match=r"1\.tar is not set aside; set aside: 00000\.tar"):
        unshelve(opened, "1.tar")
    other = tmp_path / "other"
    write_tar(other / "00000.tar", samples(2, start=50))
    assert shelve(opened, "00000.tar", "why", str(other)).source == str(other)
    with pytest.raises(ValueError, match="ambiguous"):
        unshelve(opened, "00000.tar")
    assert unshelve(opened, str(other / "00000.tar")).source == str(other)


def test_it_is_named_in_status_pages_and_by_verify(source, home, detector, monkeypatch, capsys) -> None:
    def hyco(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["hyco", *words, "--home", home])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        return capsys.readouterr().out

    plan(config(source), Home(home))
    assert "00001.tar" in hyco("shelve", "00001.tar", "--reason", "eyes <b>closed</b>")
    told = f"00001.tar of {source} is set aside"
    assert told in hyco("shelve") and f"shelved  {told}" in hyco("status")
    assert '"reason": "eyes <b>closed</b>"' in hyco("status", "--json")
    page = TestClient(create_app(Home(home)), base_url="http://localhost").get("/").text
    assert "Shards set aside" in page and "eyes &lt;b&gt;closed" in page
    assert not verify(Home(home), None)
    (record,) = Path(home, "shelved").iterdir()
    record.write_bytes(record.read_bytes().replace(b"closed", b"opened"))
    assert [damage.kind for damage in verify(Home(home), None)] == ["shelf record"]
    shelf = Home(home).shelf
    shelf.put("whole", "00009.tar", "/s", "asked for again")
    page = TestClient(create_app(Home(home)), base_url="http://localhost").get("/").text
    assert "unreadable" in page and "asked for again" in page
    shelf.back("whole")
    assert len(repair(Home(home))) == 1 and not verify(Home(home), None)
    assert "shelved" not in hyco("status")


def test_two_who_set_the_same_shard_aside_write_one_record(tmp_path) -> None:
    shelves = [Shelf(Store(tmp_path)), Shelf(Store(tmp_path))]
    assert [shelf.put("abc", "0.tar", "/s", f"reason {n}") for n, shelf in enumerate(shelves)] == [
        True,
        False,
    ]
    assert [entry.reason for entry in shelves[1].entries()] == ["reason 0"]
    assert [shelf.back("abc") for shelf in shelves] == [True, False]


def test_status_of_a_version_without_counts(home, detector, source) -> None:
    """`hyco status` ended with KeyError: 'images'."""
    from hyco.pipeline.ui.status import report
    from hyco.storage.shard import write_shard
    from hyco.storage.versions import shard_ref
    from tests.factories.training import sample

    opened = Home(home)
    made = opened.store.commit("shards/objects", ".tar", lambda file: write_shard(file, [sample(1)]))
    opened.versions.publish({}, {}, {"train": [shard_ref(made, 1, 1)]}, {})
    assert "0 images" in "".join(report(opened))
