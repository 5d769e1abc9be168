"""Create the objects of flows/deployment/spec.py on a Prefect server, or report how the server differs.

Applying twice changes nothing the second time: only differences are written, so paused schedules and waiting runs are
not touched.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from hyco.flows.deployment.automations import TELLS, automations, messages
from hyco.flows.deployment.deployments import Drift, Kept, deployments, leftovers
from hyco.flows.deployment.spec import QUEUES, Blueprint, Pool

Note = Callable[[str], object]


def _ignore(line: str) -> None:
    """Take no note of what is kept."""


def apply(plan: Blueprint, before: Blueprint | None = None, note: Note = _ignore) -> list[str]:
    """Apply the blueprint to the server; return the changes, one line each.

    Parameters, schedules and limits that were changed on the server since `before` was deployed are kept, unless the
    plan differs from `before` there. Without `before` nothing is kept. `note` gets what is kept, one line each.
    """
    changed = []
    with get_client(sync_client=True) as client:
        for part in PARTS:
            for found in _differences(list(part(client, plan, before)), note):
                found.fix()
                changed.append(found.done)
    return changed


def check(plan: Blueprint, before: Blueprint | None = None, note: Note = _ignore) -> list[str]:
    """Return the differences that `apply` would fix, one line each, changing nothing; `note` as there."""
    with get_client(sync_client=True) as client:
        found = [one for part in PARTS for one in part(client, plan, before)]
    return [one.what for one in _differences(found, note)]


def _differences(found: list[Drift | Kept], note: Note) -> Iterator[Drift]:
    for one in found:
        if isinstance(one, Drift):
            yield one
        else:
            note(one.what)


def pauses(plan: Blueprint) -> list[str]:
    """Return what somebody has paused or given a time zone on the server, one line each; all of it is kept."""
    found = []
    with get_client(sync_client=True) as client:
        for pool in plan.pools:
            with contextlib.suppress(ObjectNotFound):
                if client.read_work_pool(pool.name).is_paused:
                    found.append(f"work pool {pool.name} is paused")
        for wanted in plan.deployments:
            with contextlib.suppress(ObjectNotFound):
                there = client.read_deployment_by_name(wanted.full_name)
                if there.paused or not all(schedule.active for schedule in there.schedules):
                    found.append(f"deployment {wanted.full_name} is paused")
                zones = {getattr(one.schedule, "timezone", None) or "UTC" for one in there.schedules}
                for zone in sorted(zones - {"UTC"}):
                    found.append(
                        f"deployment {wanted.full_name} is scheduled in {zone}: when its clocks change, a daily "
                        "interval drifts by an hour, and a cron from 1:00 to 3:00 runs early or twice; use UTC, or a "
                        "cron at another hour"
                    )
    return found


def _pools(client: SyncPrefectClient, plan: Blueprint, _: Blueprint | None) -> Iterator[Drift]:
    for pool in plan.pools:
        yield from _pool(client, pool)
        for name, priority in QUEUES.items():
            try:
                queue = client.read_work_queue_by_name(name, pool.name)
            except ObjectNotFound:
                yield Drift(
                    f"work queue {pool.name}/{name}",
                    "missing",
                    lambda pool=pool, name=name, priority=priority: client.create_work_queue(
                        name, work_pool_name=pool.name, priority=priority
                    ),
                )
            else:
                if queue.priority != priority:
                    yield Drift(
                        f"work queue {pool.name}/{name}",
                        f"priority {queue.priority} -> {priority}",
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
        yield Drift(f"work pool {pool.name}", "missing", lambda: client.create_work_pool(wanted))
        return
    if found.type != pool.kind:
        raise ValueError(
            f"work pool {pool.name} is of type {found.type}, and Prefect cannot change that: "
            f"`prefect work-pool delete {pool.name}` first, or deploy with --pool-type {found.type}"
        )
    if (found.base_job_template, found.description) != (pool.template, pool.description):
        update = WorkPoolUpdate(base_job_template=pool.template, description=pool.description)
        yield Drift(
            f"work pool {pool.name}", "different template", lambda: client.update_work_pool(pool.name, update)
        )


def _limits(client: SyncPrefectClient, plan: Blueprint, before: Blueprint | None) -> Iterator[Drift | Kept]:
    for name, limit in plan.limits.items():
        try:
            found = client.read_global_concurrency_limit_by_name(name).limit
        except ObjectNotFound:
            found = None
        if found == limit:
            continue
        if found is not None and before and before.limits[name] == limit:
            yield Kept(f"concurrency limit {name}", f"{limit} -> {found}")
            continue
        yield Drift(
            f"concurrency limit {name}",
            "missing" if found is None else f"{found} -> {limit}",
            lambda name=name, limit=limit: client.upsert_global_concurrency_limit_by_name(name, limit),
        )


def _automations(client: SyncPrefectClient, plan: Blueprint, _: Blueprint | None) -> Iterator[Drift]:
    ids = {}
    for wanted in plan.deployments:
        try:
            ids[wanted.full_name] = client.read_deployment_by_name(wanted.full_name).id
        except ObjectNotFound:
            ids[wanted.full_name] = UUID(int=0)
    asked = automations(plan.config, ids)
    if plan.config.notify:
        asked += messages(_block(client, plan.config.notify), ids["watch/watch"])
    else:
        for left in client.read_automations():
            if left.name.startswith(TELLS):
                yield Drift(
                    f"automation {left.name!r}",
                    "no longer asked",
                    lambda id=left.id: client.delete_automation(id),
                )
    for wanted in asked:
        found = client.read_automations_by_name(wanted.name)
        if not found:
            yield Drift(
                f"automation {wanted.name!r}", "missing", lambda w=wanted: client.create_automation(w)
            )
        elif _essence(found[0]) != _essence(wanted):
            paused_or_not = wanted.model_copy(update={"enabled": found[0].enabled})
            yield Drift(
                f"automation {wanted.name!r}",
                "different rules",
                lambda w=paused_or_not, id=found[0].id: client.update_automation(id, w),
            )
        for double in found[1:]:
            yield Drift(
                f"automation {wanted.name!r}",
                "exists twice",
                lambda id=double.id: client.delete_automation(id),
            )


def _block(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, own = name.partition("/")
    try:
        return client.read_block_document_by_name(own, kind, include_secrets=False).id
    except ObjectNotFound:
        there = [
            f"{one.block_type.slug}/{one.name}" for one in client.read_block_documents() if one.block_type
        ]
        raise ValueError(
            f"notify: the server has no block {name}; it has {', '.join(there) or 'none'}: "
            "add one in the UI under Blocks, or --set notify=null"
        ) from None


def _essence(automation: AutomationCore) -> Any:
    kept = {"name", "description", "trigger", "actions"}
    return AutomationCore.model_validate(automation.model_dump(include=kept)).model_dump(include=kept)


PARTS = (_pools, _limits, deployments, leftovers, _automations)
