"""The objects that `hyco deploy` creates on a Prefect server, as values: also the source of prefect.yaml."""

from dataclasses import dataclass, field
from typing import Any, Literal

from flows.deployment.config import DeployConfig
from flows.deployment.work_pools import template
from flows.runtime.concurrency import CPU_LIMIT, GPU_LIMIT
from pipeline.config import Config
from pipeline.presets import PRESETS, asked, sized
from pipeline.runtime.executor import RAY

QUEUES = {"quick": 1, "work": 2}  # name and priority: checks go before long work
HEAVY = ("mine", "train", "assess", "journey", "watch", "retrain")
ON_A_CLUSTER = ("mine", "pack", "watch", "journey")  # flows with a parameter `engine`


@dataclass(frozen=True)
class Pool:
    """A work pool with its queues."""

    name: str
    kind: str
    description: str
    template: dict[str, Any]


@dataclass(frozen=True)
class Deployed:
    """One deployment: `flow` names the module and function flows.FLOW.FLOW."""

    flow: str
    name: str
    pool: str
    parameters: dict[str, Any]
    description: str
    queue: str = "work"
    every_s: float | None = None
    cron: str | None = None
    limit: int | None = None
    collision: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"
    tags: tuple[str, ...] = ("hyco",)

    @property
    def full_name(self) -> str:
        """FLOW/NAME, as Prefect names deployments."""
        return f"{self.flow}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """The module path of the flow: the installed package is imported, so files in flows/ shadow no module."""
        return f"flows.{self.flow}.{self.flow}"


@dataclass(frozen=True)
class Blueprint:
    """All pools, limits and deployments. Automations need deployment ids: flows/deployment/automations.py."""

    config: DeployConfig
    pools: tuple[Pool, ...]
    deployments: tuple[Deployed, ...]
    limits: dict[str, int] = field(default_factory=dict)


def blueprint(config: DeployConfig) -> Blueprint:
    """Return the blueprint of a configuration."""
    where = (config.image, config.directory, config.volumes, config.networks, config.claim)
    pools = tuple(
        Pool(
            name,
            config.pool_type,
            f"Hyco's work that needs {need} GPU",
            template(config.pool_type, name == "gpu", *where),
        )
        for name, need in (("cpu", "no"), ("gpu", "a"))
    )
    if config.heavy_pool == RAY:
        about = "Hyco's work that a Ray cluster does; its worker runs on a node"
        variables = {} if config.ray_workers is None else {"HYCO_WORKERS": str(config.ray_workers)}
        pools += (
            Pool(RAY, config.pool_type, about, template(config.pool_type, False, *where, env=variables)),
        )
    limits = {GPU_LIMIT: config.gpus, CPU_LIMIT: config.cpu_trainings}
    return Blueprint(config, pools, tuple(_deployments(config)), limits)


def _deployments(config: DeployConfig) -> list[Deployed]:
    journey, home = config.retrain.journey, config.home
    sizes = {
        preset: journey.replace(recipe=sized(journey.recipe, preset), assess=asked(journey.assess, preset))
        for preset in PRESETS
    }
    gate = config.retrain.gate.replace(
        above_chance=config.retrain.gate.above_chance and config.preset != "smoke"
    )
    retrain = _plain(config.retrain.replace(journey=sizes[config.preset], gate=gate))
    mine, pack = _plain(journey.mine), _plain(journey.pack)

    def add(flow: str, name: str, parameters: dict[str, Any], description: str, **rest: Any) -> Deployed:
        on_ray = config.heavy_pool == RAY and flow in ON_A_CLUSTER
        pool = config.heavy_pool if flow in HEAVY or on_ray else "cpu"
        engine = {"engine": config.engine} if on_ray else {}
        return Deployed(flow, name, pool, {**parameters, "home": home, **engine}, description, **rest)

    made = [
        add("mine", "mine", {"config": mine}, "Find noun phrases and boxes in the source's new shards."),
        add(
            "pack",
            "pack",
            {"mine": mine, "config": pack},
            "Make crops, training shards and a dataset version.",
        ),
        add(
            "assess",
            "assess",
            {
                "assess_source": journey.assess_source,
                "taxonomy": journey.taxonomy,
                "config": _plain(journey.assess),
            },
            "Evaluate a trained run and write its report: give its directory.",
        ),
        add(
            "watch",
            "watch",
            {"config": retrain},
            "Mine and pack new data; start a training when there is enough of it.",
            queue="quick",
            every_s=config.watch_every_s,
            limit=1,
            collision="CANCEL_NEW",
        ),
        add(
            "retrain",
            "retrain",
            {"config": retrain, "force": False},
            "Train a challenger, compare it with the champion, promote or refuse it.",
            limit=1,
        ),
        add(
            "maintain",
            "maintain",
            {},
            "Delete old and unreferenced files and runs.",
            queue="quick",
            cron=config.maintain_cron,
        ),
    ]
    for preset in PRESETS:
        sized_journey = sizes[preset]
        made.append(
            add("journey", preset, {"config": _plain(sized_journey)}, f"The whole journey, {preset}.")
        )
        recipe = {"recipe": _plain(sized_journey.recipe), "version": "latest", "processes": journey.processes}
        made.append(add("train", preset, recipe, f"Train on the latest dataset version, {preset}."))
    return made


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")
