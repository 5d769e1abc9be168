"""Folders that programs open by path: directories of a local home, working copies of a remote one; and their lease."""

import threading
from pathlib import Path

import pytest

from hyco.storage import lease as leases
from hyco.storage.checkpoint import Checkpoints, open_checkpoints
from hyco.storage.folder import Folder
from hyco.storage.lease import Lease
from hyco.storage.store import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/runs/a"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make this process another machine, with an empty cache."""

    def switch(name: str) -> None:
        monkeypatch.setenv("HYCO_CACHE", str(tmp_path / name))

    switch("first")
    return switch


def test_a_local_folder_is_its_directory(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run")
    assert folder.local and folder.path == tmp_path / "run" and folder.name == "run"
    assert folder.create("config.json", b"{}") and not folder.create("config.json", b"[]")
    folder.write("train.json", b'{"a": 1}')
    folder.send("train.json")
    assert folder.fetch("train.json") == tmp_path / "run" and folder.json("train.json") == {"a": 1}
    assert folder.json("absent.json") is None and not folder.exists("absent.json")
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "train.json"]


def test_only_what_differs_travels(url: str, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(url)
    (folder.path / "model").mkdir(parents=True)
    (folder.path / "model" / "a").write_bytes(b"1")
    (folder.path / "model" / ".tmp-x").write_bytes(b"")
    (folder.path / "log").write_bytes(b"1")
    folder.send("model", "log")
    assert folder.store.list() == ["log", "model/a"]
    machine("second")
    other = Folder(url)
    assert other.path != folder.path and (other.fetch("model") / "model" / "a").read_bytes() == b"1"
    assert not (other.path / "log").exists(), "it was not asked for"
    moved: list[str] = []
    opened, upload = Store.open, Store.upload
    monkeypatch.setattr(Store, "open", lambda self, path: moved.append(path) or opened(self, path))
    monkeypatch.setattr(
        Store, "upload", lambda self, source, path: moved.append(path) or upload(self, source, path)
    )
    other.fetch()
    other.send()
    assert moved == ["log"]
    (other.path / "log").write_bytes(b"2")
    other.send("log")
    machine("first")
    assert (folder.fetch("log") / "log").read_bytes() == b"2" and moved == ["log"] * 3


def test_a_folder_of_the_home_has_no_other_files_here(url: str, machine) -> None:
    folder = Folder(url)
    for name in ("model/a", "model/b", "kept"):
        folder.write(name, b"1")
    machine("second")
    other = Folder(url)
    other.fetch("model")
    other.remove("model/b")
    machine("first")
    folder.fetch("model")
    assert sorted(path.name for path in (folder.path / "model").iterdir()) == ["a"]
    assert (folder.path / "kept").exists()


def test_a_lost_right_to_write_stops_every_upload(url: str, machine) -> None:
    folder = Folder(url)

    def refuse() -> None:
        raise ValueError("taken over")

    folder.guard = refuse
    for write in (
        lambda: folder.write("a", b"1"),
        lambda: folder.create("a", b"1"),
        lambda: folder.remove("a"),
        lambda: open_checkpoints(folder).save(1, {"a": b"1"}),
    ):
        with pytest.raises(ValueError, match="taken over"):
            write()
    assert folder.store.list() == []


def steps(checkpoints: Checkpoints) -> list[int]:
    return [step for step, _ in checkpoints.list()]


def test_a_checkpoint_of_a_remote_run_is_found_on_another_machine(url: str, machine) -> None:
    here = open_checkpoints(Folder(url))
    assert here.latest() is None and here.newest_step() == 0
    for step in (10, 20, 30):
        here.save(step, {"state.json": b"%d" % step})
        here.prune(2)
    machine("second")
    there = open_checkpoints(Folder(url))
    assert there.newest_step() == 30 and steps(there) == [], "telling it fetches nothing"
    found = there.latest()
    assert (
        found and found[0] == 30 and (found[1] / "state.json").read_bytes() == b"30" and steps(there) == [30]
    )
    there.save(40, {"state.json": b"40"})
    assert there.prune(2) == [20]
    assert {path.split("/")[1][-2:] for path in Folder(url).store.list("checkpoints")} == {"30", "40"}


def test_a_checkpoint_that_was_not_uploaded_whole_or_is_damaged_is_skipped(url: str, machine) -> None:
    run = Folder(url)
    here = open_checkpoints(run)
    here.save(10, {"state.json": b"10"})
    here.save(20, {"state.json": b"20"})
    Checkpoints(run.path / "checkpoints").save(30, {"state.json": b"30"})  # killed before the upload
    run.store.replace("checkpoints/step-000000040/state.json", b"40")  # killed before its record
    run.store.replace("checkpoints/step-000000020/state.json", b"22")
    told: list[str] = []
    found = here.latest(told.append)
    assert found and found[0] == 10 and steps(here) == [10, 20]
    assert (
        told[0].startswith("the checkpoint of step 20 is damaged")
        and told[1] == "resuming from the checkpoint of step 10"
    )
    here.save(15, {"state.json": b"15"})
    assert here.prune(2) == [20, 40] and steps(here) == [10, 15]
    here.save(20, {"state.json": b"20"})
    assert here.latest(told.append) == (20, run.path / "checkpoints/step-000000020") and len(told) == 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    monkeypatch.setattr(leases, "PATIENCE_S", 0.6)


def test_a_lease_is_held_by_one_machine(url: str, quick: None) -> None:
    store, told = Store(url), []
    with Lease(store, "first") as held:
        held.check()
        with pytest.raises(
            ValueError, match=r"is being trained by another process, process .* on .*: wait for it"
        ):
            Lease(store, "second", told.append).__enter__()
        assert len(told) == 1 and "waiting up to 0.6 s" in told[0]
    with Lease(store, "second", told.append):
        assert len(told) == 1, "one that was given back needs no wait"
    assert len(store.list("lease")) == 1


def test_a_lease_whose_holder_died_is_taken_over(url: str, quick: None) -> None:
    store, told = Store(url), []
    dead = Lease(store, "first")
    dead.__enter__()
    dead._ended.set()  # as kill -9 does
    dead._beating.join()
    with Lease(store, "first", told.append):
        assert told == [], "its own machine knows by the lock of the file system that it is gone"
    dead = Lease(store, "first")
    dead.__enter__()
    dead._ended.set()
    dead._beating.join()
    with Lease(store, "second", told.append) as taken:
        assert len(told) == 1
        with pytest.raises(ValueError, match="was taken over by process"):
            dead.check()
        taken.check()


def test_of_many_that_ask_at_once_one_gets_it(url: str, quick: None) -> None:
    store, got, refused = Store(url), [], []
    leave = threading.Event()

    def ask(place: str) -> None:
        try:
            with Lease(store, place, lambda text: None):
                got.append(place)
                leave.wait(5)
        except ValueError:
            refused.append(place)
            if len(refused) == 4:
                leave.set()

    threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 4
