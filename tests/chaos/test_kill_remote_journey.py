"""`hyco journey --home s3://...` killed three times: the version of a local home, a model, promotion and rollback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.pipeline.training.step_log import read_log
from hyco.storage.home import Home
from tests.chaos.test_kill import ROOT, SMALL, journey, kill_when, scenes  # noqa: F401  a fixture
from tests.factories.commands import hyco
from tests.factories.s3 import bucket

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path))  # Prefect's database of remote homes
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path / "first"))
    with bucket() as (url, _):
        yield f"{url}/home"


def test_it_ends_as_on_a_local_disk(
    scenes: Path,  # noqa: F811
    home: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Home(home).store

    def count(*folders: str, end: str = ".json") -> int:
        return sum(path.endswith(end) for folder in folders for path in store.list(folder))

    kill_when(journey(scenes, home), home, lambda: count("detections", end=".parquet") >= 2)
    kill_when(journey(scenes, home), home, lambda: count("packs") >= 1)
    kill_when(journey(scenes, home), home, lambda: count("runs", end="complete.json") >= 2)
    (run,) = Home(home).run_folders()
    before = read_log(run)
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path / "second"))  # another machine goes on
    last = journey(scenes, home)
    assert last.wait(timeout=900) == 0

    assert [line["step"] for line in read_log(run)] == list(range(1, 41))
    assert [line["loss"] for line in before] == [line["loss"] for line in read_log(run)[: len(before)]]
    assert journey(scenes, tmp_path / "local").wait(timeout=900) == 0
    versions = [Home(one).versions.load("latest").name for one in (home, tmp_path / "local")]
    assert versions[0] == versions[1]
    assert f"run      {run.name}  assessed" in hyco("status", "--home", home)

    hyco("promote", run.name, "--home", home, "--force", "--assess-source", str(scenes / "heldout"))
    small = [word for item in SMALL if item.startswith("recipe.") for word in ("--set", item[7:])]
    hyco("train", "--recipe", "demo", "--home", home, "--run", "second", *small, "--set", "seed=1")
    hyco("assess", "--run", "second", "--home", home, "--assess-source", str(scenes / "heldout"))
    hyco("promote", "second", "--home", home, "--force", "--assess-source", str(scenes / "heldout"))
    first, second = (row.model for row in Home(home).registry.rows())
    assert json.loads(hyco("champion", "--home", home))["model"] == second
    hyco("rollback", "--home", home)
    assert json.loads(hyco("champion", "--home", home))["model"] == first
    assert len(hyco("registry", "--home", home).splitlines()) == 3
    assert "intact" in hyco("verify", "--home", home)
