import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from hyco.storage.gc import collect
from hyco.storage.manifest import Manifest
from hyco.storage.store import Store
from hyco.storage.store import _sha256 as real_sha256


def writer(data: bytes):
    return lambda file: file.write(data)


def test_commit_names_an_object_by_its_content(store: Store) -> None:
    made = store.commit("a/objects", ".bin", writer(b"hello"))
    assert made.sha256 == hashlib.sha256(b"hello").hexdigest()
    assert made.path == f"a/objects/{made.sha256}.bin"
    assert made.size == store.size(made.path) == 5
    assert store.sha256(made.path) == made.sha256
    with store.open(made.path) as file:
        assert file.read() == b"hello"
    assert store.commit("a/objects", ".bin", writer(b"hello")) == made
    assert store.list("a") == [made.path]
    assert store.names("a/objects") == [made.path.rpartition("/")[2]]


def test_a_large_object_arrives_whole(store: Store) -> None:
    data = os.urandom(1 << 20) * 7 + b"tail"

    def write(file: BinaryIO) -> None:
        for start in range(0, len(data), 1 << 18):
            file.write(data[start : start + (1 << 18)])

    made = store.commit("objects", ".bin", write)
    assert (made.size, made.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.read_bytes(made.path) == data


def test_a_writer_that_seeks_back_is_hashed_as_it_ends(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"????body")
        file.seek(0)
        file.write(b"head")

    made = store.commit("objects", ".bin", write)
    assert store.read_bytes(made.path) == b"headbody"
    assert made.sha256 == hashlib.sha256(b"headbody").hexdigest()
    assert made.size == 8


def test_a_failing_writer_leaves_nothing(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.commit("objects", ".bin", write)
    assert store.list() == []
    if store.local:
        assert list(Path(store.root).rglob(".tmp*")) == []


def test_create_never_overwrites(store: Store) -> None:
    assert store.create("records/a.json", b"first")
    assert not store.create("records/a.json", b"second")
    assert store.read_bytes("records/a.json") == b"first"


def test_replace_does(store: Store) -> None:
    store.replace("latest", b"one")
    store.replace("latest", b"two")
    assert store.read_bytes("latest") == b"two"


def test_absent_files(store: Store) -> None:
    assert not store.exists("nothing")
    assert store.list("nothing") == []
    assert not store.delete("nothing")
    for ask in (store.read_bytes, store.open, store.size, store.sha256):
        with pytest.raises(FileNotFoundError):
            ask("nothing")
    with pytest.raises(FileNotFoundError):
        store.names("nothing")


@pytest.mark.parametrize("path", ["../up", "a/../../up", "/etc/passwd"])
def test_paths_stay_inside(store: Store, path: str) -> None:
    with pytest.raises(ValueError, match="leaves the store"):
        store.read_bytes(path)


def test_collect_spares_what_is_referenced_or_young(store: Store) -> None:
    kept = store.commit("shards/objects", ".tar", writer(b"kept")).path
    lost = store.commit("shards/objects", ".tar", writer(b"lost")).path
    assert store.collect("shards", {kept}, older_than_s=3600) == []
    assert store.collect("shards", {kept}, older_than_s=0) == [lost]
    assert store.list() == [kept]


def test_garbage_is_what_no_record_names(store: Store) -> None:
    kept, inner, lost = (
        store.commit("detections/d/objects", ".parquet", writer(data)).path for data in (b"a", b"b", b"c")
    )
    Manifest(store, "detections/d/records").commit("u", {"detections": {"path": kept}, "more": [[inner]]})
    store.create("detections/d/config.json", b"{}")
    store.replace("versions/latest", b"v-1")
    assert collect(store, older_than_s=0) == [lost]
    assert collect(store, older_than_s=0) == []
    assert len(store.list()) == 5


def test_what_killed_promotions_and_trainings_left_goes_and_nothing_beside_it(tmp_path: Path) -> None:
    left = [
        "registry/models/.tmp-1-abc/model.safetensors",
        "registry/models/.tmp-1-abc/inner/config.json",
        "registry/log/.tmp-2-abc",
        "quarantine/.tmp-3-abc",
        "runs/a/.tmp-model-4/model.safetensors",
        "runs/a/checkpoints/.tmp-5-abc/optimiser.pt",
        "fits/b/.tmp-model-6/model.safetensors",
    ]
    kept = ["registry/models/abc/model.safetensors", "registry/log/000000001.parquet", "quarantine/v-1.json"]
    kept += ["runs/a/log.jsonl", "runs/a/model/x.tmp-1", "runs/b/.tmp-young/old", "source/.tmp-mine/0.tar"]
    for path in (*left, *kept):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "runs/a/.tmp-model-7").mkdir()
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    (tmp_path / "runs/b/.tmp-young/new").touch()  # its writer lives
    removed = collect(Store(tmp_path), older_than_s=3600)
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert there == sorted([*kept, "runs/b/.tmp-young/new"])
    assert len(removed) == 7 and not (tmp_path / "runs/a/.tmp-model-7").exists()
    assert collect(Store(tmp_path), older_than_s=3600) == []


def test_manifest(store: Store) -> None:
    manifest = Manifest(store, "packs/x/records")
    assert manifest.record("00001-abc") is None
    assert manifest.records() == {}
    assert manifest.commit("00001-abc", {"images": 3})
    assert not manifest.commit("00001-abc", {"images": 4})
    assert manifest.commit("00000-abc", {"images": 5})
    assert manifest.records() == {"00000-abc": {"images": 5}, "00001-abc": {"images": 3}}
    assert manifest.units() == ["00000-abc", "00001-abc"]
    assert manifest.forget("00001-abc")
    assert manifest.record("00001-abc") is None
    with pytest.raises(ValueError, match=r"unit name '\.\./x'"):
        manifest.record("../x")


def test_a_damaged_record_is_named(store: Store) -> None:
    store.create("r/u.json", b"{torn")
    with pytest.raises(ValueError, match=r"r/u\.json: it is not JSON"):
        Manifest(store, "r").record("u")


def test_of_many_creators_one_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("r/u.json", b"%d" % i * 5000), range(24)))
    assert sum(won) == 1
    assert store.read_bytes("r/u.json") == b"%d" % won.index(True) * 5000
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["u.json"]


