"""Mine: nouns and boxes of every captioned image of a source, one task a shard."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.common import ProgressArtifact, task_engine, task_runner
from pipeline.mine import MineConfig, mine_all


@flow(name="mine", task_runner=task_runner(), persist_result=True, result_serializer="json")
def mine(config: MineConfig, home: str = "var") -> dict[str, Any]:
    """Ground the nouns of all captions; shards that are mined already are not touched.

    Args:
        config: the source, the grounder, and how they are used.
        home: where everything Hyco makes is kept.
    """
    with task_engine("mine") as engine:
        found = mine_all(config, home, engine, ProgressArtifact("mine-progress", "mine"))
    rows = [
        {"what": name, "count": str(value)} for name, value in found.items() if not isinstance(value, dict)
    ]
    rows += [{"what": f"failures: {code}", "count": str(n)} for code, n in found["failures_by_code"].items()]
    create_table_artifact(table=rows, key="mining", description=f"{config.source} with {config.grounder}")
    return found
