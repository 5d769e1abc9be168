"""Runs, registry and champion of a remote home: the same results as in a local one, on whichever machine."""

import json
from pathlib import Path

import pytest

from hyco.pipeline.cli import registry as commands
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
from hyco.pipeline.evaluation.evaluate import evaluate
from hyco.pipeline.integrity.repair import repair
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.registry.model_gate import GateConfig
from hyco.pipeline.registry.promotion import challenge, rollback
from hyco.pipeline.registry.retraining import RetrainConfig, recipe_for
from hyco.pipeline.training.run_dir import exclusive_lock
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.training.train import train
from hyco.pipeline.ui.pages import HomePages
from hyco.pipeline.ui.status import report
from hyco.storage import lease as leases
from hyco.storage.checkpoint import RemoteCheckpoints
from hyco.storage.home import Home
from hyco.storage.lease import Lease
from hyco.storage.model_registry import Decision
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.training import sample, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
GATE = GateConfig(
    metrics=("retrieval.image_to_text.r5", "retrieval.text_to_image.r5"), above_chance=False
)  # models of a few steps


def fill(home: str) -> str:
    """A version with a val split; returns its name."""
    store, refs = Store(home), {}
    for split, counts in {"train": (20, 20, 24), "val": (16,)}.items():
        refs[split] = []
        for count in counts:
            start = sum(ref.samples for shards in refs.values() for ref in shards)
            samples = [sample(start + n) for n in range(count)]
            made = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
            refs[split].append(shard_ref(made, count, sum(len(s.parts) for s in samples)))
    return Versions(store).publish({}, {"mine": "abc"}, refs, {"images": 80}, ["det1"]).name


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def switch(name: str) -> Path:
        """Make this process another machine, with an empty cache; returns the cache."""
        monkeypatch.setenv("HYCO_CACHE", str(tmp_path / name))
        return tmp_path / name

    switch("first")
    return switch


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Home, Home]:
    """A local and a remote home with the same version."""
    local, remote = Home(tmp_path / "home"), Home(f"memory://{tmp_path.name}")
    assert fill(local.url) == fill(remote.url)
    return local, remote


class StoppedError(Exception):
    pass


def curve(lines) -> list[dict]:
    return [{name: line[name] for name in ("step", "loss", "terms", "lr", "epoch")} for line in lines]


def test_a_run_killed_on_one_machine_goes_on_from_its_checkpoint_on_another(homes, machine, monkeypatch):
    local, remote = homes
    train(local.run("tiny"), local, "latest", tiny_recipe())
    run = remote.run("tiny")

    def breaking(self, keep):
        raise StoppedError  # with the checkpoint of step 10 uploaded, and nothing after it

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(RemoteCheckpoints, "prune", breaking)
        train(run, remote, "latest", tiny_recipe())
    assert read_log(run)[-1]["step"] == 10, "the log goes with the checkpoint"
    cache = machine("second")
    result = train(run.url)  # the remote config.json alone says how to go on
    assert result["steps"] == 20 and len(list((cache / "objects").glob("[0-9a-f]*"))) == 3
    assert curve(read_log(run)) == curve(read_log(local.run("tiny")))
    kinds = {path.split("/")[0] for path in run.store.list()}
    assert kinds == {"config.json", "tokenizer.json", "log.jsonl", "tensorboard", "checkpoints", "model", "train.json",
                     "lease"}  # fmt: skip
    ours, theirs = (set(one.run("tiny").store.list()) for one in homes)
    plain = lambda paths: {path for path in paths if not path.startswith(("lease", "tensorboard", ".lock"))}  # noqa: E731
    assert plain(ours) == plain(theirs), "a copy of a remote home is a local home"
    machine("third")
    assert train(run.url) == result, "it is finished"


