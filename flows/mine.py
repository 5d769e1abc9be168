"""Mine: noun phrases and boxes of every captioned image of a source, one task per shard."""

from contextlib import nullcontext
from typing import Any

from prefect import flow

from hyco.flows.reporting import artifacts
from hyco.flows.runtime.concurrency import slot
from hyco.flows.runtime.progress import ProgressArtifact
from hyco.flows.runtime.runs import done, inside, named
from hyco.flows.runtime.task_executor import task_engine
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.runtime.executor import LOCAL, address_of
from hyco.storage.home import Home


@flow(
    name="mine",
    flow_run_name=named(lambda given: f"mine {inside(given, 'config', 'source')}"),
    persist_result=True,
    result_serializer="json",
)
def mine(config: MineConfig, home: str = "var", settle_s: float = 0.0, engine: str = LOCAL) -> dict[str, Any]:
    """Ground the noun phrases of all captions; mined shards are skipped.

    Args:
        config: the source, the grounder, and their options.
        home: where Hyco stores everything.
        settle_s: local files that changed less than this many seconds ago are left out.
        engine: where the shards are mined: local, ray or ray:HOST:PORT.
    """
    opened = Home(home)
    with slot(gpu_only=True) if address_of(engine) is None else nullcontext():  # a cluster has its own GPUs
        with task_engine("mine", engine) as executor:
            found = mine_all(config, opened, executor, ProgressArtifact("mine-progress", "mine"), settle_s)
    artifacts.mined(found, config, opened)
    told = f"{found['units_done']} of {found['units']} shards: {found['images']:,} images, {found['boxes']:,} boxes"
    return done(told, found)
