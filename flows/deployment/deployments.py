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
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from hyco.flows.deployment.spec import RENAMED, Blueprint, Deployed
from hyco.pipeline.config import digest, place

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
    fix: Callable[[], Any]

    @property
    def what(self) -> str:
        """The difference in one line."""
        return f"{self.name}: {self.how}"

    @property
    def done(self) -> str:
        """What was done, once it is fixed: "created work pool cpu"."""
        verbs = {"missing": "created", "exists twice": "deleted a second", "no longer asked": "deleted"}
        return f"{verbs[self.how]} {self.name}" if self.how in verbs else f"updated {self.what}"


@dataclass(frozen=True)
class Kept:
    """What somebody changed on the server and `hyco deploy` leaves as it is."""

    name: str
    how: str
    why: str = "changed on the server and kept; hyco deploy --reset undoes it"

    @property
    def what(self) -> str:
        """The change in one line."""
        return f"{self.name}: {self.how}, {self.why}"


def deployments(
    client: SyncPrefectClient, plan: Blueprint, before: Blueprint | None
) -> Iterator[Drift | Kept]:
    """Yield what is missing, differs, or was edited since `before` was deployed (None: edits are not kept).

    A deployment that Hyco made under another name before is made again under its own, with what was edited.
    """
    earlier = {one.full_name: one for one in before.deployments} if before else {}
    for wanted in plan.deployments:
        schema = schema_of(wanted.flow)
        version = digest({"deployed": wanted, "schema": schema})
        name = f"deployment {wanted.full_name}"
        found = read(client, wanted.full_name)
        former = None if found else predecessor(client, wanted)
        found = found or former
        if found is None:
            yield Drift(name, "missing", lambda w=wanted, v=version: _create(client, w, v))
            continue
        limit, options = found.global_concurrency_limit, found.concurrency_options
        on_server = terms_of(found)
        asked, last = _terms(wanted), earlier.get(wanted.full_name)
        ours = last is not None and found.parameters.get("home") == last.parameters["home"]
        terms = merged(on_server, asked, _terms(last) if ours and last else {})
        yield from (Kept(name, how) for how in changes(asked, terms))
        schedules = None
        if terms[SCHEDULE] != asked[SCHEDULE]:
            schedules = [
                DeploymentScheduleCreate(schedule=one.schedule, active=one.active) for one in found.schedules
            ]
        chosen = replace(wanted, parameters=_tree(terms), limit=terms[LIMIT])
        if former:
            yield Drift(
                f"deployment {wanted.flow}/{former.name}",
                f"is now called {wanted.full_name}",
                lambda c=chosen, v=version, t=schedules, p=former.paused: _create(client, c, v, t, p),
            )
            continue
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
            timed = _schedules(wanted, active) if schedules is None else schedules
            yield Drift(
                name,
                ", ".join(other),
                lambda c=chosen, v=version, t=timed: _create(client, c, v, t),
            )


def leftovers(client: SyncPrefectClient, plan: Blueprint, before: Blueprint | None) -> Iterator[Drift | Kept]:
    """Yield the deployments that Hyco made under former names and no longer needs.

    One stays as long as it has runs, an automation starts it, or it was edited and has no successor.
    """
    there = {one.full_name for one in plan.deployments if read(client, one.full_name)}
    earlier = {one.full_name: one for one in before.former} if before else {}
    for one in plan.former:
        heir = RENAMED[one.full_name]
        found = made_by_hyco(client, one)
        if found is None or (heir and heir not in there):
            continue
        name, last = f"deployment {one.full_name}", earlier.get(one.full_name)
        edits = changes(_terms(last), terms_of(found)) if last and not heir else []
        if edits:
            yield from (Kept(name, how) for how in edits)
        elif busy := _in_use(client, found):
            yield Kept(name, "no longer made", f"and kept while {busy}; another hyco deploy deletes it")
        else:
            yield Drift(name, "no longer asked", lambda id=found.id: client.delete_deployment(id))


def read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    """Return a deployment by its full name, None without one."""
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def predecessor(client: SyncPrefectClient, wanted: Deployed) -> DeploymentResponse | None:
    """Return the deployment that Hyco made for the same purpose under another name; None without one."""
    for former, now in RENAMED.items():
        if now == wanted.full_name:
            return made_by_hyco(client, replace(wanted, name=former.partition("/")[2]))
    return None


def made_by_hyco(client: SyncPrefectClient, one: Deployed) -> DeploymentResponse | None:
    """Return the deployment of that name if `hyco deploy` made it for this home; None otherwise."""
    found = read(client, one.full_name)
    if found is None or "hyco" not in found.tags or found.entrypoint != one.entrypoint:
        return None
    return found if found.parameters.get("home") == one.parameters["home"] else None


def _in_use(client: SyncPrefectClient, found: DeploymentResponse) -> str:
    """What still needs a deployment, in words; empty when nothing does."""
    under_way = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[found.id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)))
        ),
    )
    if under_way:
        return f"{under_way[0].name} is under way"
    for automation in client.read_automations():
        if any(getattr(action, "deployment_id", None) == found.id for action in automation.actions):
            return f"automation {automation.name!r} starts it"
    return ""


def terms_of(found: DeploymentResponse) -> Terms:
    """What people edit on the page of a deployment, as it is on the server, by path."""
    limit = found.global_concurrency_limit
    return {
        **_leaves(found.parameters, ("parameters",)),
        SCHEDULE: [_timing(schedule.schedule) for schedule in found.schedules],
        LIMIT: limit.limit if limit else None,
    }


def merged(there: Terms, asked: Terms, before: Terms) -> Terms:
    """`asked`, with what differs from `before` on the server where `asked` does not.

    On the server, null may have become an object, or an object null; this is kept where `asked` changes nothing in it.
    """
    new = [name for name, value in asked.items() if name not in before or before[name] != value]
    found: Terms = {}
    for name, value in asked.items():
        edited = {
            other: held for other, held in there.items() if _inside(other, name) or _inside(name, other)
        }
        touched = any(_inside(one, other) for one in new for other in (name, *edited))
        found |= edited if edited and not touched else {name: value}
    return found


def _inside(name: Path, outer: Path) -> bool:
    return name[: len(outer)] == outer


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
    paused: bool | None = None,
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
        paused=paused,
        pull_steps=[],
    )


@functools.cache
def schema_of(name: str) -> dict[str, Any]:
    """The typed form of a flow's parameters."""
    flow = getattr(importlib.import_module(f"hyco.flows.{name}"), name)
    schema = json.loads(json.dumps(parameter_schema(flow).model_dump()))
    place(schema["properties"], ("run_dir", "version", "run", "force"))
    for inner in schema["definitions"].values():
        fields = inner.get("properties", {})
        if any("position" not in field for field in fields.values()):  # of a dataclass
            place(fields)
    return schema


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
