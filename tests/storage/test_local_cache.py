"""The cache of remote objects: bounded, compared with their hash, shared by processes, and never torn by a kill."""

import contextlib
import fcntl
import hashlib
import io
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from hyco.storage import local_cache
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.local_cache import ObjectCache, cache_limit, cache_root, open_cached
from hyco.storage.objects import DamagedError

KB = 1000


class Far:
    """A remote store of objects that anybody can compute, from every process; it counts what is fetched."""

    url, local, slow = "far://store", False, 0.0

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, path: str) -> io.BytesIO:
        self.opened.append(path)
        return Slow(content(int(path)), self.slow)


class Slow(io.BytesIO):
    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self.seconds = seconds

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(self.seconds)
        return super().read(KB if self.seconds else size)


def content(number: int, size: int = 10 * KB) -> bytes:
    return random.Random(number).randbytes(size)


def name(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def read(cache: ObjectCache, store, number: int, tell=None) -> bytes:
    with cache.open(store, str(number), name(number), 10 * KB, tell) as file:
        return file.read()


def held(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture(autouse=True)
def nothing_compared():
    ObjectCache._intact.clear()


def test_an_object_is_fetched_once(tmp_path: Path) -> None:
    cache, store = ObjectCache(tmp_path, 100 * KB), Far()
    assert (
        read(cache, store, 1)
        == content(1)
        == read(cache, store, 1)
        == read(ObjectCache(tmp_path, 100), store, 1)
    )
    assert store.opened == ["1"] and held(tmp_path) == {name(1): 10 * KB}


def test_a_wrong_byte_in_the_cache_is_told_and_fetched_again(tmp_path: Path) -> None:
    cache, store, told = ObjectCache(tmp_path, 100 * KB), Far(), []
    read(cache, store, 1)
    ObjectCache._intact.clear()  # as in the next process
    data = bytearray(content(1))
    data[5000] ^= 1
    (tmp_path / name(1)).write_bytes(data)
    assert read(cache, store, 1, told.append) == content(1)
    assert store.opened == ["1", "1"] and len(told) == 1
    assert told[0].endswith("the cached copy of 1, has changed since it was fetched: fetching it again")


def test_wrong_bytes_on_the_way_are_fetched_once_more_and_wrong_ones_in_the_home_are_an_error(
    tmp_path: Path,
) -> None:
    cache, store, told = ObjectCache(tmp_path, 100 * KB), Far(), []
    good, bad = Far.open, [True]
    store.open = lambda path: Slow(content(9), 0) if bad and bad.pop() else good(store, path)
    assert read(cache, store, 1, told.append) == content(1) and len(told) == 1
    store.open = lambda path: Slow(content(9), 0)
    with pytest.raises(DamagedError, match=r"2: its sha256 is .*, its record says"):
        read(cache, store, 2, told.append)

    def absent(path: str):
        raise FileNotFoundError(path)

    store.open = absent
    with pytest.raises(DamagedError, match="3: is missing"):
        read(cache, store, 3)
    assert held(tmp_path) == {name(1): 10 * KB}, "no temporary file is left"


def test_the_least_recently_read_go_first_and_the_size_is_bounded(tmp_path: Path) -> None:
    cache, store = ObjectCache(tmp_path, 30 * KB), Far()
    for number in (1, 2, 3):
        read(cache, store, number)
        os.utime(tmp_path / name(number), (number, number))
    read(cache, store, 1)
    read(cache, store, 4)
    assert set(held(tmp_path)) == {name(1), name(3), name(4)}
    with cache.open(store, "3", name(3), 10 * KB) as reader:
        for number in (5, 6, 7):
            read(cache, store, number)
        assert name(3) not in held(tmp_path) and reader.read() == content(3)


def test_the_lock_is_never_removed_to_make_room(tmp_path: Path) -> None:
    cache, store = ObjectCache(tmp_path, 20 * KB), Far()
    read(cache, store, 1)
    lock = (tmp_path / ".lock").stat().st_ino
    for number in (2, 3, 4):
        for one in held(tmp_path):  # read while the next process waited for the lock
            os.utime(tmp_path / one, (2**32, 2**32))
        read(cache, store, number)
    assert (tmp_path / ".lock").stat().st_ino == lock


def test_what_does_not_fit_is_read_without_the_cache(tmp_path: Path) -> None:
    store = Far()
    for limit in (0, 9 * KB):
        assert read(ObjectCache(tmp_path, limit), store, 1) == content(1) and held(tmp_path) == {}
    wrong = ObjectCache(tmp_path, 0)
    store.open = lambda path: Slow(content(9), 0)
    with pytest.raises(DamagedError):
        read(wrong, store, 1)


def _reader(folder: Path, seed: int) -> None:
    cache, store, choose = ObjectCache(folder, 35 * KB), Far(), random.Random(seed)
    for _ in range(60):
        number = choose.randrange(8)
        assert read(cache, store, number) == content(number)


def test_several_processes_share_a_small_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # with nothing of what other tests left in this process
    workers = [context.Process(target=_reader, args=(tmp_path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    most = 0
    while any(worker.is_alive() for worker in workers):
        with contextlib.suppress(FileNotFoundError), (tmp_path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is added while it is counted
            most = max(most, sum(held(tmp_path).values()))
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 10 * KB <= most <= 35 * KB
    assert all(hashlib.sha256((tmp_path / one).read_bytes()).hexdigest() == one for one in held(tmp_path))


def _slow_reader(folder: Path) -> None:
    store = Far()
    store.slow = 0.002
    for number in range(100):
        read(ObjectCache(folder, 60 * KB), store, number)


def test_killed_at_any_instant_no_object_is_torn_and_no_room_is_lost(tmp_path: Path) -> None:
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    kills = torn = 0
    while kills < 12 or (torn == 0 and kills < 200):  # on a busy machine most die before they read
        kills += 1
        worker = context.Process(target=_slow_reader, args=(tmp_path,))
        worker.start()
        time.sleep(chance.uniform(0.01, 0.12))
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        there = held(tmp_path) if tmp_path.exists() else {}
        torn += sum(one.startswith(".tmp-") for one in there)
        for one in (one for one in there if not one.startswith(".tmp-")):
            assert hashlib.sha256((tmp_path / one).read_bytes()).hexdigest() == one
    assert torn, "a kill in the middle of a fetch"
    read(ObjectCache(tmp_path, 60 * KB), Far(), 200)
    assert not [one for one in held(tmp_path) if one.startswith(".tmp-")], (
        "what killed processes left is removed"
    )


def test_where_it_lies_and_how_large_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYCO_CACHE_GB", "0.5")
    assert cache_limit() == 500_000_000
    for wrong in ("much", "-1", "inf"):
        monkeypatch.setenv("HYCO_CACHE_GB", wrong)
        with pytest.raises(
            ValueError, match=r"HYCO_CACHE_GB is .*: give the size of the cache in GB, such as 50"
        ):
            cache_limit()
    monkeypatch.delenv("HYCO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "hyco"


def test_collecting_garbage_forgets_what_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path))
    home = Home(f"memory://{tmp_path.name}")
    made = home.store.commit("shards/objects", ".tar", lambda file: file.write(b"somebody"))
    with open_cached(home.store, made.path, made.sha256, made.size) as file:
        assert file.read() == b"somebody"
    assert (tmp_path / "objects" / made.sha256).is_file()
    home.deletions.erase(made.path, None, {}, ())
    collect(home.store)
    assert not (tmp_path / "objects" / made.sha256).exists() and not home.store.exists(made.path)


def test_a_local_store_needs_no_cache(tmp_path: Path) -> None:
    home = Home(tmp_path)
    made = home.store.commit("shards/objects", ".tar", lambda file: file.write(b"x"))
    with open_cached(home.store, made.path, made.sha256, made.size) as file:
        assert file.name == str(tmp_path / made.path)
    assert local_cache.cache_root() != tmp_path
