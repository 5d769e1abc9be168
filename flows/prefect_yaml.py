"""prefect.yaml, for those who would rather type `prefect deploy --all` than `hyco deploy`."""

from typing import Any

import yaml

from flows.blueprint import Blueprint
from flows.deploy_config import DeployConfig
from pipeline.journey import JourneyConfig, packing_for
from pipeline.mine import MineConfig
from pipeline.recipes import demo
from pipeline.watch import RetrainConfig

WORLD = "var/demo/scenes"
HEAD = "# The deployments of the embedded world (make demo), from flows/blueprint.py: hyco deploy --yaml prefect.yaml\n"


def demo_config() -> DeployConfig:
    """What the repository's own prefect.yaml deploys: the embedded world, with paths from the repository's root."""
    held = f"{WORLD}/heldout"
    journey = JourneyConfig(
        mine=MineConfig(source=f"{WORLD}/train", grounder="transformers:demo/weights/grounder"),
        pack=packing_for("demo", held),
        recipe=demo(),
        assess_source=held,
        taxonomy=f"{WORLD}/taxonomy.json",
    )
    return DeployConfig(home="var/demo", retrain=RetrainConfig(journey=journey))


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


def text(plan: Blueprint) -> str:
    """The same as a file."""
    return HEAD + yaml.safe_dump(to_yaml(plan), sort_keys=False, width=110)
