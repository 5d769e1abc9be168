"""What `hyco deploy` creates on a Prefect server, as values: the one source of truth, for prefect.yaml too."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from flows.tasks import CPU_LIMIT, GPU_LIMIT
from flows.templates import PoolType, template
from pipeline.config import Config
from pipeline.presets import PRESETS, Preset, asked, sized
from pipeline.watch import RetrainConfig

QUEUES = {"quick": 1, "work": 2}  # name and priority: looks go before long work
HEAVY = ("mine", "train", "assess", "journey", "watch", "retrain")


class DeployConfig(Config):
    """What is deployed; kept in HOME/deploy.json.

    Attributes:
        home: where everything Hyco makes is kept, as the workers see it.
        retrain: the source that is watched, how it is mined, packed, trained on, assessed and judged.
        preset: size of the training that new data starts: smoke, small or full.
        pool_type: what workers start a flow run in.
        heavy_pool: where what needs a GPU runs: "gpu", or "cpu" where there is none.
        image: container image with Hyco in it, for docker and kubernetes.
        directory: working directory of process workers.
        gpus: trainings and minings at once, over all GPUs.
        cpu_trainings: trainings at once on CPUs.
        watch_every_s: seconds between looks at the source; events make them sooner.
        maintain_cron: when old things are deleted.
        gather_s: events are gathered for so many seconds before a look.
        dead_after_s: a run without a heartbeat for so long is marked Crashed.
        lost_after_s: a run that was taken up and has not begun after so long is marked Crashed.
    """

    home: str
    retrain: RetrainConfig
    preset: Preset = "full"
    pool_type: PoolType = "process"
    heavy_pool: Literal["cpu", "gpu"] = "cpu"
    image: str = "hyco:latest"
    directory: str = "."
    gpus: int = Field(default=1, ge=1)
    cpu_trainings: int = Field(default=1, ge=1)
    watch_every_s: float = Field(default=300, ge=10)
    maintain_cron: str = "17 3 * * *"
    gather_s: float = Field(default=20, ge=1)
    dead_after_s: float = Field(default=90, ge=60)
    lost_after_s: float = Field(default=110, ge=60)


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
        """A module path: the installed package is imported, so no file of flows/ can shadow another module."""
        return f"flows.{self.flow}.{self.flow}"


@dataclass(frozen=True)
class Blueprint:
    """All of it. Automations are in flows/automations.py: they need the ids of deployments."""

    config: DeployConfig
    pools: tuple[Pool, ...]
    deployments: tuple[Deployed, ...]
    limits: dict[str, int] = field(default_factory=dict)


def blueprint(config: DeployConfig) -> Blueprint:
    """Work out everything that a configuration asks for."""
    pools = tuple(
        Pool(
            name,
            config.pool_type,
            f"Hyco's work that needs {need} GPU",
            template(config.pool_type, name == "gpu", config.image, config.directory),
        )
        for name, need in (("cpu", "no"), ("gpu", "a"))
    )
    limits = {GPU_LIMIT: config.gpus, CPU_LIMIT: config.cpu_trainings}
    return Blueprint(config, pools, tuple(_deployments(config)), limits)


def _deployments(config: DeployConfig) -> list[Deployed]:
    journey, home = config.retrain.journey, config.home
    sizes = {
        preset: journey.replace(recipe=sized(journey.recipe, preset), assess=asked(journey.assess, preset))
        for preset in PRESETS
    }
    retrain = _plain(config.retrain.replace(journey=sizes[config.preset]))
    mine, pack = _plain(journey.mine), _plain(journey.pack)

    def add(flow: str, name: str, parameters: dict[str, Any], description: str, **rest: Any) -> Deployed:
        pool = config.heavy_pool if flow in HEAVY else "cpu"
        return Deployed(flow, name, pool, {**parameters, "home": home}, description, **rest)

    made = [
        add("mine", "mine", {"config": mine}, "Nouns and boxes of the source's new shards."),
        add("pack", "pack", {"mine": mine, "config": pack}, "Crops, training shards and a dataset version."),
        add(
            "assess",
            "assess",
            {
                "assess_source": journey.assess_source,
                "taxonomy": journey.taxonomy,
                "config": _plain(journey.assess),
            },
            "The numbers and the report of a trained run: give its directory.",
        ),
        add(
            "watch",
            "watch",
            {"config": retrain},
            "Mine and pack what is new; start a training when enough of it is there.",
            queue="quick",
            every_s=config.watch_every_s,
            limit=1,
            collision="CANCEL_NEW",
        ),
        add(
            "retrain",
            "retrain",
            {"config": retrain, "force": False},
            "Train a challenger, assess it beside the champion, promote or refuse it.",
            limit=1,
        ),
        add(
            "maintain",
            "maintain",
            {},
            "Delete what is old or orphaned.",
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


def gathered(config: DeployConfig) -> timedelta:
    """How long events are gathered."""
    return timedelta(seconds=config.gather_s)


def resolved(config: DeployConfig, root: Path) -> DeployConfig:
    """The configuration with the paths of this machine made absolute, as workers in another directory need them."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str((root / path).resolve())

    journey = config.retrain.journey
    kind, _, place = journey.mine.grounder.partition(":")
    grounder = f"{kind}:{absolute(place)}" if (root / place).exists() and place else journey.mine.grounder
    mine = journey.mine.replace(source=absolute(journey.mine.source), grounder=grounder)
    journey = journey.replace(
        mine=mine, assess_source=absolute(journey.assess_source), taxonomy=absolute(journey.taxonomy)
    )
    return config.replace(
        home=absolute(config.home),
        retrain=config.retrain.replace(journey=journey),
        directory=str((root / config.directory).resolve()),
    )
