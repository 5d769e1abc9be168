"""Mine: noun phrases and boxes of every captioned image of a source, one task per shard."""

from typing import Any

from prefect import flow

from flows.reporting import artifacts
from flows.runtime.concurrency import slot
from flows.runtime.progress import ProgressArtifact
from flows.runtime.runs import done, inside, named
from flows.runtime.task_executor import task_engine
from flows.runtime.tasks import task_runner
from pipeline.mining.mine import MineConfig, mine_all
from storage.home import Home


@flow(
    name="mine",
    flow_run_name=named(lambda given: f"mine {inside(given, 'config', 'source')}"),
    task_runner=task_runner(),
    persist_result=True,
    result_serializer="json",
)
def mine(config: MineConfig, home: str = "var", settle_s: float = 0.0) -> dict[str, Any]:
    """Ground the noun phrases of all captions; mined shards are skipped.

    Args:
        config: the source, the grounder, and their options.
        home: where Hyco stores everything.
        settle_s: local files that changed less than this many seconds ago are left out.
    """
    opened = Home(home)
    with slot(gpu_only=True), task_engine("mine") as executor:
        found = mine_all(config, opened, executor, ProgressArtifact("mine-progress", "mine"), settle_s)
    artifacts.mined(found, config, opened)
    told = f"{found['units_done']} of {found['units']} shards: {found['images']:,} images, {found['boxes']:,} boxes"
    return done(told, found)
