"""Deletion in a home on an S3 server that meets faults: nothing of the image is left, whatever fails in between."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from hyco.pipeline.curation.delete import delete, settle
from hyco.pipeline.integrity.verify import verify
from hyco.storage import faults
from hyco.storage.folder import Folder
from hyco.storage.gc import collect
from hyco.storage.home import Home
from tests.chaos.faulty_s3 import FaultyS3
from tests.factories.s3 import bucket
from tests.pipeline.curation.test_delete import HELD, KEY, held, made, traces

__all__ = ["made"]
pytestmark = pytest.mark.slow


@pytest.fixture
def remote(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Home, FaultyS3]]:
    """A home on S3 with a model, reports and embeddings: the files of a local one."""
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    with bucket() as (url, server):
        home = Home(f"{url}/home")
        for path in Home(made / "home").store.list():
            home.store.replace(path, (made / "home" / path).read_bytes())
        yield home, server


def copied(home: Home, folder: Path) -> Path:
    """The objects of the home as files, read without faults."""
    for path in home.store.list():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(home.store.read_bytes(path))
    return folder


def gone(home: Home, folder: Path) -> None:
    assert traces(copied(home, folder)) == set() and verify(home, None) == []
    assert home.versions.load("latest").counts["images"] == 12
    assert home.store.exists("runs/first/report-other.html"), "a report that does not show it stays"


@pytest.mark.parametrize("seed", range(2))
def test_faults_that_pass_leave_no_trace(remote: tuple[Home, FaultyS3], tmp_path: Path, seed: int) -> None:
    home, server = remote
    assert HELD - {"damaged/shards"} <= held(traces(copied(home, tmp_path / "before")))
    copy = Folder(f"{home.url}/runs/first").fetch()
    server.rate, server._random = 0.1, Random(seed)
    delete(home, keys=[KEY], reason="asked")
    collect(home.store)
    server.rate = 0
    assert server.met.total() > 20 and len(server.met) >= 4
    gone(home, tmp_path / "after")
    assert not (copy / "report.html").exists(), "this machine's copy of the report shows it no longer"


@pytest.mark.parametrize("every", [211])
def test_after_a_fault_that_does_not_pass_it_is_finished_by_the_next(
    remote: tuple[Home, FaultyS3], tmp_path: Path, every: int
) -> None:
    home, server = remote
    stopped = in_force = 0
    while True:
        server.script = [None] * (stopped * every) + ["refused"] * 99
        try:
            if home.deletions.number():
                in_force += 1
                settle(home)
            else:
                delete(home, keys=[KEY], reason="asked")
            collect(home.store)
            break
        except OSError as error:
            assert str(error).startswith(f"store {home.url}: ")
            stopped += 1
        finally:
            server.script = []
    assert stopped >= 3 and in_force >= 2
    gone(home, tmp_path / "after")
