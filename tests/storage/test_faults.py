"""Stores that misbehave: what passes is tried again, the rest is one line that names the store or the file."""

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from hyco.storage import faults
from hyco.storage import store as stores
from hyco.storage.manifest import Manifest
from hyco.storage.store import Store
from tests.chaos.faulty_s3 import FaultyS3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    yield
    s3fs.S3FileSystem.clear_instance_cache()  # it keeps endpoint and credentials
    stores._probed().clear()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    made = FaultyS3()
    yield made
    made.close()


@pytest.fixture
def store(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A new bucket of a server that meets faults by `server.script`; the probe is behind it."""
    _credentials(monkeypatch, server.url)
    server.script, server.conditional = [], True
    return _bucket(server)


def _credentials(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # botocore's own tries cover some faults only, and wait long
    }.items():
        monkeypatch.setenv(name, value)


def _bucket(server: FaultyS3) -> Store:
    store = Store(f"s3://b-{uuid.uuid4().hex}", endpoint_url=server.url)
    store.fs.mkdir(store.root)
    assert store.create("first", b"") or not server.conditional
    return store


def write_hello(file):
    file.write(b"hello" * 1000)


def test_a_conflict_is_tried_again(store: Store, server: FaultyS3) -> None:
    server.script = ["conflict"] * 5
    assert store.create("r/a.json", b"mine") and not server.script
    assert store.read_bytes("r/a.json") == b"mine"


@pytest.mark.parametrize("fault", ["before", "after", "cut before", "cut after", "cut body"])
def test_every_write_and_read_survives_a_fault(store: Store, server: FaultyS3, fault: str) -> None:
    for number in range(3):
        server.script = [fault]
        made = store.commit("objects", ".bin", write_hello)
        assert store.sha256(made.path) == made.sha256
        server.script = [fault]
        store.create(f"r/{number}.json", b"{}")
        server.script = [fault]
        store.replace("latest", b"%d" % number)
        server.script = [fault]
        assert store.read_bytes("latest") == b"%d" % number
        server.script = [fault]
        assert store.exists(made.path)
    server.script = [fault]
    assert store.list() == ["first", "latest", made.path, "r/0.json", "r/1.json", "r/2.json"]
    assert not server.script


def test_an_open_file_survives_a_fault_at_each_read(store: Store, server: FaultyS3) -> None:
    data = os.urandom(1 << 20) * 3
    made = store.commit("objects", ".bin", lambda file: file.write(data))
    store.fs.default_block_size, before = 1 << 20, store.fs.default_block_size
    with store.open(made.path) as file:
        for fault in ("before", "after", "cut before", "cut body"):
            server.script = [fault, fault]
            place = file.seek(len(server.script) * 100_000)
            assert file.read(1 << 20) == data[place : place + (1 << 20)]
        server.script = ["before"] * 100
        with pytest.raises(ConnectionError, match=f"store {store.url}: {made.path}: InternalError at each"):
            file.seek(0), file.read()
        server.script = []
        file.seek(0)
        assert file.read() == data
    store.fs.default_block_size = before


def test_a_record_is_its_writers_though_the_answer_was_lost(store: Store, server: FaultyS3) -> None:
    server.script = ["after"]
    records = Manifest(store, "records")
    records.commit("u", {"by": "me"})
    assert records.record("u") == {"by": "me"}
    assert not records.commit("u", {"by": "another"}) and records.record("u") == {"by": "me"}


def test_a_fault_that_does_not_pass_is_worth_another_try_later(store: Store, server: FaultyS3) -> None:
    server.script = ["conflict"] * 100
    with pytest.raises(
        ConnectionError, match=rf"store {store.url}: r/a\.json: ConditionalRequestConflict at each"
    ):
        store.create("r/a.json", b"")
    assert len(server.script) == 100 - faults.TRIES
    server.script = []
    assert store.list("r") == []


def test_a_store_where_every_writer_wins_is_refused(
    server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    _credentials(monkeypatch, server.url)
    server.conditional = False
    store = Store(f"s3://b-{uuid.uuid4().hex}", endpoint_url=server.url)
    store.fs.mkdir(store.root)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"store '{store.url}' ignores If-None-Match: two writers"
        ) as caught:
            store.create("r/a.json", b"")
        assert "\n" not in str(caught.value)
    assert store.list() == []
    server.conditional = True


def test_a_store_is_asked_once_a_process(
    server: FaultyS3, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Store._create_remote
    monkeypatch.setattr(
        Store, "_create_remote", lambda self, path, data: asked.append(path) or real(self, path, data)
    )
    stores._probed().clear()
    again = Store(store.url, endpoint_url=server.url)
    assert again.create("a", b"") and again.create("b", b"") and Store(store.url).create("c", b"")
    assert asked == [stores._PROBE, "a", "b", "c"], "one question where the file of the first is there"


def test_a_filesystem_that_forgets_to_refuse_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling of a server that ignores the header: a library that ignores the mode."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    real = store.fs.pipe_file
    monkeypatch.setattr(store.fs, "pipe_file", lambda path, data, mode="": real(path, data))
    with pytest.raises(ValueError, match="ignores If-None-Match"):
        store.create("a", b"")


@pytest.mark.parametrize(
    "operation", ["list", "read_bytes", "exists", "size", "sha256", "create", "commit", "names"]
)
def test_without_credentials_or_server_one_line_names_the_store(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def run() -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(f"s3://b-{uuid.uuid4().hex}/home")
        arguments = {"list": (), "names": (), "create": ("a", b""), "commit": ("a", ".b", write_hello)}
        with pytest.raises(OSError) as caught:
            getattr(store, operation)(*arguments.get(operation, ("a",)))
        text = str(caught.value)
        assert text.startswith(f"store {store.url}: ") and "\n" not in text
        assert isinstance(caught.value, PermissionError if "no credentials" in text else ConnectionError)
        return text

    _credentials(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    assert "check that the server runs" in run()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    assert "set AWS_ACCESS_KEY_ID" in run()


def test_an_absent_bucket_is_named_by_a_write(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    _credentials(monkeypatch, server.url)
    store = Store("s3://nobody-made-this", endpoint_url=server.url)
    for write in (
        lambda: store.create("a", b""),
        lambda: store.replace("a", b""),
        lambda: store.commit("a", ".b", write_hello),
    ):
        with pytest.raises(FileNotFoundError, match=r"store s3://nobody-made-this: .* create the bucket"):
            write()
    assert store.list() == []


def test_any_other_answer_names_the_store_too(store: Store, server: FaultyS3) -> None:
    server.script = ["refused"] * 5
    for write in (lambda: store.create("a", b""), lambda: store.commit("objects", ".b", write_hello)):
        with pytest.raises(OSError, match=rf"^store {store.url}: \S+: by chance$"):
            write()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("way", ["commit", "create", "replace"])
def test_a_full_disk_names_the_path_and_the_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    store, data = Store(tmp_path / "home"), b"x" * 50_000
    ways = {
        "commit": lambda: store.commit("objects", ".bin", lambda file: file.write(data)),
        "create": lambda: store.create("records/a.json", data),
        "replace": lambda: store.replace("versions/latest", data),
    }
    folder = {"commit": "objects", "create": "records", "replace": "versions"}[way]
    with pytest.raises(
        OSError, match=rf"{tmp_path}/home/{folder}/\S+ needs at least 5\d,\d+ bytes, [\d,]+ bytes are free"
    ):
        ways[way]()
    assert list((tmp_path / "home" / folder).iterdir()) == [], "nothing is left behind"


def test_what_is_buffered_may_fail_as_late_as_on_closing(tmp_path: Path) -> None:
    """/dev/full takes nothing: the error comes when the buffer is flushed, and again when the file is closed."""
    with (
        pytest.raises(OSError, match="No space left on device: /dev/full needs at least 7 bytes"),
        faults.local("/dev/full", lambda: 7),
        Path("/dev/full").open("wb") as file,
    ):
        file.write(b"x")


def test_a_local_fault_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for fault in (
        lambda: store.read_bytes("folder"),
        lambda: store.sha256("folder"),
        lambda: store.create("file/a", b""),
        lambda: store.replace("folder", b""),
    ):
        with pytest.raises(OSError, match=str(tmp_path)):
            fault()
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/objects/"):
        store.commit("objects", ".bin", lambda file: file.write(b"x"))


def test_an_upload_that_failed_is_not_taken_for_the_file_that_was_there(
    store: Store, server: FaultyS3, tmp_path: Path
) -> None:
    (tmp_path / "log").write_bytes(b"new")
    store.replace("log", b"old")
    server.script = ["refused"]
    with pytest.raises(OSError, match="by chance"):
        store.upload(tmp_path / "log", "log")
    assert store.read_bytes("log") == b"old"
    server.script = ["cut after"]
    store.upload(tmp_path / "log", "log")
    assert store.read_bytes("log") == b"new"
