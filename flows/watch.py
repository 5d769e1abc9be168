"""Watch: mine and pack new data of the source, and start a training when there is enough of it.

A schedule and events start it; each check reads everything from the home, so events only make it earlier. One check
runs at a time, and one training: the next check finds data that arrives meanwhile.
"""

import time
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.deployments import run_deployment
from prefect.runtime import flow_run

from hyco.flows.mine import mine
from hyco.flows.pack import pack
from hyco.flows.reporting import artifacts
from hyco.flows.reporting import events as signals
from hyco.flows.runtime.runs import NOTHING, done, inside, named, rename
from hyco.pipeline import end_to_end as journeys
from hyco.pipeline.registry.retraining import (
    RetrainConfig,
    RetrainDecision,
    check,
    grown,
    recipe_for,
    unpublished,
    unsettled,
)
from hyco.pipeline.runtime.executor import LOCAL
from hyco.storage.checkpoint import open_checkpoints
from hyco.storage.home import Home

RETRAIN = "retrain/retrain"
UNDER_WAY = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]
MOST_ROUNDS = 20
_PAGE = 100  # attempts per request; Prefect returns at most 200 runs
_FROM_STEP = "from-step-"  # tag of an attempt: the checkpoint that it resumes from


@flow(
    name="watch",
    flow_run_name=named(lambda given: f"watch {inside(given, 'config', 'journey', 'mine', 'source')}"),
    persist_result=True,
    result_serializer="json",
)
def watch(config: RetrainConfig, home: str = "var", engine: str = LOCAL) -> dict[str, Any]:
    """Mine and pack new data of the source, then start a training if it is due and none is running.

    The message of the run's state says what was done.

    Args:
        config: the source, how it is mined and packed, and when training begins.
        home: where Hyco stores everything.
        engine: where shards are mined and packed: local, ray or ray:HOST:PORT.
    """
    found = _look(config, home, engine)
    told = found["training"] if found["training"].startswith("started") else _in_words(found)
    if (flow_run.get_name() or "").startswith("watch "):  # the list of runs shows names and no messages
        rename(f"watch {inside(config.journey.mine.source)}: {told}")
    idle = not found.get("rounds") and not told.startswith("started")
    return done(told, found, NOTHING if idle else None)


def _in_words(found: dict[str, Any]) -> str:
    """What a look that started no training found, in a line."""
    name, told = found["version"], found["training"]
    if found.get("rounds"):
        return f"new version {name}: {told}"
    return f"nothing new since {name}: {told}" if name and name not in told else f"nothing new: {told}"


def _look(config: RetrainConfig, home: str, engine: str) -> dict[str, Any]:
    journey, opened = config.journey, Home(home)
    rounds = 0
    while rounds < MOST_ROUNDS:  # includes data that arrived while the last was mined
        time.sleep(unsettled(journey.mine.source, config.settle_s))
        if not grown(config, opened):
            break
        rounds += 1
        mine(journey.mine, home, config.settle_s, engine)
        if (held := journeys.held_out(journey)) is not None:
            mine(held, home, config.settle_s, engine)
        if unpublished(config, opened):  # not when all new data was removed again
            pack(journey.mine, journey.pack, home, mined_only=True, engine=engine)
    away = opened.shelf.entries()
    for entry in away:
        get_run_logger().warning("%s", entry)
        signals.away(entry, opened)
    if away:
        artifacts.shelved(away)
    _publish_missed(opened)
    decision = check(config, opened)
    if decision is None:
        return {"version": None, "training": "the source is empty"}
    started = start(config, opened, decision) if decision.due else decision.reason
    get_run_logger().info("%s: %s", decision.version, started)
    return {
        "version": decision.version,
        "new_samples": decision.new_samples,
        "rounds": rounds,
        "shelved": [entry.path for entry in away],
        "training": started,
    }