def test_a_filesystem_without_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match=f"{tmp_path} lies on a filesystem without hard links"):
        Store(tmp_path).create("a", b"x")
    assert Store(tmp_path).list() == [] and list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Stands for kill -9: nothing may clean up after it."""


@pytest.mark.parametrize("instruction", range(12))
def test_a_crash_at_any_instruction_shows_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instruction: int
) -> None:
    """Stop a commit followed by its record at every system call in turn; then the retry must succeed."""
    store, left = Store(tmp_path), instruction

    def fragile(name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed(name)
            return real(*args, **options)

        return call

    def work() -> None:
        made = store.commit("objects", ".bin", writer(b"data" * 100))
        Manifest(store, "records").commit("u", {"path": made.path})

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fragile("fsync", os.fsync))
        patch.setattr(os, "link", fragile("link", os.link))
        patch.setattr(Path, "replace", fragile("replace", Path.replace))
        patch.setattr(Path, "unlink", fragile("unlink", Path.unlink))
        patch.setattr("hyco.storage.store._sha256", fragile("sha256", real_sha256))
        try:
            work()
            crashed = False
        except Killed:
            crashed = True
    assert crashed == (instruction < 9), "as many instructions as the protocol has"

    def sound() -> None:
        for path in store.list("objects"):
            assert store.sha256(path) == Path(path).stem
        if record := Manifest(store, "records").record("u"):
            assert store.sha256(record["path"]) == Path(record["path"]).stem

    sound()
    work()
    sound()
    record = Manifest(store, "records").record("u")
    assert record is not None
    store.collect("", {record["path"], "records/u.json"}, older_than_s=0)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.*")) if p.is_file()] == [
        record["path"],
        "records/u.json",
    ]


def test_an_equal_object_committed_anew_is_young(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.commit("objects", ".bin", writer(b"x"))
    os.utime(tmp_path / made.path, (0, 0))
    store.commit("objects", ".bin", writer(b"x"))
    assert store.collect("objects", set(), older_than_s=60) == []


def test_unusable_urls() -> None:
    with pytest.raises(ValueError, match="chains filesystems"):
        Store("simplecache::s3://bucket")
    with pytest.raises(ValueError, match=r"nstall adlfs to access .*, or use a local path or s3://"):
        Store("abfs://container/prefix")
    with pytest.raises(ValueError, match="Protocol not known"):
        Store("nonsense://x")
    with pytest.raises(ValueError, match="cannot commit atomically"):
        Store("http://localhost/x").create("a", b"")
