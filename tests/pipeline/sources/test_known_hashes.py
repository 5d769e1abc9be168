"""Hashes of a source that the home keeps: an unchanged source is listed without a byte of it being read."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hyco.pipeline.sources import known_hashes
from hyco.pipeline.sources.source import look_again, open_source
from hyco.storage.store import Store
from tests.factories.files import noise, tarred


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed, in order; a new process knows none of them."""
    hashed: list[str] = []

    def hash_file(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    real = known_hashes.sha256_of
    monkeypatch.setattr(known_hashes, "sha256_of", hash_file)
    monkeypatch.setattr(Store, "open", lambda *_: pytest.fail("a file of the source was opened"))
    return hashed


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(3):
        path = tarred(tmp_path / "source" / f"{number}.tar", {"a.jpg": noise(number), "a.txt": "a block"})
        age(path)
    return tmp_path / "source"


@pytest.fixture
def home(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def age(path: Path) -> None:
    """Let a file be one that was written long ago: its entry's time cannot be set, so the clock is."""
    os.utime(path, (1, 1))


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(known_hashes.time, "time", lambda: real() + 60)


def look(source: Path, home: Store | None) -> list[tuple[str, str]]:
    """List as a new process does."""
    known_hashes._file_sha256.cache_clear()
    return [(unit.path, unit.sha256) for unit in open_source(source, home=home).units()]


def test_an_unchanged_source_is_listed_without_reading_it(source: Path, home: Store, read: list[str]) -> None:
    first = look(source, home)
    assert sorted(read) == ["0.tar", "1.tar", "2.tar"] and first == look(source, None)
    read.clear()
    assert look(source, home) == first and read == []


def test_only_what_changed_is_read_whatever_its_size_and_times_say(
    source: Path, home: Store, read: list[str]
) -> None:
    first = look(source, home)
    read.clear()
    data = (source / "1.tar").read_bytes()
    (source / "1.tar").write_bytes(data.replace(b"a block", b"A block"))
    age(source / "1.tar")  # size and time of the data are what they were; the time of the entry is not
    second = look(source, home)
    assert read == ["1.tar"] and second[0] == first[0] and second[1] != first[1]
    read.clear()
    shutil.copy(source / "0.tar", source / "3.tar")
    (source / "2.tar").unlink()
    assert look(source, home) == [first[0], second[1]] and read == ["3.tar"], "equal content is one unit"


def test_a_file_that_was_just_written_is_hashed_again(
    source: Path, home: Store, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes.time, "time", lambda: (source / "0.tar").stat().st_ctime)
    look(source, home)
    look(source, home)
    assert sorted(read) == sorted(2 * ["0.tar", "1.tar", "2.tar"])


def test_what_a_killed_listing_had_hashed_stays_known(
    source: Path, home: Store, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(known_hashes.KnownHashes, "save", lambda self: None)  # it does not come to that
    look(source, home)
    read.clear()
    look(source, home)
    assert read == []


def test_without_its_table_or_with_a_damaged_one_the_source_is_read_again(
    source: Path, home: Store, read: list[str]
) -> None:
    first = look(source, home)
    (segment,) = home.list("cache")
    data = bytearray(home.read_bytes(segment))
    data[90] ^= 1
    home.replace(segment, bytes(data))
    read.clear()
    assert look(source, home) == first and len(read) == 3
    for path in home.list("cache"):  # beside the damaged one there is a new one
        home.delete(path)
    read.clear()
    assert look(source, home) == first and len(read) == 3


def test_texts_beside_images_are_read_once(tmp_path: Path, home: Store, read: list[str]) -> None:
    folder = tmp_path / "beside"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(noise(number))
        (folder / f"{number}.txt").write_text(f"block {number}")
    first = look(folder, home)
    assert len(read) == 3
    read.clear()
    assert look(folder, home) == first and read == []
    (folder / "1.txt").write_text("BLOCK 1")
    assert look(folder, home) != first and read == ["1.txt"]


def test_a_home_that_cannot_be_written_to_is_only_slower(
    source: Path, tmp_path: Path, read: list[str]
) -> None:
    (tmp_path / "home").write_text("a file where the home should be")
    assert len(look(source, Store(tmp_path / "home"))) == 3


def test_a_unit_whose_bytes_are_not_what_is_known_of_them_is_read_again(
    source: Path, home: Store, read: list[str]
) -> None:
    """A disk that lost a bit, or a clock that stood still: the size and the times tell nothing."""
    first = look(source, home)
    unit = next(unit for unit in open_source(source, home=home).units() if unit.path == "1.tar")
    with pytest.raises(
        ValueError, match=r"1\.tar: a worker found it removed or changed, and here it is as it was"
    ):
        look_again(source, home, [unit])
    look_again(source, home, [replace(unit, sha256="0" * 64)])  # listed with other bytes than it has
    read.clear()
    assert look(source, home) == first and read == ["1.tar"]
