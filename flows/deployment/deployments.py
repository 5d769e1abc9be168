"""Differences between the deployments on a server and the blueprint's, and their fixes."""

import functools
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
GRACE_S = 300  # for a container to start before its slot is given to another run


@dataclass(frozen=True)
class Drift:
    """One difference and its fix."""

    what: str
    mend: Callable[[], Any]

    @property
    def done(self) -> str:
        """What was done, once it is mended: "created work pool cpu"."""
        name, _, how = self.what.rpartition(": ")
        verbs = {"missing": "created", "there twice": "deleted a second"}
        return f"{verbs[how]} {name}" if how in verbs else f"updated {name}: {how}"


def deployments(client: SyncPrefectClient, plan: Blueprint) -> Iterator[Drift]:
    """Yield a Drift for every deployment that is missing or differs."""
    for wanted in plan.deployments:
        schema = schema_of(wanted.flow)
        version = digest({"deployed": wanted, "schema": schema})
        try:
            found = client.read_deployment_by_name(wanted.full_name)
        except ObjectNotFound:
            yield Drift(
                f"deployment {wanted.full_name}: missing", lambda w=wanted, v=version: _create(client, w, v)
            )
            continue
        limit, options = found.global_concurrency_limit, found.concurrency_options
        there = {
            "parameters": found.parameters,
            "entrypoint": found.entrypoint,
            "work pool": found.work_pool_name,
            "work queue": found.work_queue_name,
            "schedule": [_timing(schedule.schedule) for schedule in found.schedules],
            "concurrency limit": limit.limit if limit else None,
            "collision strategy": options.collision_strategy if limit and options else None,
            "definition": found.version,
        }
        asked = {
            "parameters": wanted.parameters,
            "entrypoint": wanted.entrypoint,
            "work pool": wanted.pool,
            "work queue": wanted.queue,
            "schedule": [_timing(schedule.schedule) for schedule in _schedules(wanted)],
            "concurrency limit": wanted.limit,
            "collision strategy": wanted.collision if wanted.limit is not None else None,
            "definition": version,
        }
        if other := [name for name in asked if there[name] != asked[name]]:
            active = all(schedule.active for schedule in found.schedules)
            yield Drift(
                f"deployment {wanted.full_name}: different {', '.join(other)}",
                lambda w=wanted, v=version, a=active: _create(client, w, v, a),
            )


def _create(client: SyncPrefectClient, wanted: Deployed, version: str, active: bool = True) -> UUID:
    """Create or replace a deployment; a schedule that somebody paused stays paused (`active`)."""
    options = None
    if wanted.limit is not None:
        options = ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(wanted.collision), grace_period_seconds=GRACE_S
        )
    return client.create_deployment(
        flow_id=client.create_flow_from_name(wanted.flow),
        name=wanted.name,
        version=version,
        schedules=_schedules(wanted, active),
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


def _timing(schedule: Any) -> Any:
    return getattr(schedule, "interval", None) or getattr(schedule, "cron", None)
