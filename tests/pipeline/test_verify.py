"""Whatever happens to a file of a home is found, by name; what is set aside is made again by the same commands."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import verify
from tests.pipeline.small_home import SEED, SmallHome, corruptions, kind_of, may_be_absent, small_home

KINDS = {
    "mining configuration", "mining record", "detections", "mining failures", "pack record", "packing failures",
    "shard", "version", "latest", "quarantine record", "registry row", "model", "run of a model", "report",
    "assessment",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallHome]:
    with small_home(tmp_path_factory.mktemp("verify")) as made:
        yield made


@pytest.fixture
def made(built: SmallHome, tmp_path: Path) -> SmallHome:
    shutil.copytree(built.home, tmp_path / "home")
    return SmallHome(tmp_path / "home", built.source, built.detector)


def files(home: Path, kind: str | None = None) -> list[Path]:
    found = sorted(path for path in home.rglob("*") if path.is_file())
    return found if kind is None else [path for path in found if kind_of(home, path) == kind]


def corrupt(home: Path, count: int) -> Counter[tuple[str, str]]:
    """Corrupt one file, verify, put it back, `count` times over all kinds; how often each kind was corrupted how."""
    chance, done = random.Random(SEED), Counter()
    kinds = sorted(KINDS)
    while done.total() < count:
        kind, (how, change) = kinds[done.total() % len(kinds)], chance.choice(list(corruptions().items()))
        path = chance.choice(files(home, kind))
        whole = path.read_bytes()
        harmed = change(whole, chance)
        if harmed == whole or (harmed is None and may_be_absent(home, path)):
            continue
        path.unlink() if harmed is None else path.write_bytes(harmed)
        found = verify(str(home), None)
        label = f"{how}, {path.relative_to(home)}: {[str(damage) for damage in found]}"
        assert found, f"not found: {label}"
        assert {damage.kind for damage in found} == {kind}, f"taken for another kind: {label}"
        assert {damage.path for damage in found} == {path.relative_to(home).as_posix()}, f"misnamed: {label}"
        path.write_bytes(whole)
        done[kind, how] += 1
    return done


def test_the_home_has_every_kind_of_file_and_is_intact(made: SmallHome) -> None:
    assert {kind_of(made.home, path) for path in files(made.home)} == KINDS
    assert verify(str(made.home)) == verify(str(made.home), None) == []


def test_corruptions_of_every_kind_of_file_are_found_and_named(made: SmallHome) -> None:
    done = corrupt(made.home, 60)
    assert {kind for kind, _ in done} == KINDS
    assert {how for _, how in done} == set(corruptions())


@pytest.mark.slow
@pytest.mark.chaos
def test_a_thousand_random_corruptions_are_found_and_named(made: SmallHome) -> None:
    done = corrupt(made.home, 1000)
    for kind in sorted(KINDS):
        print(f"{kind:22s} {sum(n for (one, _), n in done.items() if one == kind):4d} found and named")
    print(f"{done.total()} of 1000 corruptions found and named, none taken for another kind")


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :])
