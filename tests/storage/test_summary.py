"""Summaries of records and versions: what they tell is what the records say, whatever happened since the last look."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hyco.storage import summary
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import DamagedError
from hyco.storage.sealed import seal
from hyco.storage.store import Store
from hyco.storage.summary import total
from hyco.storage.version_heads import heads, latest, quarantined, readable, shard_keys
from hyco.storage.versions import ShardRef


@pytest.fixture(params=["local", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(tmp_path / "home" if request.param == "local" else f"memory://summary-{tmp_path.name}")


def record(mined: UnitResults, unit: str, images: int, **more: object) -> dict[str, Any]:
    """Commit a mining record with its object."""
    made = mined.store.commit(mined.objects, ".parquet", lambda file: file.write(f"{unit} {images}".encode()))
    held = {"unit": unit, "images": images, "failed": 1, "detections": {"path": made.path}, **more}
    assert mined.commit(unit, held)
    return held


def told(mined: UnitResults) -> dict[str, int]:
    rows = mined.summary()
    return dict(zip(rows["unit"].to_pylist(), rows["images"].to_pylist(), strict=True))


def read_again(monkeypatch: pytest.MonkeyPatch, mined: UnitResults) -> list[str]:
    """The units whose records are read at one look."""
    read: list[str] = []
    real = UnitResults.record
    with monkeypatch.context() as patch:
        patch.setattr(UnitResults, "record", lambda self, unit: read.append(unit) or real(self, unit))
        mined.summary()
    return sorted(read)


def test_only_records_that_are_new_are_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    mined = home.detections("d" * 16)
    assert told(mined) == {}
    for number in range(5):
        record(mined, f"u{number}", number)
    assert read_again(monkeypatch, mined) == [f"u{number}" for number in range(5)]
    record(mined, "u5", 5)
    assert read_again(monkeypatch, mined) == ["u5"] and read_again(monkeypatch, mined) == []
    assert told(mined) == {f"u{number}": number for number in range(6)}
    assert total(mined.summary(), "failed") == 6


def test_a_record_that_went_or_was_made_again_is_told_as_it_is(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined = home.detections("d" * 16)
    for number in range(3):
        record(mined, f"u{number}", number)
    told(mined)
    mined.forget("u0")
    mined.forget("u1")
    record(mined, "u1", 100)
    assert told(mined) == {"u1": 100, "u2": 2}
    for path in home.store.list("cache"):
        home.store.delete(path)
    assert told(mined) == {"u1": 100, "u2": 2}


def test_a_folder_that_has_not_changed_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mined, listed = Home(tmp_path / "home").detections("d" * 16), list[str]()
    real, marks = time.time, Store.marks
    monkeypatch.setattr(summary.time, "time", lambda: real() + 60)
    monkeypatch.setattr(Store, "marks", lambda self, *a, **k: listed.append("") or marks(self, *a, **k))

    def look() -> tuple[dict[str, int], int]:
        listed.clear()
        return told(mined), len(listed)

    for number in range(3):
        record(mined, f"u{number}", number)
    assert look() == ({"u0": 0, "u1": 1, "u2": 2}, 1) and look() == ({"u0": 0, "u1": 1, "u2": 2}, 0)
    mined.forget("u1")
    record(mined, "u1", 7)
    assert look() == ({"u0": 0, "u1": 7, "u2": 2}, 1) and look()[1] == 0
    record(mined, "u3", 3)
    mined.forget("u0")
    assert look() == ({"u1": 7, "u2": 2, "u3": 3}, 1) and look()[1] == 0
    segment = max(mined.store.list("cache"), key=mined.store.size)
    mined.store.delete(segment)  # rows are missing, though the folder is what it was
    assert look() == ({"u1": 7, "u2": 2, "u3": 3}, 1) and look()[1] == 0
    monkeypatch.setattr(summary.time, "time", lambda: Path(mined.store.path(mined.prefix)).stat().st_mtime)
    assert look() == ({"u1": 7, "u2": 2, "u3": 3}, 1), (
        "something could still happen in the same tick of the clock"
    )


def test_units_whose_objects_are_gone_are_not_done(home: Home) -> None:
    mined = home.detections("d" * 16)
    held = [record(mined, f"u{number}", number) for number in range(3)]
    home.store.delete(held[1]["detections"]["path"])
    assert sorted(mined.whole_summary()["unit"].to_pylist()) == ["u0", "u2"] == sorted(mined.whole())
    assert mined.summary().num_rows == 3


def test_a_folder_of_objects_that_has_not_changed_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "SETTLED_S", 0.0)
    mined = Home(tmp_path / "home").detections("d" * 16)
    held = [record(mined, f"u{number}", number) for number in range(3)]
    assert mined.whole_summary().num_rows == 3
    time.sleep(0.05)  # a tick of the clock
    with monkeypatch.context() as patch:
        patch.setattr(Store, "list", None)
        assert mined.whole_summary().num_rows == 3
    mined.store.delete(held[1]["detections"]["path"])
    assert sorted(mined.whole_summary()["unit"].to_pylist()) == ["u0", "u2"]
    time.sleep(0.05)
    assert sorted(mined.whole_summary()["unit"].to_pylist()) == ["u0", "u2"], "nothing is noted of a gap"
    record(mined, "u3", 3)
    assert sorted(mined.whole_summary()["unit"].to_pylist()) == ["u0", "u2", "u3"]


def test_a_damaged_record_is_named_when_it_is_first_read(tmp_path: Path) -> None:
    mined = Home(tmp_path / "home").detections("d" * 16)
    record(mined, "u0", 1)
    path = Path(mined.store.path(mined.path("u0")))
    path.write_bytes(path.read_bytes().replace(b'"images": 1', b'"images": 7'))
    record(mined, "u1", 2)
    for _ in range(2):  # also where the table holds the others
        with pytest.raises(DamagedError, match=r"u0\.json: it was changed since it was written"):
            mined.summary()
        rows, damaged = mined.readable_summary()
        assert rows["unit"].to_pylist() == ["u1"] and [error.path for error in damaged] == [mined.path("u0")]


def test_records_of_an_older_hyco_lack_counts_and_count_nothing(home: Home) -> None:
    mined = home.detections("d" * 16)
    home.store.replace(mined.path("old"), json.dumps({"images": 3, "failed": 0}).encode())
    record(mined, "new", 4, reused=2, phrases_unknown=1)
    rows = mined.summary()
    assert (total(rows, "images"), total(rows, "reused"), total(rows, "phrases_unknown")) == (7, 2, 1)
    assert rows["reused"].null_count == 1 and set(rows["reading"].to_pylist()) == {1}


def version(home: Home, shards: int) -> str:
    refs = []
    for number in range(shards):
        made = home.store.commit("shards/objects", ".tar", lambda file, n=number: file.write(bytes([n])))
        refs.append(ShardRef(made.path, made.sha256, made.size, 10 + number, 30))
    digests = {"mine": "m", "pack": "p"}
    return home.versions.publish({"mine": {"source": "s"}}, digests, {"train": refs}, {"images": shards}).name


def test_heads_are_the_versions_without_their_shards(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [version(home, shards) for shards in (1, 3)]
    whole = home.versions.list()
    for look in range(2):
        known = heads(home.versions)
        for head, full in zip(known, whole, strict=True):
            assert (
                head.version.config == full.config and head.version.source == "s" and not head.version.shards
            )
            assert (head.name, head.version.parent, head.version.counts) == (
                full.name,
                full.parent,
                full.counts,
            )
            assert head.train.to_pylist() == shard_keys([ref.path for ref in full.shards["train"]])
            assert head.samples.to_pylist() == [ref.samples for ref in full.shards["train"]]
        assert latest(home.versions, known) == names[1] and quarantined(home.versions) == set()
        if look == 0:
            home.versions.quarantine(names[0], [])
            assert quarantined(home.versions) == {names[0]}
            home.versions.lift(names[0])
            monkeypatch.setattr(type(home.versions), "load", None)  # a known version is not read again
    Store(home.url).delete("versions/latest")
    assert latest(home.versions, heads(home.versions)) is None


def test_a_changed_version_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    name, other = version(home, 2), version(home, 1)
    heads(home.versions)
    path = Path(home.store.path(f"versions/{name}.json"))
    path.write_bytes(seal({"name": name}))
    with pytest.raises(DamagedError, match="is not a dataset version"):
        heads(home.versions)
    known, damaged = readable(home.versions)
    assert [head.name for head in known] == [other] and list(damaged) == [name]
