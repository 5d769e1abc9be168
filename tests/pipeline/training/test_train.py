"""Training: the loss falls, a killed run continues as if nothing had happened, errors say what differs."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hyco.pipeline.training.train
from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.runtime import device as devices
from hyco.pipeline.training.batch import START
from hyco.pipeline.training.dataloader import Batches
from hyco.pipeline.training.recipes import Recipe
from hyco.pipeline.training.run_dir import exclusive_lock
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.training.train import main, prepare, train
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

CURVE = ("step", "loss", "terms", "lr", "curvature", "temperature", "radius", "epoch")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return str(home)


@pytest.fixture(scope="module")
def straight(home) -> Path:
    """A run of twenty steps that nothing interrupted."""
    run = Path(home) / "runs" / "straight"
    train(run, Home(home), "latest", tiny_recipe())
    return run


def curve(run: Path) -> list[dict]:
    return [{name: line[name] for name in CURVE} for line in read_log(run)]


def test_training_lowers_the_loss_and_leaves_a_model_that_loads(straight, home):
    result = json.loads((straight / "train.json").read_text())
    lines = read_log(straight)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert result["samples_seen"] == 320 and result["steps"] == 20
    assert result["loss_first"] == pytest.approx(sum(line["loss"] for line in lines) / 20)
    assert sum(line["loss"] for line in lines[-3:]) < 0.9 * sum(line["loss"] for line in lines[:3])
    assert result["samples_per_second"] == pytest.approx(320 / lines[-1]["seconds"])
    assert 0 <= result["data_wait"] <= 1
    model = DualEncoder.from_pretrained(straight / "model")
    tokenizer = Tokenizer.load(straight / "model", 16)
    assert model.config.text.vocab_size == len(tokenizer)
    assert model.encode_text(tokenizer(["a red square"])).shape == (1, 16)
    assert model.curvature.item() == pytest.approx(result["curvature"], abs=1e-3)
    assert list((straight / "tensorboard").iterdir())


def test_every_logged_line_has_terms_scalars_and_radii_by_node(straight):
    line = read_log(straight)[-1]
    assert set(line["radius"]) == {"image", "text", "image_box", "text_box"}
    assert line["radius"]["text"]["q05"] <= line["radius"]["text"]["q50"] <= line["radius"]["text"]["q95"]
    weights = {"contrast": 0.25, "entail": 0.1}
    total = sum(weights[name.split("/")[0]] * value for name, value in line["terms"].items())
    assert len(line["terms"]) == 8 and total == pytest.approx(line["loss"], rel=1e-5)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(("stop", "workers"), [(13, 0), (19, 0), (13, 2)])
def test_an_interrupted_run_continues_exactly(straight, home, tmp_path, monkeypatch, stop, workers):
    """Stopped three or nine steps after its checkpoint: the steps beyond it are forgotten and made again."""
    write = StepLog.write

    def breaking(self, step, values):
        write(self, step, values)
        if step == stop:
            raise StoppedError

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StepLog, "write", breaking)
        train(run, Home(home), "latest", tiny_recipe())
    assert read_log(run)[-1]["step"] == stop and not (run / "train.json").exists()
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')  # a line that the kill cut short
    recipe = tiny_recipe()
    if workers:
        by_workers = recipe.replace(data=recipe.data.replace(workers=workers))
        train(run, Home(home), "latest", by_workers)
    else:
        train(run)  # config.json alone says how to go on
    assert curve(run) == curve(straight)
    ours, theirs = (DualEncoder.from_pretrained(r / "model").state_dict().values() for r in (run, straight))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("began", [True, False])
def test_a_run_keeps_the_precision_that_it_began_with(home, tmp_path, monkeypatch, began):
    """The measurement of another day, or of another machine with bfloat16, changes no digit of a run."""
    write, recipe = StepLog.write, tiny_recipe().replace(precision="bfloat16")
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(devices, "_gains_by_bfloat16", lambda: began)
    straight, run = tmp_path / "straight", tmp_path / "run"
    result = train(straight, Home(home), "latest", recipe)
    assert result["precision"] == ("bfloat16" if began else "float32")

    def breaking(self, step, values):
        write(self, step, values)
        if step == 13:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StepLog, "write", breaking)
        train(run, Home(home), "latest", recipe)
    monkeypatch.setattr(devices, "_gains_by_bfloat16", lambda: not began)
    assert train(run)["precision"] == result["precision"] and curve(run) == curve(straight)


def test_undecodable_samples_of_before_an_interruption_are_counted(home, tmp_path, monkeypatch):
    """One sample of each batch could not be decoded; the run is stopped at step 13, after its checkpoint of step 10."""
    start, write = Batches.start, StepLog.write

    def broken(self, position=START):
        return (dataclasses.replace(batch, substituted=1) for batch in start(self, position))

    def stopping(self, step, values):
        write(self, step, values)
        if step == 13:
            raise StoppedError

    monkeypatch.setattr(Batches, "start", broken)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StepLog, "write", stopping)
        train(tmp_path, Home(home), "latest", tiny_recipe())
    assert train(tmp_path)["substituted"] == 20
    assert [line["substituted"] for line in read_log(tmp_path)] == list(range(1, 21))


def test_a_finished_run_is_not_trained_again(straight, home, monkeypatch):
    monkeypatch.setattr(hyco.pipeline.training.train, "_train", lambda *a: pytest.fail("trained again"))
    assert train(straight, Home(home), "latest", tiny_recipe()) == json.loads(
        (straight / "train.json").read_text()
    )


def test_another_recipe_or_version_in_the_same_directory_is_named(straight, home, tmp_path):
    other = tiny_recipe(optimiser=tiny_recipe().optimiser.replace(lr=0.5))
    with pytest.raises(ValueError, match=r"started with recipe\.optimiser\.lr 0\.003, not 0\.5"):
        train(straight, Home(home), "latest", other)
    prepare(straight, Home(home), "latest", tiny_recipe(log_every=7))  # how often to log is not a difference
    second = tmp_path / "second"
    make_home(second, counts=(32,))
    with pytest.raises(ValueError, match=r"started with version v-[0-9a-f]+, not v-"):
        prepare(straight, Home(second), "latest", tiny_recipe())


def test_a_checkpoint_of_another_architecture_is_refused(straight, home, tmp_path):
    run = tmp_path / "run"
    wide = tiny_recipe().model_dump()
    wide["model"]["dim"] = 24
    prepare(run, Home(home), "latest", Recipe.model_validate(wide))
    shutil.copytree(straight / "checkpoints", run / "checkpoints")
    with pytest.raises(ValueError, match=r"another architecture: .* is \(16, 32\) there and \(24, 32\) here"):
        train(run)


def test_command_line_errors_are_one_line(home, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "has no config.json" in capsys.readouterr().err
    run = tmp_path / "run"
    prepare(run, Home(home), "latest", tiny_recipe(batch_size=100))
    assert main([str(run)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(
        "hyco: error: 64 samples cannot fill a batch of 100 on each of 1 ranks; use a smaller"
    )
    with pytest.raises(ValueError, match="device 'tpu'"):
        train(tmp_path / "run", device="tpu")


def test_a_diverging_run_stops_and_says_so(home, tmp_path):
    wild = tiny_recipe(optimiser=tiny_recipe().optimiser.replace(lr=1e30, warmup_steps=0))
    with pytest.raises(ValueError, match=r"loss is nan at step \d+: lower optimiser\.lr"):
        train(tmp_path / "run", Home(home), "latest", wild)


def test_a_product_logs_the_spread_of_its_curvatures_and_goes_on(home, tmp_path):
    model = dataclasses.replace(tiny_recipe().model, geometry="product", factors=4)
    result = train(tmp_path / "run", Home(home), "latest", tiny_recipe(model=model, steps=4))
    line = read_log(tmp_path / "run")[-1]
    assert line["curvature_least"] <= line["curvature"] == result["curvature"] <= line["curvature_most"]
    assert set(line["radius"]) == {"image", "text", "image_box", "text_box"}
    loaded = DualEncoder.from_pretrained(tmp_path / "run" / "model")
    assert loaded.curvature.shape == (4,)


def test_clip_rows_need_no_boxes_and_have_no_curvature(home, tmp_path):
    from hyco.models.losses.objective import clip_objective

    values = tiny_recipe(objective=clip_objective(), steps=3).model_dump()
    values["model"]["geometry"] = "euclid"
    run = tmp_path / "run"
    result = train(run, Home(home), "latest", Recipe.model_validate(values))
    assert result["curvature"] is None and "radius" not in read_log(run)[-1]


def launch(run: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen([*command, "-m", "hyco.pipeline.training.train", str(run)], env=environment)


def test_two_processes_killed_with_sigkill_continue(tmp_path):
    """torchrun with gloo and more ranks than shards; its workers die with it, and a second start finishes."""
    make_home(tmp_path / "home", counts=(64,))
    run = tmp_path / "run"
    prepare(run, Home(tmp_path / "home"), "latest", tiny_recipe(steps=60, checkpoint_steps=5, batch_size=8))
    process = launch(run)
    deadline = time.monotonic() + 140
    while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (run / "train.json").exists()
    again = launch(run)  # at once: the run's lock is free, because no worker of the first start is left
    assert again.wait(140) == 0
    lines = read_log(run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert json.loads((run / "train.json").read_text())["processes"] == 2


def test_a_run_is_trained_by_one_process_at_a_time(home, tmp_path):
    run = tmp_path / "run"
    prepare(run, Home(home), "latest", tiny_recipe())
    with exclusive_lock(run), pytest.raises(ValueError, match="is being trained by another process"):
        train(run)
