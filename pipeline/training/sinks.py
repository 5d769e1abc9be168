"""Where the lines of the step log go besides log.jsonl: TensorBoard always, W&B and MLflow where a recipe asks.

All three write into the run's directory and contact no server unless the environment names one (WANDB_MODE=online,
MLFLOW_TRACKING_URI).
"""

import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

PROJECT = "hyco"
"""Project of W&B, experiment of MLflow."""


class Sink(Protocol):
    """A place that gets numbers by slashed names."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def require(names: Sequence[str]) -> None:
    """Raise ValueError where the package of a sink is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f"log_to names {name}, which is not installed: pip install -e '.[{name}]' -c constraints.txt, "
                "or leave it out of log_to"
            )


def open_sinks(run_dir: Path, step: int, names: Sequence[str], config: dict[str, Any]) -> list[Sink]:
    """TensorBoard and the named sinks of a run that continues after `step`; `config` is shown with it."""
    others = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    return [TensorBoard(run_dir, step), *(others[name](run_dir, config) for name in names)]


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run_dir: Path, step: int) -> None:
        # Takes a second, and readers of logs do not need it.
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides steps that a killed process had logged after the checkpoint.
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._board.close()


class WeightsAndBiases:
    """A run of W&B in RUN/wandb, offline by default: `wandb sync` sends it. A resumed training continues it."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=run_dir.name,
            dir=str(run_dir),
            config=config,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class MLflow:
    """A run of MLflow, by default in RUN/mlflow.db. A resumed training continues it."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        local = f"sqlite:///{(run_dir / 'mlflow.db').resolve()}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT)
        marked = self._client.search_runs([experiment], f"tags.`hyco.run` = '{run_dir.name}'", max_results=1)
        run = (
            marked[0]
            if marked
            else self._client.create_run(experiment, tags={"hyco.run": run_dir.name}, run_name=run_dir.name)
        )
        self._id = run.info.run_id
        if marked:
            self._client.update_run(self._id, status="RUNNING")
        else:
            for name, value in config.items():
                self._client.log_param(self._id, name, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step, in one transaction."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        at = int(1000 * time.time())
        metrics = [Metric(name.replace(">", "-"), value, at, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)