def start(config: RetrainConfig, home: Home, decision: RetrainDecision) -> str:
    """Start the training that is due, at most once per version and configuration; return what was done.

    A run that crashed or failed is followed by another one, up to `attempts`; each resumes where the last stopped, and
    an attempt that resumed from a later checkpoint than all before it does not count. A cancelled run is not followed
    by another.
    """
    with get_client(sync_client=True) as client:
        if busy := _runs(client, FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))):
            return f"{busy[0].name} is running; another check follows it"
        earlier = _attempts(client, decision.key)
    if cancelled := [run.name for run in earlier if run.state_type == StateType.CANCELLED]:
        return f"{cancelled[0]} was cancelled: to train anyway, run the deployment {RETRAIN} by hand"
    begun_at = [_begun_at(run) for run in earlier]
    step = _saved_step(config, home, decision)
    if attempts_without_progress([*begun_at, step]) > config.attempts:
        told = (
            f"{config.attempts} attempts have failed without progress: fix the cause, "
            f"then run the deployment {RETRAIN} by hand"
        )
        signals.given_up(decision.version, told, home)
        return told
    number = max((_number(run) for run in earlier), default=0) + 1
    run: Any = run_deployment(
        RETRAIN,
        parameters={"config": config.model_dump(mode="json"), "home": home.url},
        idempotency_key=f"{decision.key}:{number}",
        tags=[f"{_FROM_STEP}{step}"],
        timeout=0,
        as_subflow=False,
        flow_run_name=f"{decision.version} attempt {number}",
    )
    return f"started {run.name}"


def attempts_without_progress(steps: list[int]) -> int:
    """How many attempts began at no later step than one before them; `steps` are the steps they began at."""
    return sum(not index or step <= max(steps[:index]) for index, step in enumerate(steps))


def _saved_step(config: RetrainConfig, home: Home, decision: RetrainDecision) -> int:
    """The step of the checkpoint that training would resume from; 0 without one."""
    return open_checkpoints(journeys.run_dir(home, recipe_for(config, home), decision.version)).newest_step()


def _attempts(client: SyncPrefectClient, key: str) -> list[FlowRun]:
    """The runs that were started for a key of RetrainDecision, in order."""
    found: list[FlowRun] = []
    for first in count(1, _PAGE):
        keys = [f"{key}:{number}" for number in range(first, first + _PAGE)]
        found += _runs(client, key=FlowRunFilterIdempotencyKey(any_=keys))
        if keys[-1] not in {run.idempotency_key for run in found}:
            break
    return sorted(found, key=_number)


def _number(run: FlowRun) -> int:
    return int((run.idempotency_key or "").rpartition(":")[2])


def _begun_at(run: FlowRun) -> int:
    """The step that an attempt began at; 0 for attempts of a Hyco that did not record it."""
    noted = [tag.removeprefix(_FROM_STEP) for tag in run.tags if tag.startswith(_FROM_STEP)]
    return int(noted[0]) if noted else 0


def _publish_missed(home: Home) -> None:
    """Publish the newest decision if the training that made it died before; only within a day of it.

    Artifacts are deleted with their runs, so a decision that has none after a day was published long ago.
    """
    rows = home.registry.rows()
    if not rows or not rows[-1].key:  # decided by hand: published by the command
        return
    row = rows[-1]
    if datetime.now(UTC) - datetime.fromisoformat(row.time) > timedelta(days=1):
        return
    with get_client(sync_client=True) as client:
        busy = _runs(client, FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)))
        decisions = ArtifactFilter(key=ArtifactFilterKey(any_=["decision"]))
        told = client.read_artifacts(artifact_filter=decisions, sort=ArtifactSort.CREATED_DESC)
    if not busy and not any(row.model in (artifact.description or "") for artifact in told):
        artifacts.decided(row, home)


def _runs(
    client: SyncPrefectClient,
    state: FlowRunFilterState | None = None,
    key: FlowRunFilterIdempotencyKey | None = None,
) -> list[FlowRun]:
    flow, _, name = RETRAIN.partition("/")
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
        flow_run_filter=FlowRunFilter(state=state, idempotency_key=key),
    )
