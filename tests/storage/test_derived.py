"""Tables that are made again: segments are added, merged and lost in any order, and the rows are right or absent."""

import itertools
import random
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from hyco.storage import derived
from hyco.storage.derived import Derived, problem
from hyco.storage.store import Store

SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64()})


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Derived:
    monkeypatch.setattr(derived, "_MERGED", 4)
    return Derived(Store(tmp_path / "home"), "t-1", SCHEMA)


def row(number: int) -> dict[str, int | str]:
    return {"id": f"row {number}", "value": number}


def values(table: Derived) -> list[int]:
    return sorted(table.rows()["value"].to_pylist())


def test_rows_are_kept_once_and_small_segments_are_merged(table: Derived) -> None:
    for number in range(60):
        table.add([row(number), row(number // 2)])
    assert values(table) == list(range(60)) and len(table.names()) < 3 * derived._MERGED
    table.discard(["row 7", "row 59", "row 1000"])
    assert values(table) == [number for number in range(60) if number not in (7, 59)]
    assert len(table.names()) == 1 and all(
        not problem(table.store, f"{table.folder}/{n}") for n in table.names()
    )


def test_adding_nothing_writes_nothing(table: Derived) -> None:
    table.add([])
    assert table.rows().num_rows == 0 and table.store.list() == []


def test_a_writer_that_is_killed_at_any_write_loses_at_most_its_own_rows(
    table: Derived, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every instant at which a process can be killed lies between two operations of the store."""
    real = {name: getattr(Store, name) for name in ("replace", "delete")}
    last = 0
    for last in itertools.count():
        store = Store(f"{table.store.url}-{last}")
        small, left, added = Derived(store, "t-1", SCHEMA), [last], []

        def operation(name: str, left: list[int], *args: object) -> object:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real[name](*args)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(Store, name, lambda *args, name=name, left=left: operation(name, left, *args))
            try:
                for number in range(derived._MERGED):
                    small.add([row(number)])
                    added.append(number)
                break
            except KeyboardInterrupt:
                pass
        assert set(values(small)) >= set(added)
        small.add([row(99)])
        assert set(values(small)) >= {*added, 99} and len(values(small)) == len(set(values(small)))
    assert last > derived._MERGED, "it was killed in the middle of merging, too"


def test_several_writers_at_once_lose_nothing(table: Derived) -> None:
    def write(start: int) -> None:
        mine = Derived(Store(table.store.url), "t-1", SCHEMA)
        for number in range(start, start + 20):
            mine.add([row(number)])

    threads = [threading.Thread(target=write, args=(20 * one,)) for one in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = values(table)
        assert len(seen) == len(set(seen))
    for thread in threads:
        thread.join()
    assert values(table) == list(range(80))


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "deleted", "of other columns"])
def test_a_segment_that_is_harmed_costs_its_own_rows(table: Derived, how: str) -> None:
    for number in range(3):
        table.add([row(number)])
    path = Path(table.store.path(f"{table.folder}/{table.names()[1]}"))
    (harmed,) = set(values(table)) - set(_without(table, path.name))
    data, chance = path.read_bytes(), random.Random(0)
    place = chance.randrange(len(data))
    if how == "of other columns":
        path.unlink()
        Derived(table.store, "t-1", pa.schema({"id": pa.string(), "other": pa.int64()})).add(
            [{"id": "x", "other": 1}]
        )
    elif how == "deleted":
        path.unlink()
    else:
        changed = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        path.write_bytes({"flipped": changed, "cut": data[:place], "emptied": b""}[how])
        assert problem(table.store, f"{table.folder}/{path.name}").startswith("sha256 ")
    assert set(values(table)) == {0, 1, 2} - {harmed}
    table.add([row(harmed)])
    assert values(table) == [0, 1, 2]


def _without(table: Derived, name: str) -> list[int]:
    return [v for other, rows in table.segments().items() if other != name for v in rows["value"].to_pylist()]


def test_what_is_no_segment_is_passed_over_and_named(table: Derived) -> None:
    table.add([row(0)])
    table.store.replace(f"{table.folder}/notes.txt", b"mine")
    assert (
        values(table) == [0] and problem(table.store, f"{table.folder}/notes.txt") == "is not a file of Hyco"
    )
    assert problem(table.store, f"{table.folder}/{table.names()[0]}") == ""


def test_a_home_to_which_nothing_can_be_committed_stays_readable(
    table: Derived, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("store cannot commit atomically")

    monkeypatch.setattr(Store, "replace", refuse)
    table.add([row(0)])
    assert table.rows().num_rows == 0
