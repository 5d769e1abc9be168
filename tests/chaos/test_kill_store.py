"""Hundreds of kills -9 of mining and packing, on a local disk and on an S3 server that misbehaves: nothing is lost.

`make chaos` prints the counts.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyco.storage.store import Store
from tests.chaos.faulty_s3 import FaultyS3
from tests.chaos.kills import KillCounts, Workers, kill_at_random, write_source

UNITS = 3


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    made = FaultyS3(rate=0.05, seed=1)
    yield made
    made.close()


def local_kills(folder: Path, kills: int) -> KillCounts:
    """Kill on a local disk; the home of a round goes when it was checked."""

    def new_home(number: int) -> tuple[str, Store]:
        if number > 1:
            shutil.rmtree(folder / f"home{number - 1}")
        home = folder / f"home{number}"
        return str(home), Store(home)

    source = write_source(folder / "source", UNITS, 12)
    with Workers(source, folder / "log", {}) as workers:
        return kill_at_random(workers, new_home, UNITS, kills, look_after_each=True)


def remote_kills(folder: Path, server: FaultyS3, kills: int) -> KillCounts:
    """Kill on S3: the workers meet the faults, the checks do not."""
    environment = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # so that the faults reach us
    }
    options: dict[str, Any] = {"endpoint_url": server.steady_url, "key": "test", "secret": "test"}
    Store("s3://chaos", **options).fs.mkdir("chaos")

    def new_home(number: int) -> tuple[str, Store]:
        home = f"s3://chaos/home{number}"
        return home, Store(home, **options)

    source = write_source(folder / "source", UNITS, 12)
    with Workers(source, folder / "log", environment) as workers:
        return kill_at_random(workers, new_home, UNITS, kills)


def said(tally: KillCounts, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{where}: {tally}")
    assert (tally.lost, tally.torn, tally.doubled) == (0, 0, 0)


def test_four_kills(tmp_path: Path) -> None:
    tally = local_kills(tmp_path, 4)
    assert tally.kills >= 4 and (tally.lost, tally.torn, tally.doubled) == (0, 0, 0)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_five_hundred_kills_on_a_local_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(local_kills(tmp_path, 500), "local disk", capsys)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_three_hundred_kills_on_s3(
    tmp_path: Path, server: FaultyS3, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = remote_kills(tmp_path, server, 300)
    met = ", ".join(f"{fault} {number}" for fault, number in sorted(server.met.items()))
    said(tally, f"S3 with faults ({met})", capsys)
    assert len(server.met) == 6, "every kind of fault was met"
