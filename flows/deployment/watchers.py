"""Who watches a source on a Prefect server, and when they will look at it: what `hyco notify` asks and prints."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse

from hyco.flows.reporting.events import GROWN

SOON_S = 5  # what Prefect's services take from an event to a run


@dataclass(frozen=True, slots=True)
class Watcher:
    """A deployment that watches a source.

    Attributes:
        name: FLOW/NAME of the deployment.
        source: what it watches.
        pool: the work pool of its runs.
        within_s: seconds from an event to its next run; None where no automation listens.
        workers: how many workers poll the pool.
        paused: what somebody has paused that keeps its runs from starting; empty when nothing.
    """

    name: str
    source: str
    pool: str
    within_s: float | None
    workers: int
    paused: str


def watchers(client: SyncPrefectClient) -> Iterator[Watcher]:
    """Yield every deployment of the flow watch on a server."""
    found = client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["watch"])))
    for deployment in found:
        source = deployment.parameters.get("config", {}).get("journey", {}).get("mine", {}).get("source")
        if source is None:
            continue
        pool = str(deployment.work_pool_name)
        known = client.read_workers_for_work_pool(pool)
        online = sum(worker.status == WorkerStatus.ONLINE for worker in known)
        paused = "the deployment" if deployment.paused else ""
        if client.read_work_pool(pool).is_paused:
            paused = f"work pool {pool}"
        name = f"watch/{deployment.name}"
        yield Watcher(name, str(source), pool, _within(client, deployment), online, paused)


def told(watcher: Watcher, home: str) -> Iterator[str]:
    """Yield what will happen now that a watcher was notified, one line each."""
    if watcher.within_s is None:
        yield f"{watcher.name} looks at its next scheduled time: no automation listens for {GROWN} (hyco deploy)"
    else:
        by = datetime.now(UTC) + timedelta(seconds=watcher.within_s + SOON_S)
        yield f"{watcher.name} will look at {watcher.source} by {by:%H:%M:%S} UTC"
    if watcher.paused:
        yield f"not before somebody resumes {watcher.paused}, which is paused"
    if not watcher.workers:
        yield f"not before a worker runs: hyco worker --pool {watcher.pool} --home {home}"


def _within(client: SyncPrefectClient, deployment: DeploymentResponse) -> float | None:
    """Seconds after which an automation starts a deployment that hears of new shards; None without one."""
    for automation in client.read_automations():
        if automation.enabled and GROWN in getattr(automation.trigger, "expect", ()):
            for action in automation.actions:
                if getattr(action, "deployment_id", None) == deployment.id:
                    after = getattr(action, "schedule_after", None)
                    return after.total_seconds() if after else 0.0
    return None
