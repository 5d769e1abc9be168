"""Create what flows/blueprint.py describes on a Prefect server, or say where the server differs from it.

Applying twice changes nothing the second time: only what differs is written, so schedules that somebody paused and
runs that are waiting are left alone.
"""

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from flows.automations import automations
from flows.blueprint import QUEUES, Blueprint, Deployed, Pool
from pipeline.config import digest

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
GRACE_S = 300  # for a container to start before its place is given to another run


@dataclass(frozen=True)
class Drift:
    """One difference and what mends it."""

    what: str
    mend: Callable[[], Any]


def apply(plan: Blueprint) -> list[str]:
    """Make the server as the blueprint says; return what was changed, one line each."""
    changed = []
    with get_client(sync_client=True) as client:
        for part in (_pools, _limits, _deployments, _automations):
            for drift in list(part(client, plan)):
                drift.mend()
                changed.append(drift.what)
    return changed


def check(plan: Blueprint) -> list[str]:
    """Return how the server differs from the blueprint, one line each; nothing is changed."""
    with get_client(sync_client=True) as client:
        parts = (_pools, _limits, _deployments, _automations)
        return [drift.what for part in parts for drift in part(client, plan)]


def _pools(client: SyncPrefectClient, plan: Blueprint) -> Iterator[Drift]:
    for pool in plan.pools:
        yield from _pool(client, pool)
        for name, priority in QUEUES.items():
            try:
                queue = client.read_work_queue_by_name(name, pool.name)
            except ObjectNotFound:
                yield Drift(
                    f"work queue {pool.name}/{name}: missing",
                    lambda pool=pool, name=name, priority=priority: client.create_work_queue(
                        name, work_pool_name=pool.name, priority=priority
                    ),
                )
            else:
                if queue.priority != priority:
                    yield Drift(
                        f"work queue {pool.name}/{name}: priority {queue.priority}, not {priority}",
                        lambda id=queue.id, priority=priority: client.update_work_queue(
                            id, priority=priority
                        ),
                    )


def _pool(client: SyncPrefectClient, pool: Pool) -> Iterator[Drift]:
    try:
        found = client.read_work_pool(pool.name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=pool.name, type=pool.kind, description=pool.description, base_job_template=pool.template
        )
        yield Drift(f"work pool {pool.name}: missing", lambda: client.create_work_pool(wanted))
        return
    if found.type != pool.kind:
        raise ValueError(
            f"work pool {pool.name} is of type {found.type}, and Prefect cannot change that: "
            f"`prefect work-pool delete {pool.name}` first, or deploy with --pool-type {found.type}"
        )
    if (found.base_job_template, found.description) != (pool.template, pool.description):
        update = WorkPoolUpdate(base_job_template=pool.template, description=pool.description)
        yield Drift(
            f"work pool {pool.name}: another template", lambda: client.update_work_pool(pool.name, update)
        )


def _limits(client: SyncPrefectClient, plan: Blueprint) -> Iterator[Drift]:
    for name, limit in plan.limits.items():
        try:
            found = client.read_global_concurrency_limit_by_name(name).limit
        except ObjectNotFound:
            found = None
        if found != limit:
            yield Drift(
                f"concurrency limit {name}: {'missing' if found is None else f'{found}, not {limit}'}",
                lambda name=name, limit=limit: client.upsert_global_concurrency_limit_by_name(name, limit),
            )


def _deployments(client: SyncPrefectClient, plan: Blueprint) -> Iterator[Drift]:
    for wanted in plan.deployments:
        schema = _schema(wanted.flow)
        version = digest({"deployed": wanted, "schema": schema})
        try:
            found = client.read_deployment_by_name(wanted.full_name)
        except ObjectNotFound:
            yield Drift(
                f"deployment {wanted.full_name}: missing", lambda w=wanted, v=version: _create(client, w, v)
            )
            continue
        limit = found.global_concurrency_limit
        there = {
            "parameters": found.parameters,
            "entrypoint": found.entrypoint,
            "work pool": found.work_pool_name,
            "work queue": found.work_queue_name,
            "schedule": [_timing(schedule.schedule) for schedule in found.schedules],
            "concurrency limit": limit.limit if limit else None,
            "definition": found.version,
        }
        asked = {
            "parameters": wanted.parameters,
            "entrypoint": wanted.entrypoint,
            "work pool": wanted.pool,
            "work queue": wanted.queue,
            "schedule": [_timing(schedule.schedule) for schedule in _schedules(wanted)],
            "concurrency limit": wanted.limit,
            "definition": version,
        }
        if other := [name for name in asked if there[name] != asked[name]]:
            yield Drift(
                f"deployment {wanted.full_name}: another {', '.join(other)}",
                lambda w=wanted, v=version: _create(client, w, v),
            )


def _create(client: SyncPrefectClient, wanted: Deployed, version: str) -> UUID:
    options = None
    if wanted.limit is not None:
        options = ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(wanted.collision), grace_period_seconds=GRACE_S
        )
    return client.create_deployment(
        flow_id=client.create_flow_from_name(wanted.flow),
        name=wanted.name,
        version=version,
        schedules=_schedules(wanted),
        concurrency_limit=wanted.limit,
        concurrency_options=options,
        parameters=wanted.parameters,
        description=wanted.description,
        work_pool_name=wanted.pool,
        work_queue_name=wanted.queue,
        tags=list(wanted.tags),
        entrypoint=wanted.entrypoint,
        parameter_openapi_schema=_schema(wanted.flow),
        enforce_parameter_schema=True,
        pull_steps=[],
    )


@functools.cache
def _schema(name: str) -> dict[str, Any]:
    """The typed form of a flow's parameters."""
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    return json.loads(json.dumps(parameter_schema(flow).model_dump()))


def _schedules(wanted: Deployed) -> list[DeploymentScheduleCreate]:
    if wanted.every_s is not None:
        schedule = IntervalSchedule(
            interval=timedelta(seconds=wanted.every_s), anchor_date=ANCHOR, timezone="UTC"
        )
        return [DeploymentScheduleCreate(schedule=schedule, active=True)]
    if wanted.cron is not None:
        return [
            DeploymentScheduleCreate(schedule=CronSchedule(cron=wanted.cron, timezone="UTC"), active=True)
        ]
    return []


def _timing(schedule: Any) -> Any:
    return getattr(schedule, "interval", None) or getattr(schedule, "cron", None)


def _automations(client: SyncPrefectClient, plan: Blueprint) -> Iterator[Drift]:
    ids = {}
    for wanted in plan.deployments:
        try:
            ids[wanted.full_name] = client.read_deployment_by_name(wanted.full_name).id
        except ObjectNotFound:
            ids[wanted.full_name] = UUID(int=0)
    for wanted in automations(plan.config, ids):
        found = client.read_automations_by_name(wanted.name)
        if not found:
            yield Drift(f"automation {wanted.name!r}: missing", lambda w=wanted: client.create_automation(w))
        elif _essence(found[0]) != _essence(wanted):
            paused_or_not = wanted.model_copy(update={"enabled": found[0].enabled})
            yield Drift(
                f"automation {wanted.name!r}: other rules",
                lambda w=paused_or_not, id=found[0].id: client.update_automation(id, w),
            )
        for double in found[1:]:
            yield Drift(
                f"automation {wanted.name!r}: there twice", lambda id=double.id: client.delete_automation(id)
            )


def _essence(automation: AutomationCore) -> Any:
    kept = {"name", "description", "trigger", "actions"}
    return AutomationCore.model_validate(automation.model_dump(include=kept)).model_dump(include=kept)
