"""The journey: mine, pack, train and assess in sequence. The demo and retraining run it."""

from typing import Any

from prefect import flow

from hyco.flows.assess import assess
from hyco.flows.mine import mine
from hyco.flows.pack import pack
from hyco.flows.runtime.runs import done, inside, named
from hyco.flows.train import train
from hyco.pipeline import end_to_end as journeys
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.runtime.executor import LOCAL
from hyco.storage.home import Home


@flow(
    name="journey",
    flow_run_name=named(
        lambda given: (
            f"journey {inside(given, 'config', 'recipe', 'name')} on {inside(given, 'config', 'mine', 'source')}"
        )
    ),
    persist_result=True,
    result_serializer="json",
)
def journey(config: JourneyConfig, home: str = "var", engine: str = LOCAL) -> dict[str, Any]:
    """From captioned images to an assessed model; finished work is not repeated.

    Args:
        config: options of mining, packing, training and evaluation.
        home: where Hyco stores everything.
        engine: where shards are mined and packed: local, ray or ray:HOST:PORT.
    """
    opened = Home(home)
    mine(config.mine, home, engine=engine)
    held = journeys.held_out(config)
    if held is not None:
        mine(held, home, engine=engine)
    packed = pack(config.mine, config.pack, home, mined_only=True, engine=engine)
    version = opened.versions.load(packed["version"])
    found = journeys.mining_report(config.mine, config.pack, opened, version, held)
    trained = train(config.recipe, home, version.name, config.run, config.processes)
    spec = journeys.evaluation_of(config, version.name)
    metrics = assess(trained["run_dir"], home, mining=found, **dict(spec))
    result = {"run_dir": trained["run_dir"], "version": version.name, "metrics": metrics}
    return done(f"{version.name}: {trained['run_dir']}", result)
