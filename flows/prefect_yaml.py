"""prefect.yaml, for those who would rather type `prefect deploy --all` than `hyco deploy`."""

from typing import Any

from flows.blueprint import Blueprint


def to_yaml(plan: Blueprint) -> dict[str, Any]:
    """The blueprint's deployments as prefect.yaml has them. Limits, pools and automations need `hyco deploy`."""
    deployments = []
    for one in plan.deployments:
        entry: dict[str, Any] = {
            "name": one.name,
            "description": one.description,
            "entrypoint": one.entrypoint,
            "tags": list(one.tags),
            "parameters": one.parameters,
            "work_pool": {"name": one.pool, "work_queue_name": one.queue},
            "schedules": [],
        }
        if one.every_s is not None:
            entry["schedules"] = [{"interval": one.every_s}]
        if one.cron is not None:
            entry["schedules"] = [{"cron": one.cron, "timezone": "UTC"}]
        if one.limit is not None:
            entry["concurrency_limit"] = {"limit": one.limit, "collision_strategy": one.collision}
        deployments.append(entry)
    return {"name": "hyco", "pull": None, "deployments": deployments}
