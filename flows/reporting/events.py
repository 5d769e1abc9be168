"""The events Hyco emits and listens to; the automations of flows/deployment/spec.py are made of these names."""

from typing import Any

from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from flows.reporting import artifacts
from storage.home import Home
from storage.model_registry import PROMOTED, REFUSED, ROLLED_BACK, Decision
from storage.versions import Version

GROWN = "hyco.source.grown"  # to be emitted by whoever adds shards; the schedule finds them too, only later
PUBLISHED = "hyco.dataset.published"
DECIDED = {
    PROMOTED: "hyco.champion.promoted",
    REFUSED: "hyco.challenger.refused",
    ROLLED_BACK: "hyco.champion.rolled_back",
}


def grown(source: str) -> None:
    """Say that a source has new shards."""
    emit_event(GROWN, resource={"prefect.resource.id": f"hyco.source.{source}", "hyco.source": source})


def published(version: Version, home: Home) -> None:
    """Say that a dataset version was published."""
    _emit(PUBLISHED, f"hyco.version.{version.name}", version.name, home, {"counts": version.counts})


def decided(row: Decision, home: Home) -> None:
    """Say that a model was promoted, refused or rolled back to, and leave the artifact that tells why."""
    payload = {"reason": row.reason, "run": row.run, "version": row.version, "before": row.before}
    _emit(DECIDED[row.kind], f"hyco.model.{row.model}", row.model, home, payload)
    artifacts.decided(row, home)


def _emit(event: str, resource: str, name: str, home: Home, payload: dict[str, Any]) -> None:
    labels = {"prefect.resource.id": resource, "prefect.resource.name": name, "hyco.home": home.url}
    emit_event(event, resource=labels, payload=payload)


def flush() -> None:
    """Wait until the events that were emitted have reached the server."""
    EventsWorker.instance().drain()
