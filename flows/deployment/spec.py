"""The objects that `hyco deploy` creates on a Prefect server, as values: also the source of prefect.yaml."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hyco.flows.deployment.config import DeployConfig
from hyco.flows.deployment.work_pools import template
from hyco.flows.runtime.concurrency import CPU_LIMIT, GPU_LIMIT
from hyco.pipeline.config import Config
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.presets import PRESETS, asked, sized
from hyco.pipeline.runtime.executor import RAY

QUEUES = {"quick": 1, "work": 2}  # name and priority: checks go before long work
TAGS = {  # what starts a deployment: its own schedule and events, or a person; a step of the whole, or all of it
    **dict.fromkeys(("watch", "retrain", "maintain"), "automatic"),
    **dict.fromkeys(("mine", "pack", "assess"), "step"),
    **dict.fromkeys(("journey", "train"), "by hand"),
}
RENAMED = {  # FLOW/NAME of deployments that Hyco made before -> their names now; "" where there is none any more
    **{f"{flow}/{preset}": "" for flow in ("journey", "train") for preset in PRESETS},
    **{f"journey/{preset}": f"journey/journey-{preset}" for preset in ("smoke", "full")},
    **{f"train/{preset}": f"train/train-{preset}" for preset in ("small", "full")},
}
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
    """One deployment: `flow` names the module and function hyco.flows.FLOW.FLOW."""

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
        return f"hyco.flows.{self.flow}.{self.flow}"


@dataclass(frozen=True)
class Blueprint:
    """All pools, limits and deployments. Automations need deployment ids: flows/deployment/automations.py.

    Attributes:
        config: the options of `hyco deploy`.
        pools: the work pools.
        deployments: what Hyco deploys.
        former: what it deployed under names of RENAMED, as it would be today.
        limits: the concurrency limits, by name.
    """

    config: DeployConfig
    pools: tuple[Pool, ...]
    deployments: tuple[Deployed, ...]
    former: tuple[Deployed, ...]
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
    return Blueprint(config, pools, tuple(_deployments(config)), tuple(_former(config)), limits)


def _deployments(config: DeployConfig) -> list[Deployed]:
    journey, sizes = config.retrain.journey, _sizes(config)
    gate = config.retrain.gate.replace(
        above_chance=config.retrain.gate.above_chance and config.preset != "smoke"
    )
    retrain = _plain(config.retrain.replace(journey=sizes[config.preset], gate=gate))
    mine, pack = _plain(journey.mine), _plain(journey.pack)

    def add(flow: str, name: str, parameters: dict[str, Any], description: str, **rest: Any) -> Deployed:
        return _deployed(config, flow, name, parameters, description, **rest)

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
    for preset, told in (("smoke", "20 training steps: does everything work?"), ("full", "the whole recipe")):
        made.append(
            add(
                "journey",
                f"journey-{preset}",
                _whole(sizes[preset]),
                f"Mine, pack, train and evaluate; {told}.",
            )
        )
    for preset, told in (("small", "a tenth of the recipe's steps"), ("full", "the whole recipe")):
        made.append(
            add(
                "train",
                f"train-{preset}",
                _training(sizes[preset]),
                f"Train on the latest dataset version; {told}.",
            )
        )
    return made


def _former(config: DeployConfig) -> Iterator[Deployed]:
    """Yield the deployments of RENAMED with the parameters of today."""
    for preset, sized_journey in _sizes(config).items():
        yield _deployed(config, "journey", preset, _whole(sized_journey), "")
        yield _deployed(config, "train", preset, _training(sized_journey), "")


def _deployed(
    config: DeployConfig, flow: str, name: str, parameters: dict[str, Any], description: str, **rest: Any
) -> Deployed:
    on_ray = config.heavy_pool == RAY and flow in ON_A_CLUSTER
    verifies = flow == "pack" and bool(config.retrain.journey.pack.verify.grounder)  # runs a detector too
    pool = config.heavy_pool if flow in HEAVY or verifies or on_ray else "cpu"
    given = {**parameters, "home": config.home, **({"engine": config.engine} if on_ray else {})}
    return Deployed(flow, name, pool, given, description, tags=("hyco", TAGS[flow]), **rest)


def _sizes(config: DeployConfig) -> dict[str, JourneyConfig]:
    """The journey in every preset."""
    journey = config.retrain.journey
    return {
        preset: journey.replace(recipe=sized(journey.recipe, preset), assess=asked(journey.assess, preset))
        for preset in PRESETS
    }


def _whole(journey: JourneyConfig) -> dict[str, Any]:
    return {"config": _plain(journey)}


def _training(journey: JourneyConfig) -> dict[str, Any]:
    return {"recipe": _plain(journey.recipe), "version": "latest", "processes": journey.processes}


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")
