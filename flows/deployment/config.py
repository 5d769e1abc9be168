"""The options of `hyco deploy`: typed, stored in HOME/deploy.json. Imports Prefect only when a cron is checked."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from hyco.flows.deployment.work_pools import PoolType
from hyco.pipeline.config import Config
from hyco.pipeline.end_to_end import JourneyConfig, packing_for
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.presets import Preset
from hyco.pipeline.registry.retraining import RetrainConfig
from hyco.pipeline.runtime.executor import LOCAL, RAY
from hyco.pipeline.sources.listing import absolute_source
from hyco.pipeline.training.recipes import demo
from hyco.storage.layout import SOURCE

IMAGE_PULL_S = 600.0  # time to pull a container image before its run begins
EMBEDDED = Path(__file__).resolve().parents[2] / "demo" / "weights" / "grounder"


class DeployConfig(Config):
    """The deployed configuration, stored in HOME/deploy.json."""

    home: str
    """Home directory or fsspec URL, as the workers see it."""
    retrain: RetrainConfig
    """The watched source, how it is mined, packed, trained on, evaluated and judged."""
    preset: Preset = "full"
    """Size of the training that new data starts: 20 steps, a tenth of the recipe's steps, or all."""
    pool_type: PoolType = "process"
    """How workers start a flow run."""
    heavy_pool: Literal["cpu", "gpu", "ray"] = "cpu"
    """Work pool of the flows that need a GPU; "cpu" where there is none. "ray": its worker runs on a node of a Ray
    cluster, which mines and packs; that node trains.
    """
    ray_address: str = ""
    """HOST:PORT of the Ray cluster of heavy_pool "ray"; empty where the worker's machine is a node of it."""
    ray_workers: int | None = Field(default=None, ge=1)
    """Workers that mine and pack in the Ray cluster; null takes as many as it has room for."""
    image: str = "hyco-gpu:latest"
    """Container image with Hyco in it, for docker and kubernetes."""
    volumes: tuple[str, ...] = ()
    """Volumes of docker containers, NAME_OR_FOLDER:PLACE; the home and the source must be among them."""
    networks: tuple[str, ...] = ()
    """Networks of docker containers; the server must be in one of them."""
    claim: str | None = None
    """PersistentVolumeClaim of kubernetes pods, mounted at /data; the home and the source must be in it."""
    directory: str = "."
    """Working directory of process workers."""
    gpus: int = Field(default=1, ge=1)
    """Maximum number of GPUs used at once by training, mining and evaluation."""
    cpu_trainings: int = Field(default=1, ge=1)
    """Maximum number of trainings at once on CPUs."""
    watch_every_s: float = Field(default=300.0, ge=10)
    """Seconds between scheduled checks of the source; events start them earlier."""
    maintain_cron: str = "17 3 * * *"
    """Cron schedule (UTC) of the maintenance."""
    gather_s: float | None = Field(default=None, ge=1)
    """Seconds for which events are gathered before a check; null is 20, and 5 with the preset smoke."""
    dead_after_s: float = Field(default=90, ge=60)
    """Seconds without a heartbeat after which a run is marked Crashed."""
    lost_after_s: float = Field(default=110, ge=60)
    """Seconds after which a run that a worker took and did not begin is marked Crashed; at least 600 where a
    container image may have to be pulled first.
    """

    notify: str | None = None
    """Notification block of the server, TYPE/NAME such as slack-webhook/team: it is told of quarantined versions,
    refused models, failed checks of the source and trainings that are given up. None for no messages.
    """

    @field_validator("notify")
    @classmethod
    def _block(cls, given: str | None) -> str | None:
        if given is not None and not all(part.strip() for part in given.partition("/")):
            raise ValueError(f"{given!r} is not TYPE/NAME of a block, such as slack-webhook/team")
        return given

    @model_validator(mode="after")
    def _on_a_node(self) -> "DeployConfig":
        if self.heavy_pool == "ray" and self.pool_type != "process":
            raise ValueError(
                f"heavy_pool ray with pool_type {self.pool_type}: give pool_type=process, its worker runs on a Ray node"
            )
        return self

    @property
    def engine(self) -> str:
        """Where shards are mined and packed, see pipeline.runtime.executor.open_executor."""
        return f"{RAY}:{self.ray_address}".rstrip(":") if self.heavy_pool == RAY else LOCAL

    @field_validator("maintain_cron")
    @classmethod
    def _cron(cls, given: str) -> str:
        from prefect.client.schemas.schedules import CronSchedule

        try:
            return CronSchedule(cron=given).cron
        except ValidationError:
            raise ValueError(
                f"'{given}' is not a cron schedule; an example is '17 3 * * *', at 3:17 every night"
            ) from None

    @property
    def gathered_s(self) -> float:
        """Seconds for which events are gathered before a check."""
        return self.gather_s if self.gather_s is not None else 5.0 if self.preset == "smoke" else 20.0

    @property
    def begin_within_s(self) -> float:
        """Seconds within which a run must begin after a worker took it."""
        return self.lost_after_s if self.pool_type == "process" else max(self.lost_after_s, IMAGE_PULL_S)


def first(home: str, assess_source: str | None = None) -> DeployConfig:
    """The default: HOME/source, the embedded grounder, recipe demo."""
    mine = MineConfig(source=f"{home.rstrip('/')}/{SOURCE}", grounder=f"transformers:{EMBEDDED}")
    journey = JourneyConfig(mine=mine, pack=packing_for("demo", assess_source), recipe=demo())
    return DeployConfig(home=home, retrain=RetrainConfig(journey=journey))


def resolved(config: DeployConfig, root: Path) -> DeployConfig:
    """The configuration with absolute local paths, for workers in another directory."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str((root / path).resolve())

    journey = config.retrain.journey
    kind, _, place = journey.mine.grounder.partition(":")
    grounder = f"{kind}:{absolute(place)}" if (root / place).exists() and place else journey.mine.grounder
    mine = journey.mine.replace(source=absolute_source(journey.mine.source, root), grounder=grounder)
    pack = journey.pack.replace(exclude=tuple(absolute(path) or path for path in journey.pack.exclude))
    journey = journey.replace(
        mine=mine,
        pack=pack,
        assess_source=absolute(journey.assess_source),
        taxonomy=absolute(journey.taxonomy),
    )
    return config.replace(
        home=absolute(config.home),
        retrain=config.retrain.replace(journey=journey),
        directory=str((root / config.directory).resolve()),
    )
