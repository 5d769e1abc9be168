"""W&B and MLflow: what they are given, that a resumed run continues, and the remedy where they are not installed."""

import sys
import types
from types import SimpleNamespace

import pytest

from hyco.pipeline.training import sinks
from hyco.pipeline.training.step_log import read_log
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return Home(home)


class Wandb(types.ModuleType):
    """A stand-in of the package wandb: its init and the run's log and finish."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.given, self.lines, self.ended = {}, [], False
        self.__spec__ = SimpleNamespace(name="wandb")  # pyright: ignore[reportAttributeAccessIssue]

    def init(self, **given):
        self.given = given
        return self

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.ended = True


class Mlflow:
    """A stand-in of mlflow.tracking.MlflowClient: one experiment whose runs outlive a client."""

    runs: dict[str, SimpleNamespace]

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1") if self.runs else None

    def create_experiment(self, name):
        return "1"

    def search_runs(self, experiments, filter_string, max_results):
        return [run for run in self.runs.values() if run.tag in filter_string]

    def create_run(self, experiment, tags, run_name):
        made = SimpleNamespace(
            info=SimpleNamespace(run_id=run_name),
            tag=tags["hyco.run"],
            params={},
            metrics=[],
            ended=0,
            uri=self.uri,
        )
        return self.runs.setdefault(run_name, made)

    def log_param(self, run, name, value):
        self.runs[run].params[name] = value

    def log_batch(self, run, metrics):
        assert all(letter.isalnum() or letter in "_-./ " for metric in metrics for letter in metric.key)
        self.runs[run].metrics += [(metric.step, metric.key, metric.value) for metric in metrics]

    def update_run(self, run, status):
        self.runs[run].ended -= status == "RUNNING"

    def set_terminated(self, run):
        self.runs[run].ended += 1


def test_weights_and_biases_gets_every_line_offline(home, tmp_path, monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    run = tmp_path / "my-run"
    train(run, home, "latest", tiny_recipe(steps=4, log_to=("wandb",)))
    assert stand_in.given["mode"] == "offline" and stand_in.given["id"] == "my-run"
    assert stand_in.given["resume"] == "allow" and stand_in.given["dir"] == str(run)
    assert stand_in.given["config"]["recipe/optimiser/lr"] == 3e-3 and stand_in.ended
    for (step, values), line in zip(stand_in.lines, read_log(run), strict=True):
        assert step == line["step"] and values["loss"] == line["loss"] and values["mfu"] == line["mfu"]
        assert values["terms/contrast/image>text"] == line["terms"]["contrast/image>text"]


def test_mlflow_gets_every_line_and_a_resumed_run_continues_its_run(home, tmp_path, monkeypatch):
    Mlflow.runs = {}
    names = ("mlflow", "mlflow.tracking", "mlflow.entities")
    package, tracking, entities = (types.ModuleType(name) for name in names)
    package.__spec__ = SimpleNamespace(name="mlflow")  # pyright: ignore[reportAttributeAccessIssue]
    tracking.MlflowClient = Mlflow  # pyright: ignore[reportAttributeAccessIssue]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # pyright: ignore[reportAttributeAccessIssue]
    for name, module in zip(names, (package, tracking, entities), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "my-run"
    recipe = tiny_recipe(steps=4, log_to=("mlflow",))
    train(run, home, "latest", recipe)
    (stored,) = Mlflow.runs.values()
    assert stored.uri == f"sqlite:///{run.resolve() / 'mlflow.db'}" and stored.ended == 1
    assert stored.params["recipe/batch_size"] == 16
    losses = [(step, value) for step, name, value in stored.metrics if name == "loss"]
    assert losses == [(line["step"], line["loss"]) for line in read_log(run)]
    opened = sinks.open_sinks(run, 4, ("mlflow",), {"recipe/batch_size": 99})
    opened[1].write(5, {"loss": 1.0})
    assert len(Mlflow.runs) == 1 and stored.metrics[-1] == (5, "loss", 1.0)
    assert stored.params["recipe/batch_size"] == 16
    assert stored.ended == 0
    for sink in opened:
        sink.close()
    assert stored.ended == 1


def test_a_sink_that_is_not_installed_is_named_before_the_training(home, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"log_to names wandb, which is not installed: pip install -e '\.\[wandb\]'"
    ):
        train(tmp_path / "run", home, "latest", tiny_recipe(log_to=("wandb",)))
    assert not (tmp_path / "run" / "log.jsonl").exists()
