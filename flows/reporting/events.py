"""The events that Hyco emits and listens to; the automations use these names."""

from typing import Any

from prefect.events import emit_event
from prefect.events.worker import EventsWorker

from hyco.storage.home import Home
from hyco.storage.model_registry import PROMOTED, REFUSED, ROLLED_BACK, Decision
from hyco.storage.shelf import Shelved
from hyco.storage.versions import Version

GROWN = (
    "hyco.source.grown"  # for programs that add shards to emit; the schedule finds the shards too, but later
)
PUBLISHED = "hyco.dataset.published"
SHELVED, RETURNED = "hyco.shard.shelved", "hyco.shard.returned"
AWAY = "hyco.shard.away"  # of every check, for each shard that is set aside: it starts no check
QUARANTINED = "hyco.dataset.quarantined"
GIVEN_UP = "hyco.training.given_up"
DECIDED = {
    PROMOTED: "hyco.champion.promoted",
    REFUSED: "hyco.challenger.refused",
    ROLLED_BACK: "hyco.champion.rolled_back",
}


def grown(source: str) -> None:
    """Emit the event that a source has new shards."""
    emit_event(GROWN, resource={"prefect.resource.id": f"hyco.source.{source}", "hyco.source": source})


def published(version: Version, home: Home) -> None:
    """Emit the event that a dataset version was published."""
    _emit(PUBLISHED, f"hyco.version.{version.name}", version.name, home, {"counts": version.counts})


def shelved(back: bool, path: str, source: str, reason: str, home: Home) -> None:
    """Emit the event that a shard was set aside, or returned to its source."""
    payload = {"source": source, "reason": reason}
    _emit(RETURNED if back else SHELVED, f"hyco.shard.{source}/{path}", path, home, payload)


def away(entry: Shelved, home: Home) -> None:
    """Emit the event that a shard is still set aside."""
    payload = {"source": entry.source, "reason": str(entry)}
    _emit(AWAY, f"hyco.shard.{entry.source}/{entry.path}", entry.path, home, payload)


def quarantined(name: str, reason: str, home: Home) -> None:
    """Emit the event that a dataset version failed its quality gate."""
    _emit(QUARANTINED, f"hyco.version.{name}", name, home, {"reason": reason})


def given_up(version: str, reason: str, home: Home) -> None:
    """Emit the event that the trainings on a version have failed too often."""
    _emit(GIVEN_UP, f"hyco.version.{version}", version, home, {"reason": reason})


def decided(row: Decision, home: Home) -> None:
    """Emit the event of a promotion, refusal or rollback."""
    payload = {"reason": row.reason, "run": row.run, "version": row.version, "before": row.before}
    _emit(DECIDED[row.kind], f"hyco.model.{row.model}", row.model, home, payload)


def _emit(event: str, resource: str, name: str, home: Home, payload: dict[str, Any]) -> None:
    labels = {"prefect.resource.id": resource, "prefect.resource.name": name, "hyco.home": home.url}
    emit_event(event, resource=labels, payload=payload)


def flush() -> None:
    """Wait until the emitted events have reached the server."""
    EventsWorker.instance().drain()
