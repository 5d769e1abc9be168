"""New shards become a new model with no other action: server, worker, `hyco deploy`, and a file dropped in a folder."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyco.pipeline.registry.model_gate import GateConfig, at_chance
from hyco.storage.home import Home
from hyco.storage.model_registry import fingerprint
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.flows.operations import PATIENCE, Operation, left

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200 * PATIENCE)]


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    with Operation(tmp_path_factory.mktemp("operation")) as made:
        made.hold()
        yield made
    assert left(made.folder) == []


def test_a_new_shard_becomes_a_decision(operation: Operation) -> None:
    first = operation.deploy("watch_every_s=30", "gather_s=2")
    assert "created deployment watch/watch" in first and "created automation" in first
    assert operation.deploy("watch_every_s=30", "gather_s=2").splitlines()[-1].startswith("0 changes")
    assert operation.hyco("deploy", "--home", str(operation.home), "--check").startswith("0 differences")
    operation.start_worker()

    operation.drop(0)
    registry = Home(operation.home).registry
    operation.wait("a champion", lambda: registry.champion(), 400)
    (row,) = registry.rows()
    assert (row.kind, row.before, row.source) == ("promoted", None, str(operation.source))
    assert Path(row.run, "report.html").is_file() and json.loads(row.metrics)["retrieval"]["images"] == 30
    operation.wait("the run to end", lambda: operation.states("retrain") == ["Completed"], 60)

    operation.drop(1)
    operation.wait("a decision on the second version", lambda: len(registry.rows()) == 2, 400)
    second = registry.rows()[1]
    versions = Versions(Store(operation.home))
    assert (
        versions.load(second.version).parent == row.version
        and versions.verify(versions.load(second.version)) == []
    )
    config = json.loads(Path(second.run, "config.json").read_text())
    learned = not at_chance(json.loads(row.metrics), GateConfig())
    assert config["recipe"]["start"]["checkpoint"] == (str(registry.path(row.model)) if learned else ""), (
        "it starts from the champion, unless that is at chance"
    )
    assert second.before == row.model

    operation.wait("both runs to end", lambda: operation.states("retrain") == ["Completed", "Completed"], 60)
    assert operation.states("train") == ["Completed", "Completed"]
    decisions = operation.wait("artifacts", lambda: operation.artifacts("decision")[1:], 30)
    assert row.model in decisions[-1]["data"] and "| retrieval.image_to_text.r5 |" in decisions[-1]["data"]
    operation.wait("events", lambda: len(operation.events("hyco.dataset.published")) >= 2, 30)

    def told() -> set[str]:
        found = operation.events("hyco.champion.promoted") + operation.events("hyco.challenger.refused")
        return {event["resource"]["prefect.resource.name"] for event in found}

    operation.wait("both events", lambda: told() == {row.model, second.model}, 30)


def test_a_rollback_is_one_command_an_event_and_an_artifact(operation: Operation) -> None:
    registry = Home(operation.home).registry
    rows = registry.rows()
    if registry.champion().number == 1:  # the second was refused: put it in by hand
        operation.hyco("promote", rows[1].run, "--home", str(operation.home), "--force")
    operation.hyco("rollback", "--home", str(operation.home), "--reason", "a drill")
    champion = registry.champion()
    assert (champion.kind, champion.model, champion.reason) == ("rolled_back", rows[0].model, "a drill")
    assert fingerprint(registry.path(champion.model)) == rows[0].files
    operation.wait("the event", lambda: operation.events("hyco.champion.rolled_back"), 30)
    assert "a drill" in operation.artifacts("decision")[-1]["data"]


def test_a_storm_of_events_is_one_training(operation: Operation) -> None:
    before = len(operation.runs("train"))
    operation.hyco(
        "deploy", "--home", str(operation.home), "--set", "watch_every_s=3600", "--set", "gather_s=10"
    )
    operation.drop(2)
    event = {"event": "hyco.dataset.published", "resource": {"prefect.resource.id": "hyco.version.storm"}}
    for number in range(50):
        sent = {**event, "id": f"00000000-0000-4000-8000-{number:012d}", "occurred": _now()}
        operation.ask("POST", "/events", [sent])
        time.sleep(0.2)
    registry = Home(operation.home).registry
    found = len(registry.rows())
    operation.wait("training", lambda: len(operation.runs("train")) > before, 300)
    operation.drop(3)  # data that comes meanwhile
    for name in ("hyco.source.grown",) * 3:
        operation.ask("POST", "/events", [{**event, "event": name, "id": _uuid(), "occurred": _now()}])
    operation.wait("both decisions", lambda: len(registry.rows()) >= found + 2, 500)
    time.sleep(45)  # time for a third to begin, if anything would start one
    assert len(operation.runs("train")) == before + 2 and len(registry.rows()) == found + 2
    assert len({row.key for row in registry.rows()[found:]}) == 2


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _uuid() -> str:
    import uuid

    return str(uuid.uuid4())
