"""kill -9 of the flow, the worker, both and the server while new data is trained on: one model comes of it, once.

`-s` shows how long each dead run took to be marked.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyco.storage.home import Home
from tests.flows.operations import PATIENCE, Operation, left

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 * PATIENCE)]

MARKED_S = 120.0  # what a dead run may take to be marked
STEPS = 300


@pytest.fixture
def operation(tmp_path: Path) -> Iterator[Operation]:
    with Operation(tmp_path) as made:
        made.hold()
        yield made


def flow_process(run: dict[str, Any]) -> int | None:
    """The process of a flow run, None when it has none."""
    mark = f"PREFECT__FLOW_RUN_ID={run['id']}\0"
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            if "hyco.flows.engine" in command and mark in (entry / "environ").read_text():
                return int(entry.name)
        except (OSError, UnicodeDecodeError):
            continue
    return None


def training(operation: Operation, more_than: int) -> dict[str, Any]:
    """Wait until a retrain run is training beyond a checkpoint, and return it."""

    def found() -> dict[str, Any] | None:
        running = [run for run in operation.runs("retrain") if run["state_name"] == "Running"]
        alive = [run for run in running if flow_process(run)]
        return alive[-1] if alive and last_step(operation) > more_than else None

    return operation.wait(f"training beyond step {more_than}", found, 400)


def last_step(operation: Operation) -> int:
    logs = list(operation.home.glob("runs/*/log.jsonl"))
    lines = [line for log in logs for line in log.read_text().splitlines() if line.endswith("}")]
    return max((json.loads(line)["step"] for line in lines), default=0)


def marked(operation: Operation, run: dict[str, Any], since: float, what: str) -> None:
    """See a run marked in time, and that nothing of it goes on."""

    def state() -> str:
        (found,) = [one for one in operation.runs("retrain") if one["id"] == run["id"]]
        return found["state_name"] if found["state_name"] != "Running" else ""

    name = operation.wait(f"the run marked after kill -9 of {what}", state, MARKED_S + 60)
    seconds = time.monotonic() - since
    print(f"kill -9 of {what}: marked {name} after {seconds:.0f} s")
    assert name == "Crashed" and seconds < MARKED_S
    operation.wait("its processes to end", lambda: flow_process(run) is None, 20)


def test_one_model_comes_of_it_whatever_is_killed(operation: Operation) -> None:
    operation.deploy(
        f"retrain.journey.recipe.steps={STEPS}",
        "retrain.journey.recipe.entailment_start=45",
        "retrain.journey.recipe.entailment_ramp=75",
        "retrain.journey.recipe.checkpoint_steps=10",
        "retrain.attempts=8",
        "watch_every_s=30",
        "gather_s=2",
    )
    worker = operation.start_worker()
    operation.drop(0)

    run = training(operation, 10)
    process = flow_process(run)
    assert process
    since, reached = time.monotonic(), last_step(operation)
    os.kill(process, signal.SIGKILL)
    marked(operation, run, since, "the flow")

    run = training(operation, reached)
    since, reached = time.monotonic(), last_step(operation)
    operation.kill(worker)
    operation.wait("the flow to die with its worker", lambda: flow_process(run) is None, 20)
    marked(operation, run, since, "the worker")
    worker = operation.start_worker()

    run = training(operation, reached)
    since, reached = time.monotonic(), last_step(operation)
    process = flow_process(run)
    assert process
    operation.kill(worker)
    if flow_process(run):
        os.kill(process, signal.SIGKILL)
    marked(operation, run, since, "both")
    operation.start_worker()

    run = training(operation, reached)
    operation.kill(operation.server)
    time.sleep(5)
    operation.server = operation.start_server()
    registry = Home(operation.home).registry
    (row,) = operation.wait("one decision", registry.rows, 600)
    operation.wait("every run to end", lambda: "Running" not in operation.states("retrain"), 180)

    (folder,) = operation.home.glob("runs/*/")
    assert (
        Path(row.run) == folder and row.kind == "promoted" and registry.problem(row.model, row.files) is None
    )
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1)), "the steps of one training, each once in its log"
    time.sleep(45)  # time for another training to begin, if anything would start one
    assert registry.rows() == [row] and "Running" not in operation.states("retrain")
    assert not list(operation.home.glob("registry/models/.tmp-*"))

    def held() -> list[str]:
        limits = operation.ask("POST", "/v2/concurrency_limits/filter", {})
        return [limit["name"] for limit in limits if limit["active_slots"]]

    operation.wait("every slot given back (a look that is under way holds its own)", lambda: not held(), 120)


def test_what_was_started_ends_with_the_operation(operation: Operation) -> None:
    operation.deploy("watch_every_s=3600")
    operation.start_worker()
    operation.close()
    assert left(operation.folder) == []
