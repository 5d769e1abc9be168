"""A grid of runs on an executor: in order for the reader, at the same time for the machine, killed and resumed."""

import io
import json
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hyco.demo.write import write_shard
from hyco.pipeline.config import ConfigError
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.experiments import ablation
from hyco.pipeline.experiments.ablation import Run, perform_all
from hyco.pipeline.experiments.grid import GridRun, engine_of, run_grid
from hyco.pipeline.runtime.executor import LocalExecutor
from hyco.pipeline.runtime.ray_executor import RayExecutor
from hyco.pipeline.training.step_log import read_log
from hyco.storage.home import Home
from tests.factories.ray_cluster import RayCluster, kill, wait_until
from tests.factories.training import make_home, tiny_recipe


def write(folder: Path, text: str) -> None:
    """One step of a run, and its end; a run named "doomed" kills its worker once, after the step."""
    if (folder / "end").exists():
        assert (folder / "text").read_text() == text, "another run"
        return
    folder.mkdir(exist_ok=True)
    with (folder / "steps").open("a") as file:
        file.write("step\n")
    if folder.name == "doomed" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "text").write_text(text)
    (folder / "end").write_text("7.0")


def seconds(folder: Path) -> float | None:
    return float((folder / "end").read_text()) if (folder / "end").exists() else None


def fail(folder: Path) -> None:
    raise ConfigError("steps is 0")


def grid(folder: Path, names: list[str]) -> list[GridRun]:
    return [
        GridRun(folder / name, "kind", partial(write, folder / name, name), partial(seconds, folder / name))
        for name in names
    ]


def test_a_run_whose_worker_was_killed_is_done_by_another_and_the_reader_sees_a_row(tmp_path: Path) -> None:
    runs, reached, say = grid(tmp_path, ["doomed", "second", "third"]), list[int](), io.StringIO()
    with LocalExecutor(2) as executor:
        run_grid("study", runs, reached.append, say, executor)
        assert reached == [1, 2, 3] and (tmp_path / "doomed/steps").read_text().count("step") == 2
        assert "3 of 3" in say.getvalue()
        reached.clear()
        run_grid("study", [*runs, *grid(tmp_path, ["fourth"])], reached.append, say, executor)
        assert reached == [1, 2, 3, 4] and (tmp_path / "second/steps").read_text().count("step") == 1
        bad = GridRun(tmp_path / "bad", "kind", partial(fail, tmp_path / "bad"), lambda: None)
        with pytest.raises(ConfigError, match="steps is 0"):
            run_grid("study", [bad, *grid(tmp_path, ["fifth"])], reached.append, say, executor)
        assert seconds(tmp_path / "fifth"), "a failed run does not stop the others"
    (tmp_path / "third/text").write_text("changed")
    with LocalExecutor(1) as executor, pytest.raises(AssertionError, match="another run"):
        run_grid("study", runs, reached.append, say, executor)


def test_the_command_works_in_this_process_unless_workers_are_asked_for() -> None:
    parser = ablation.argparse.ArgumentParser()
    ablation.add_engine(parser)
    with engine_of(parser.parse_args([])) as executor:
        assert executor is None
    with engine_of(parser.parse_args(["--workers", "1"])) as executor:
        assert isinstance(executor, LocalExecutor)
    with pytest.raises(ValueError, match="engine 'rya'"), engine_of(parser.parse_args(["--engine", "rya"])):
        pass


def perform_and_tell(run: Run, *args: Any) -> None:
    """Perform a run in a worker that writes its process id."""
    run.folder.parent.mkdir(exist_ok=True)
    Path(f"{run.folder}.pid").write_text(str(os.getpid()))
    ablation.__dict__["really"](run, *args)


ablation.__dict__.setdefault("really", ablation.perform)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_ablation_on_ray_whose_worker_is_killed_ends_as_one_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(str(tmp_path / "scenes"), "heldout", 0, 12, seed=5, size=64)
    spec = EvaluationSpec(
        assess_source=str(tmp_path / "scenes/heldout"), config=AssessConfig(draws=100, device="cpu")
    )
    recipes = [tiny_recipe(steps=150, checkpoint_steps=5), tiny_recipe(name="other", seed=1)]
    written: dict[str, list[list[str]]] = {}

    def compare(name: str, executor: RayExecutor | None) -> list[Run]:
        home = tmp_path / name
        version = make_home(home)
        runs = [Run(recipe.name, recipe, home / "runs" / recipe.name) for recipe in recipes]
        rows = written.setdefault(name, [])
        perform_all(
            "ablation", runs, Home(home), version, spec.replace(version=version), "cpu", 1,
            lambda done: rows.append([run.model for run in done]), io.StringIO(), executor,
        )  # fmt: skip
        return runs

    here = compare("here", None)
    monkeypatch.setattr(ablation, "perform", perform_and_tell)
    pid = tmp_path / "ray/runs/tiny.pid"
    with RayCluster(nodes=1, cpus=2) as cluster, RayExecutor(cluster.address, 2, servers=0) as executor:
        work = threading.Thread(target=compare, args=("ray", executor))
        work.start()
        wait_until(lambda: list((tmp_path / "ray/runs/tiny").glob("checkpoints/*")), 300)
        kill(int(pid.read_text()))
        first = pid.read_text()
        work.join(600)
        assert not work.is_alive() and pid.read_text() != first
    assert written["ray"] == written["here"] == [["tiny"], ["tiny", "other"]]
    for recipe, one in zip(recipes, here, strict=True):
        far = tmp_path / "ray/runs" / recipe.name
        losses = [[line["loss"] for line in read_log(folder)] for folder in (one.folder, far)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        assert json.loads((far / "metrics.json").read_text())["train"]["steps"] == recipe.steps
