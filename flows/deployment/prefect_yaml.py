"""prefect.yaml, for users who prefer `prefect deploy --all` to `hyco deploy`.

python -m hyco.flows.deployment.prefect_yaml > prefect.yaml   regenerates the repository's own
"""

import sys
from typing import Any

import yaml

from hyco.flows.deployment.config import DeployConfig
from hyco.flows.deployment.deployments import GRACE_S, schema_of
from hyco.flows.deployment.spec import Blueprint, blueprint
from hyco.pipeline.end_to_end import JourneyConfig, packing_for
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.registry.retraining import RetrainConfig
from hyco.pipeline.training.recipes import demo

WORLD = "var/demo/scenes"
HEAD = """\
# What `hyco deploy` deploys, for `prefect deploy --all`; made by `hyco deploy --yaml FILE`. The repository's own is the
# embedded world (make demo): python -m hyco.flows.deployment.prefect_yaml > prefect.yaml
# Work pools, limits and automations are made by `hyco deploy` alone; without pools `prefect deploy --all` exits with 1.
"""


def demo_config() -> DeployConfig:
    """The configuration of the repository's own prefect.yaml: the embedded world, with relative paths."""
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
    """The blueprint's deployments in the form of prefect.yaml, with the parameters that differ from their defaults.

    Limits, pools and automations need `hyco deploy`.
    """
    deployments = []
    for one in plan.deployments:
        entry: dict[str, Any] = {
            "name": one.name,
            "description": one.description,
            "entrypoint": one.entrypoint,
            "tags": list(one.tags),
            "parameters": set_values(one.parameters, schema_of(one.flow)),
            "work_pool": {"name": one.pool, "work_queue_name": one.queue},
            "schedules": [],
        }
        if one.every_s is not None:
            entry["schedules"] = [{"interval": one.every_s}]
        if one.cron is not None:
            entry["schedules"] = [{"cron": one.cron, "timezone": "UTC"}]
        if one.limit is not None:
            entry["concurrency_limit"] = {
                "limit": one.limit,
                "collision_strategy": one.collision,
                "grace_period_seconds": GRACE_S,
            }
        deployments.append(entry)
    return {"name": "hyco", "pull": None, "deployments": deployments}


def set_values(values: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The required values and those that differ from their default, by the schema of an object, at any depth."""
    return _set_values(values, schema, schema.get("definitions", {}))


def _set_values(values: dict[str, Any], schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    derived = {name.strip("^$"): field for name, field in schema.get("patternProperties", {}).items()}
    fields, kept = {**schema["properties"], **derived}, {}
    for name, value in values.items():
        field, required = fields[name], name in schema.get("required", ())
        if "const" not in field and not required and field.get("default", ...) == value:
            continue
        if isinstance(value, dict):
            value = _set_values(value, known[_class(field, value)], known)
            if not value and not required and "default" not in field:  # made by a factory
                continue
        elif isinstance(value, list) and "$ref" in (item := field.get("items", {})):
            rows = known[item["$ref"].rpartition("/")[2]]
            value = [_set_values(each, rows, known) for each in value]
        kept[name] = value
    return kept


def _class(field: dict[str, Any], value: dict[str, Any]) -> str:
    """The definition for a value: the field's own, that of its kind, or the alternative to null."""
    if kinds := field.get("discriminator"):  # the constant that names the kind is always written
        reference = kinds["mapping"][value[kinds["propertyName"]]]
    else:
        (reference,) = [part["$ref"] for part in (field, *field.get("anyOf", ())) if "$ref" in part]
    return reference.rpartition("/")[2]


def text(plan: Blueprint) -> str:
    """The content of prefect.yaml."""
    return HEAD + yaml.safe_dump(to_yaml(plan), sort_keys=False, width=110)


if __name__ == "__main__":
    sys.stdout.write(text(blueprint(demo_config())))
