"""Pack: detections to a dataset version, one task per shard; a detector runs only where boxes are verified."""

import dataclasses
from typing import Any

from prefect import flow

from hyco.flows.mine import mine as mine_flow
from hyco.flows.reporting import artifacts
from hyco.flows.reporting import events as signals
from hyco.flows.runtime.progress import ProgressArtifact
from hyco.flows.runtime.runs import done, inside, named
from hyco.flows.runtime.task_executor import task_engine
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.dataset_gate import Check, QualityError
from hyco.pipeline.packing.pack import PackConfig
from hyco.pipeline.packing.verified import verifying
from hyco.pipeline.runtime.executor import LOCAL
from hyco.storage.home import Home


@flow(
    name="pack",
    flow_run_name=named(lambda given: f"pack {inside(given, 'mine', 'source')}"),
    persist_result=True,
    result_serializer="json",
)
def pack(
    mine: MineConfig,
    config: PackConfig,
    home: str = "var",
    mined_only: bool = False,
    latest: bool = True,
    name: str | None = None,
    verify: str = "",
    engine: str = LOCAL,
) -> dict[str, Any]:
    """Apply thresholds, cut crops, write training shards and publish a version; emits hyco.dataset.published.

    Args:
        mine: the configuration the source was mined with.
        config: thresholds, sizes and the held-out fraction.
        home: where Hyco stores everything.
        mined_only: leave out units that were added to the source after it was mined.
        latest: whether a version that passes the gate becomes latest; an experiment does not.
        name: a name for the version, an experiment: it does not become latest.
        verify: a second grounder that must confirm every box, such as sam3 or owlv2_base; empty takes that of the
            configuration (config.verify.grounder). It is run for shards that it has not seen.
        engine: where the shards are packed: local, ray or ray:HOST:PORT.
    """
    opened, checks = Home(home), list[Check]()
    if verify:
        config = config.replace(verify=config.verify.replace(grounder=verify, weights=""))
    if config.verify.grounder:
        mine_flow(verifying(mine, config.verify), home, engine=engine)
    try:
        with task_engine("pack", engine, gpus=0.0) as executor:
            progress = ProgressArtifact("pack-progress", "pack")
            version = packing.pack(
                mine, config, opened, executor, progress, checks.extend, mined_only, latest, name
            )
    except QualityError as error:
        artifacts.packed(opened.versions.load(error.version), error.checks, opened)
        signals.quarantined(error.version, str(error), opened)
        raise
    artifacts.packed(version, checks, opened)
    signals.published(version, opened)
    shards = dataclasses.asdict(version)["shards"]
    told = f"{version.name}: {version.counts.get('images', 0):,} images, {version.counts.get('parts', 0):,} parts"
    return done(told, {"version": version.name, "counts": version.counts, "shards": shards})