def test_two_machines_do_not_train_one_run(homes, machine, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    monkeypatch.setattr(leases, "PATIENCE_S", 0.5)
    _, remote = homes
    run = remote.run("tiny")
    with (
        exclusive_lock(run),
        pytest.raises(ValueError, match="is being trained by another process: wait for it"),
    ):
        train(run, remote, "latest", tiny_recipe())
    with exclusive_lock(run):
        machine("second")
        with pytest.raises(ValueError, match=r"is being trained by another process, process \d+ on"):
            train(run.url)
    write = StepLog.write

    def taking(self, step, values):
        write(self, step, values)
        if step == 5:
            taken = Lease(run.store, "third")
            taken._create(99)

    monkeypatch.setattr(StepLog, "write", taking)
    with pytest.raises(ValueError, match="was taken over by process"):
        train(run.url)
    assert not [path for path in run.store.list() if path.startswith("checkpoints")]


def judged(home: Home) -> list[Decision]:
    """Two runs, of which the first was promoted and then the second."""
    spec = EvaluationSpec(version="latest", config=AssessConfig(draws=100, samples=2, answers=0))
    rows = []
    for number, name in enumerate(("a", "b")):
        train(home.run(name), home, "latest", tiny_recipe(seed=number, steps=4))
        metrics = evaluate(home.run(name), home, spec)
        rows.append(challenge(home.run(name), home, spec, GATE, metrics, key=name, anyway=True))
    return rows


def test_promotion_and_rollback_are_those_of_a_local_home(homes, machine, capsys):
    local, remote = homes
    rows = judged(local) + judged(remote)
    same = [
        [(row.kind, row.model, row.before, row.version, row.number) for row in two]
        for two in (rows[:2], rows[2:])
    ]
    assert same[0] == same[1] and same[0][1][0] == "promoted"
    assert json.loads(rows[1].metrics)["metrics"] == json.loads(rows[3].metrics)["metrics"]
    assert rows[2].run == remote.run("a").url and remote.store.exists(rows[2].report)
    machine("second")
    champion = remote.registry.champion()
    start = champion and remote.registry.model(champion.model).url
    journey = JourneyConfig.model_construct(recipe=tiny_recipe())
    # A metric without a chance level: the two models are at chance in all others, so none would start from them.
    config = RetrainConfig.model_construct(journey=journey, gate=GateConfig(metrics=("train.loss_last",)))
    assert recipe_for(config, remote).start.checkpoint == start
    recipe = tiny_recipe(steps=4, start=tiny_recipe().start.replace(checkpoint=start))
    result = train(remote.run("next"), remote, "latest", recipe)
    machine("third")
    assert train(remote.run("next"), remote, "latest", recipe) == result, (
        "no path of a machine is in its config.json"
    )
    assert rollback(Home(remote.url)).model == rows[2].model == rollback(local).model
    assert [row.kind for row in remote.registry.rows()] == ["promoted", "promoted", "rolled_back"]
    assert verify(remote, None) == []
    told = list(report(remote))
    assert told[-3] == f"run      a  assessed, report in {remote.run('a')}/report.html"
    commands.champion(remote.url)
    assert json.loads(capsys.readouterr().out)["path"] == remote.registry.model(rows[2].model).url
    page = HomePages(remote)
    assert {one["name"]: one["report"] for one in page.overview()["runs"]} == {
        "a": True,
        "b": True,
        "next": False,
    }
    commands.reject("b", "by hand", remote.url)
    assert remote.registry.rows()[-1].kind == "refused"


def test_changed_files_of_a_remote_registry_are_noticed(homes, machine):
    remote = homes[1]
    first, second = judged(remote)
    weights = f"registry/models/{first.model}/model.safetensors"
    good = remote.store.read_bytes(weights)
    remote.store.replace(weights, good[:-1] + b"\x7f")
    with pytest.raises(ValueError, match=r"model\.safetensors changed since the promotion"):
        rollback(remote)
    assert [(one.kind, one.path) for one in verify(remote, None)] == [("model", weights)]
    assert len(repair(remote)) == 1 and not remote.store.exists(weights)
    spec = EvaluationSpec(version="latest")
    assert challenge(remote.run("a"), remote, spec, GATE, {}, key="a") == first
    again = challenge(remote.run("b"), remote, spec, GATE, {})  # the champion: what is missing is copied
    assert again.model == second.model
