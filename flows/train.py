"""Train: one run in processes of its own under torchrun; started again, it goes on from its last checkpoint."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.common import ProgressArtifact
from pipeline.journey import run_dir
from pipeline.launch import launch
from pipeline.recipes import Recipe
from pipeline.runs import prepare
from storage.store import Store
from storage.versions import Versions


@flow(name="train", persist_result=True, result_serializer="json")
def train(
    recipe: Recipe, home: str = "var", version: str = "latest", run: str | None = None, processes: int = 1
) -> dict[str, Any]:
    """Train a recipe on a dataset version.

    Args:
        recipe: model, objective, data and schedule.
        home: where everything Hyco makes is kept; a directory of this machine.
        version: dataset version, by name or "latest".
        run: name of the run; made of recipe and version when absent.
        processes: one for each GPU.
    """
    name = Versions(Store(home)).load(version).name
    folder = run_dir(home, recipe, name, run)
    prepare(folder, home, name, recipe)
    result = launch(folder, processes, get_run_logger().info, ProgressArtifact("train-progress", "train"))
    rows = [
        {"what": key, "value": str(value)} for key, value in result.items() if not isinstance(value, dict)
    ]
    create_table_artifact(table=rows, key="training", description=str(folder))
    return {**result, "run_dir": str(folder)}
