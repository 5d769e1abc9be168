"""Watch, retrain, promote and roll back with a home in an object store, as an installation has it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.storage.home import Home
from tests.factories.s3 import bucket
from tests.flows.operations import PATIENCE, Operation, left

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500 * PATIENCE)]


@pytest.fixture
def operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operation]:
    monkeypatch.setenv("HYCO_CACHE", str(tmp_path / "cache"))
    with bucket() as (url, _), Operation(tmp_path / "operation", f"{url}/home") as made:
        made.hold()
        yield made
    assert left(made.folder) == []


def test_a_new_shard_becomes_a_decision_in_an_object_store(operation: Operation) -> None:
    operation.deploy("watch_every_s=30", "gather_s=2")
    operation.start_worker()
    home = Home(operation.home)

    operation.drop(0)
    operation.wait("a champion", home.registry.champion, 500)
    (row,) = home.registry.rows()
    assert row.kind == "promoted" and row.run.startswith("s3://")
    operation.wait("the run to end", lambda: operation.states("retrain") == ["Completed"], 60)

    operation.drop(1)
    operation.wait("a decision on the second version", lambda: len(home.registry.rows()) == 2, 500)
    second = home.registry.rows()[1]
    versions = home.versions
    assert versions.load(second.version).parent == row.version
    assert versions.verify(versions.load(second.version)) == []
    assert second.before == row.model and json.loads(second.metrics)["retrieval"]["images"] == 30
    operation.wait("both runs to end", lambda: operation.states("retrain") == ["Completed", "Completed"], 60)
    assert operation.states("train") == ["Completed", "Completed"]

    if home.registry.champion().model == row.model:  # the second was refused: put it in by hand
        operation.hyco("promote", second.run, "--home", operation.home, "--force")
    operation.hyco("rollback", "--home", operation.home, "--reason", "a drill")
    champion = home.registry.champion()
    assert (champion.kind, champion.model, champion.reason) == ("rolled_back", row.model, "a drill")
    assert "intact" in operation.hyco("verify", "--home", operation.home)
    assert not (operation.folder / "home").exists(), "nothing of the home lies on this disk"
