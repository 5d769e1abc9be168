"""Mine: nouns and boxes of every captioned image of a source, one task a shard."""

from typing import Any

from prefect import flow

from flows import artifacts
from flows.common import ProgressArtifact
from flows.slots import slot
from flows.task_engine import task_engine
from flows.tasks import task_runner
from pipeline.mine import MineConfig, mine_all


@flow(name="mine", task_runner=task_runner(), persist_result=True, result_serializer="json")
def mine(config: MineConfig, home: str = "var", settle_s: float = 0.0) -> dict[str, Any]:
    """Ground the nouns of all captions; shards that are mined already are not touched.

    Args:
        config: the source, the grounder, and how they are used.
        home: where everything Hyco makes is kept.
        settle_s: local files that changed less than so many seconds ago are left out.
    """
    with slot(gpu_only=True), task_engine("mine") as engine:
        found = mine_all(config, home, engine, ProgressArtifact("mine-progress", "mine"), settle_s)
    artifacts.mined(found, config, home)
    return found
