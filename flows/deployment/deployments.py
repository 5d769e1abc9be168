"""Differences between the deployments on a server and the blueprint's, and their fixes."""

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from flows.deployment.spec import Blueprint, Deployed
from pipeline.config import digest

Path = tuple[str, ...]
Terms = dict[Path, Any]

SCHEDULE, LIMIT = ("schedule",), ("concurrency limit",)
ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
GRACE_S = 300  # for a container to start before its slot is given to another run


@dataclass(frozen=True)
class Drift:
    """One difference (what it is about, and how it differs) and its fix."""

    name: str
    how: str
    mend: Callable[[], Any]

    @property
    def what(self) -> str:
        """The difference in one line."""
        return f"{self.name}: {self.how}"

    @property
    def done(self) -> str:
        """What was done, once it is mended: "created work pool cpu"."""
        verbs = {"missing": "created", "exists twice": "deleted a second", "no longer asked": "deleted"}
        return f"{verbs[self.how]} {self.name}" if self.how in verbs else f"updated {self.what}"


@dataclass(frozen=True)
class Kept:
    """What somebody changed on the server and `hyco deploy` leaves as it is."""

    name: str
    how: str

    @property
    def what(self) -> str:
        """The change in one line."""
        return f"{self.name}: {self.how}, changed on the server and kept; hyco deploy --reset undoes it"


def deployments(
    client: SyncPrefectClient, plan: Blueprint, before: Blueprint | None
) -> Iterator[Drift | Kept]:
    """Yield what is missing, differs, or was edited since `before` was deployed (None: edits are not kept)."""
    earlier = {one.full_name: one for one in before.deployments} if before else {}
    for wanted in plan.deployments:
        schema = schema_of(wanted.flow)
        version = digest({"deployed": wanted, "schema": schema})
        name = f"deployment {wanted.full_name}"
        try:
            found = client.read_deployment_by_name(wanted.full_name)
        except ObjectNotFound:
            yield Drift(name, "missing", lambda w=wanted, v=version: _create(client, w, v))
            continue
        limit, options = found.global_concurrency_limit, found.concurrency_options
        on_server = {
            **_leaves(found.parameters, ("parameters",)),
            SCHEDULE: [_timing(schedule.schedule) for schedule in found.schedules],
            LIMIT: limit.limit if limit else None,
        }
        asked, last = _terms(wanted), earlier.get(wanted.full_name)
        ours = last is not None and found.parameters.get("home") == last.parameters["home"]
        terms = merged(on_server, asked, _terms(last) if ours and last else {})
        yield from (Kept(name, how) for how in changes(asked, terms))
        there = {
            "entrypoint": found.entrypoint,
            "work pool": found.work_pool_name,
            "work queue": found.work_queue_name,
            "collision strategy": options.collision_strategy if limit and options else None,
            "definition": found.version,
        }
        fixed = {
            "entrypoint": wanted.entrypoint,
            "work pool": wanted.pool,
            "work queue": wanted.queue,
            "collision strategy": wanted.collision if terms[LIMIT] is not None else None,
            "definition": version,
        }
        other = changes(on_server, terms) + [
            f"different {part}" for part in fixed if there[part] != fixed[part]
        ]
        if other:
            active = all(schedule.active for schedule in found.schedules)
            schedules = _schedules(wanted, active)
            if terms[SCHEDULE] != asked[SCHEDULE]:
                schedules = [
                    DeploymentScheduleCreate(schedule=one.schedule, active=one.active)
                    for one in found.schedules
                ]
            chosen = replace(wanted, parameters=_tree(terms), limit=terms[LIMIT])
            yield Drift(
                name,
                ", ".join(other),
                lambda c=chosen, v=version, t=schedules: _create(client, c, v, t),
            )


def merged(there: Terms, asked: Terms, before: Terms) -> Terms:
    """`asked`, with what differs from `before` on the server where `asked` does not."""
    kept = {
        name
        for name, value in asked.items()
        if name in there and name in before and before[name] == value and there[name] != value
    }
    return {name: there[name] if name in kept else value for name, value in asked.items()}


def changes(old: Terms, new: Terms) -> list[str]:
    """Return the differences, "parameters.config.min_new 500 -> 1000", at most six of them."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    lines = [f"{'.'.join(name)} {_shown(old, name)} -> {_shown(new, name)}" for name in names]
    return lines if len(lines) <= 6 else [*lines[:5], f"{len(lines) - 5} more"]


def _shown(terms: Terms, name: Path) -> str:
    value = terms.get(name, "nothing")
    if name == SCHEDULE:
        return " and ".join(value) or "none"
    return "none" if value is None else str(value)


def _terms(wanted: Deployed) -> Terms:
    """What people edit on the page of a deployment, by path."""
    return {
        **_leaves(wanted.parameters, ("parameters",)),
        SCHEDULE: [_timing(schedule.schedule) for schedule in _schedules(wanted)],
        LIMIT: wanted.limit,
    }


def _leaves(value: Any, path: Path) -> Terms:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {name: leaf for key, inner in value.items() for name, leaf in _leaves(inner, (*path, key)).items()}


def _tree(terms: Terms) -> dict[str, Any]:
    """Parameters from their leaves."""
    made: dict[str, Any] = {}
    for (first, *inner), value in terms.items():
        if first == "parameters":
            folder = made
            for key in inner[:-1]:
                folder = folder.setdefault(key, {})
            folder[inner[-1]] = value
    return made


def _create(
    client: SyncPrefectClient,
    wanted: Deployed,
    version: str,
    schedules: list[DeploymentScheduleCreate] | None = None,
) -> UUID:
    """Create or replace a deployment, with schedules of its own or these."""
    options = None
    if wanted.limit is not None:
        options = ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(wanted.collision), grace_period_seconds=GRACE_S
        )
    return client.create_deployment(
        flow_id=client.create_flow_from_name(wanted.flow),
        name=wanted.name,
        version=version,
        schedules=_schedules(wanted) if schedules is None else schedules,
        concurrency_limit=wanted.limit,
        concurrency_options=options,
        parameters=wanted.parameters,
        description=wanted.description,
        work_pool_name=wanted.pool,
        work_queue_name=wanted.queue,
        tags=list(wanted.tags),
        entrypoint=wanted.entrypoint,
        parameter_openapi_schema=schema_of(wanted.flow),
        enforce_parameter_schema=True,
        pull_steps=[],
    )


@functools.cache
def schema_of(name: str) -> dict[str, Any]:
    """The typed form of a flow's parameters."""
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    return json.loads(json.dumps(parameter_schema(flow).model_dump()))


def _schedules(wanted: Deployed, active: bool = True) -> list[DeploymentScheduleCreate]:
    if wanted.every_s is not None:
        schedule = IntervalSchedule(
            interval=timedelta(seconds=wanted.every_s), anchor_date=ANCHOR, timezone="UTC"
        )
        return [DeploymentScheduleCreate(schedule=schedule, active=active)]
    if wanted.cron is not None:
        return [
            DeploymentScheduleCreate(schedule=CronSchedule(cron=wanted.cron, timezone="UTC"), active=active)
        ]
    return []


def _timing(schedule: Any) -> str:
    """A schedule in words, with its zone where that is not UTC."""
    zone = getattr(schedule, "timezone", None) or "UTC"
    if isinstance(schedule, IntervalSchedule):
        words = f"every {schedule.interval.total_seconds():g} s"
    else:
        words = f"'{getattr(schedule, 'cron', None) or schedule.rrule}'"
    return words if zone == "UTC" else f"{words} in {zone}"
