"""Watch: what the source has new is mined and packed, and training is started when enough of it is there.

Started by a schedule and by events; each look reads everything from the home, so events only make it sooner. One runs
at a time, and one training at a time: what comes meanwhile is found by the look that follows it.
"""

import time
from datetime import UTC, datetime, timedelta
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

from flows import signals
from flows.mine import mine
from flows.pack import pack
from pipeline import journey as journeys
from pipeline.watch import RetrainConfig, Sight, look, newest, unmined, unpublished, unsettled
from storage.registry import Registry
from storage.store import Store

RETRAIN = "retrain/retrain"
UNDER_WAY = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]
MOST_ROUNDS = 20


@flow(name="watch", persist_result=True, result_serializer="json")
def watch(config: RetrainConfig, home: str = "var") -> dict[str, Any]:
    """Mine and pack what is new in the source, then start a training if it is due and none is under way.

    Args:
        config: the source, how it is mined and packed, and when training begins.
        home: where everything Hyco makes is kept; in a remote one it is mined and packed, but not trained.
    """
    journey = config.journey
    rounds = 0
    while rounds < MOST_ROUNDS:  # data that comes while the last was mined is taken along
        time.sleep(unsettled(journey.mine.source, config.settle_s))
        if not unmined(config, home) and not unpublished(config, home):
            break
        rounds += 1
        mine(journey.mine, home, config.settle_s)
        if (held := journeys.held_out(journey)) is not None:
            mine(held, home, config.settle_s)
        if unpublished(config, home):  # not so when all that was new has gone again
            pack(journey.mine, journey.pack, home, mined_only=True)
    if not Store(home).local:
        made = newest(config, home)
        told = f"home {home} is remote: copy its versions and shards to a local home and train there"
        return {"version": made.name if made else None, "training": told}
    _tell_untold(home)
    sight = look(config, home)
    if sight is None:
        return {"version": None, "training": "there is nothing in the source yet"}
    started = start(config, home, sight) if sight.due else sight.reason
    get_run_logger().info("%s: %s", sight.version, started)
    return {"version": sight.version, "new_samples": sight.new_samples, "rounds": rounds, "training": started}


def start(config: RetrainConfig, home: str, sight: Sight) -> str:
    """Start the training of what is due, at most once for each version and configuration; return what was done.

    A run that crashed or failed is followed by another one, up to `attempts`; each goes on where the last stopped. One
    that a person cancelled is not.
    """
    keys = [f"{sight.key}:{attempt}" for attempt in range(1, config.attempts + 1)]
    with get_client(sync_client=True) as client:
        if busy := _runs(client, FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY))):
            return f"{busy[0].name} is under way; another look follows it"
        earlier = _runs(client, key=FlowRunFilterIdempotencyKey(any_=keys))
    if cancelled := [run.name for run in earlier if run.state_type == StateType.CANCELLED]:
        return f"{cancelled[0]} was cancelled: to train after all, run the deployment {RETRAIN} by hand"
    tried = {run.idempotency_key for run in earlier}
    left = [key for key in keys if key not in tried]
    if not left:
        return f"{config.attempts} attempts have failed: mend the cause, then run the deployment {RETRAIN} by hand"
    run: Any = run_deployment(
        RETRAIN,
        parameters={"config": config.model_dump(mode="json"), "home": home},
        idempotency_key=left[0],
        timeout=0,
        as_subflow=False,
        flow_run_name=f"{sight.version} attempt {config.attempts - len(left) + 1}",
    )
    return f"started {run.name}"


def _tell_untold(home: str) -> None:
    """Tell of the newest decision if the training that made it died before it could; only within a day of it.

    Artifacts are deleted with their runs, so a decision that has none after that was told long ago.
    """
    rows = Registry(home).rows()
    if not rows or not rows[-1].key:  # decided by hand: told by the command
        return
    row = rows[-1]
    if datetime.now(UTC) - datetime.fromisoformat(row.time) > timedelta(days=1):
        return
    with get_client(sync_client=True) as client:
        busy = _runs(client, FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)))
        decisions = ArtifactFilter(key=ArtifactFilterKey(any_=["decision"]))
        told = client.read_artifacts(artifact_filter=decisions, sort=ArtifactSort.CREATED_DESC)
    if not busy and not any(row.model in (artifact.description or "") for artifact in told):
        signals.decided(row, home)


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
