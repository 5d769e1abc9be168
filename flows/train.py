"""Train: one run in processes of its own; started again, it resumes from its last checkpoint."""

from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from hyco.flows.reporting import artifacts
from hyco.flows.runtime.concurrency import slot
from hyco.flows.runtime.progress import ProgressArtifact
from hyco.flows.runtime.runs import done, inside, named
from hyco.pipeline.end_to_end import run_dir
from hyco.pipeline.training.launch import launch
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.run_dir import prepare
from hyco.storage.home import Home


def _not_a_mistake(task: Any, run: Any, state: Any) -> bool:
    """Retry a killed or stalled training from its checkpoint, but not a refused configuration."""
    try:
        state.result()
    except ValueError:
        return False
    except Exception:
        return True
    return False


@task(
    name="training",
    cache_policy=NO_CACHE,  # train.json records that it is finished
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=5),
    retry_jitter_factor=0.5,
    retry_condition_fn=_not_a_mistake,
)
def training(folder: str, processes: int) -> dict[str, Any]:
    """One training run; a retry resumes from the last checkpoint."""
    return launch(folder, processes, get_run_logger().info, ProgressArtifact("train-progress", "train"))


@flow(
    name="train",
    flow_run_name=named(
        lambda given: f"train {inside(given, 'recipe', 'name')} on {given.get('version', 'latest')}"
    ),
    persist_result=True,
    result_serializer="json",
)
def train(
    recipe: Recipe, home: str = "var", version: str = "latest", run: str | None = None, processes: int = 1
) -> dict[str, Any]:
    """Train a recipe on a dataset version.

    Args:
        recipe: model, objective, data and schedule.
        home: where Hyco stores everything.
        version: dataset version, by name or "latest".
        run: name of the run; derived from recipe and version when absent.
        processes: one per GPU.
    """
    opened = Home(home)
    name = opened.versions.load(version).name
    folder = run_dir(opened, recipe, name, run)
    prepare(folder, opened, name, recipe)
    with slot(gpus=processes):
        result = training(str(folder), processes)
    artifacts.trained(result, folder, opened)
    return done(f"run {folder.name} of {name}", {**result, "run_dir": str(folder)})
