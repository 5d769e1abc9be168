"""What `hyco deploy` is told: typed, kept in HOME/deploy.json. Imports Prefect only when a cron is checked."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from flows.deployment.work_pools import PoolType
from pipeline.config import Config
from pipeline.end_to_end import JourneyConfig, packing_for
from pipeline.mining.mine import MineConfig
from pipeline.presets import Preset
from pipeline.registry.retraining import RetrainConfig
from pipeline.training.recipes import demo
from storage.layout import SOURCE

IMAGE_PULL_S = 600.0  # what a container's image may take to come before its run begins
EMBEDDED = Path(__file__).resolve().parents[2] / "demo" / "weights" / "grounder"


class DeployConfig(Config):
    """What is deployed; kept in HOME/deploy.json.

    Attributes:
        home: where everything Hyco makes is kept, as the workers see it.
        retrain: the source that is watched, how it is mined, packed, trained on, assessed and judged.
        preset: size of the training that new data starts: smoke, small or full.
        pool_type: what workers start a flow run in.
        heavy_pool: where what needs a GPU runs: "gpu", or "cpu" where there is none.
        image: container image with Hyco in it, for docker and kubernetes.
        volumes: of docker containers, NAME_OR_FOLDER:PLACE; the home and the source have to be among them.
        networks: of docker containers; the server has to be in one.
        claim: PersistentVolumeClaim of kubernetes pods, mounted at /data; the home and the source have to be in it.
        directory: working directory of process workers.
        gpus: how many GPUs trainings, minings and assessments hold at once.
        cpu_trainings: trainings at once on CPUs.
        watch_every_s: seconds between looks at the source; events make them sooner.
        maintain_cron: when old things are deleted.
        gather_s: events are gathered for so many seconds before a look.
        dead_after_s: a run without a heartbeat for so long is marked Crashed.
        lost_after_s: a run that was taken up and has not begun after so long is marked Crashed; 600 s at least where
            a container's image may have to come first.
    """

    home: str
    retrain: RetrainConfig
    preset: Preset = "full"
    pool_type: PoolType = "process"
    heavy_pool: Literal["cpu", "gpu"] = "cpu"
    image: str = "hyco-gpu:latest"
    volumes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    claim: str | None = None
    directory: str = "."
    gpus: int = Field(default=1, ge=1)
    cpu_trainings: int = Field(default=1, ge=1)
    watch_every_s: float = Field(default=300.0, ge=10)
    maintain_cron: str = "17 3 * * *"
    gather_s: float = Field(default=20, ge=1)
    dead_after_s: float = Field(default=90, ge=60)
    lost_after_s: float = Field(default=110, ge=60)

    @field_validator("maintain_cron")
    @classmethod
    def _cron(cls, given: str) -> str:
        from prefect.client.schemas.schedules import CronSchedule

        try:
            return CronSchedule(cron=given).cron
        except ValidationError:
            raise ValueError(
                f"'{given}' is no cron schedule; one is '17 3 * * *', at 3:17 every night"
            ) from None

    @property
    def begin_within_s(self) -> float:
        """Seconds after which a run that was taken up must have begun."""
        return self.lost_after_s if self.pool_type == "process" else max(self.lost_after_s, IMAGE_PULL_S)


def first(home: str, assess_source: str | None = None) -> DeployConfig:
    """What is deployed where nobody has said anything: HOME/source, the embedded grounder, recipe demo."""
    mine = MineConfig(source=f"{home.rstrip('/')}/{SOURCE}", grounder=f"transformers:{EMBEDDED}")
    journey = JourneyConfig(mine=mine, pack=packing_for("demo", assess_source), recipe=demo())
    return DeployConfig(home=home, retrain=RetrainConfig(journey=journey))


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
