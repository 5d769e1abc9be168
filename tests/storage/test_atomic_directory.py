"""A folder that is written whole: durable before it has its name, and nothing left of one that failed."""

import os
import shutil
from pathlib import Path

import pytest

from hyco.storage.checkpoint import Checkpoints
from hyco.storage.files import atomic_directory
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.store import Store


class Disk:
    """What a power cut would leave: the order of fsync and rename, by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Path]] = []
        fsync, rename = os.fsync, Path.rename

        def synced(handle: int) -> None:
            self.events.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink()))
            fsync(handle)

        def renamed(path: Path, target: Path) -> Path:
            self.events.append(("rename", path))
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)

    def assert_durable(self, final: Path) -> None:
        """Each file and folder below `final` was fsynced under its draft's name before the rename, its parent after."""
        at, draft = next(
            (index, path)
            for index, (what, path) in enumerate(self.events)
            if what == "rename" and ".tmp-" in path.name
        )
        before = {path for what, path in self.events[:at] if what == "fsync"}
        after = {path for what, path in self.events[at:] if what == "fsync"}
        assert before >= {draft / path.relative_to(final) for path in (final, *final.rglob("*"))}
        assert final.parent in after


def test_everything_is_fsynced_before_the_rename_and_the_parent_after(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    with atomic_directory(tmp_path / "model") as draft:
        (draft / "weights").write_bytes(b"w" * 100)
        (draft / "more").mkdir()
        (draft / "more" / "deep").write_bytes(b"d")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model/more/deep").read_bytes() == b"d"
    disk.assert_durable(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_registry_and_checkpoints_write_folders_so(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    disk = Disk(monkeypatch)
    kept, _ = Home(tmp_path).registry.keep(tmp_path / "model")
    disk.assert_durable(tmp_path / "registry/models" / kept)
    disk = Disk(monkeypatch)
    saved = Checkpoints(tmp_path / "checkpoints").save(1, {"a": b"a", "b": b"b"})
    disk.assert_durable(saved)


def test_a_failure_leaves_nothing_and_what_was_there_before(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="full"):
        with atomic_directory(tmp_path / "model", replace=True) as draft:
            (draft / "new").write_bytes(b"half")
            raise RuntimeError("full")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_replacing_leaves_the_new_files_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").write_bytes(b"old")
    with atomic_directory(tmp_path / "model", replace=True) as draft:
        (draft / "new").write_bytes(b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "new"]


def test_a_folder_with_files_is_not_replaced_unasked_and_an_empty_one_is_taken_over(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as draft:
        (draft / "first").write_bytes(b"1")
    with pytest.raises(FileExistsError, match="out already exists"):
        with atomic_directory(tmp_path / "out") as draft:
            (draft / "second").write_bytes(b"2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "out"]


def test_collect_deletes_what_a_killed_writer_left(tmp_path, monkeypatch):
    run = tmp_path / "runs/one"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # as if it had been killed there
        with pytest.raises(KeyboardInterrupt):
            with atomic_directory(run / "model") as draft:
                (draft / "weights").write_bytes(b"half")
                raise KeyboardInterrupt
    assert len(list(run.iterdir())) == 1
    assert len(collect(Store(tmp_path), older_than_s=-1)) == 1
    assert list(run.iterdir()) == []
