"""An interrupted run continues exactly with every option of the trainer, and with another number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyco.models.clip import DualEncoder
from hyco.pipeline.training.recipes import ExecutionConfig, Recipe
from hyco.pipeline.training.run_dir import RunConfig
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.training.train import prepare, train
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

CURVE = ("step", "loss", "terms", "lr", "curvature", "temperature", "radius", "epoch")
SIGTERM_AT = """
import os, signal, sys
from hyco.pipeline.training import train
from hyco.pipeline.training.step_log import StepLog

write = StepLog.write


def stopping(self, step, values):
    write(self, step, values)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGTERM)


StepLog.write = stopping
sys.exit(train.main(sys.argv[1:]))
"""


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return Home(home)


def with_everything(**execution) -> Recipe:
    base = tiny_recipe()
    return base.replace(
        optimiser=base.optimiser.replace(ema=0.9, clip_norm=0.5),
        data=base.data.replace(color_jitter=(0.4, 0.4, 0.4, 0.1)),
        execution=ExecutionConfig(**execution),
    )


def curve(run: Path) -> list[dict]:
    return [{name: line[name] for name in CURVE} for line in read_log(run)]


def stopped_at(step: int, monkeypatch, run: Path, *args) -> None:
    """Train until a step is logged, as after a kill: the steps beyond the last checkpoint are lost."""
    write = StepLog.write

    def breaking(self, now, values):
        write(self, now, values)
        if now == step:
            raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(StepLog, "write", breaking)
        train(run, *args)


@pytest.mark.parametrize(
    "execution", [{}, {"micro_batch": 5, "checkpoint_activations": True}], ids=["whole", "in pieces"]
)
def test_one_process_continues_bit_for_bit(home, tmp_path, monkeypatch, execution):
    recipe = with_everything(**execution)
    train(tmp_path / "straight", home, "latest", recipe)
    stopped_at(13, monkeypatch, tmp_path / "run", home, "latest", recipe)
    train(tmp_path / "run")
    assert curve(tmp_path / "run") == curve(tmp_path / "straight")
    for kind in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (
            load_file(Checkpoints(tmp_path / name / "checkpoints").latest()[1] / kind)  # pyright: ignore[reportOptionalSubscript]
            for name in ("run", "straight")
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    # The model that is evaluated and exported has the averaged weights.
    model = DualEncoder.from_pretrained(tmp_path / "run" / "model").state_dict()
    average = load_file(Checkpoints(tmp_path / "run" / "checkpoints").latest()[1] / "ema.safetensors")  # pyright: ignore[reportOptionalSubscript]
    last = load_file(Checkpoints(tmp_path / "run" / "checkpoints").latest()[1] / "model.safetensors")  # pyright: ignore[reportOptionalSubscript]
    assert all(torch.equal(model[name], average[name]) for name in average)
    assert not torch.equal(model["visual_projection.weight"], last["visual_projection.weight"])


def test_how_a_step_is_computed_may_change_between_two_starts(home, tmp_path, monkeypatch):
    """A run that ran out of memory goes on in pieces: `hyco train` reads the file that the second start wrote."""
    recipe = tiny_recipe()
    stopped_at(12, monkeypatch, tmp_path, home, "latest", recipe)
    before = RunConfig.model_validate_json((tmp_path / "config.json").read_bytes())
    prepare(tmp_path, home, "latest", recipe.replace(execution=ExecutionConfig(micro_batch=4), log_every=2))
    after = RunConfig.model_validate_json((tmp_path / "config.json").read_bytes())
    assert after.recipe.execution.micro_batch == 4 and after.recipe.log_every == 2
    assert after.environment == before.environment
    train(tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == [*range(1, 11), *range(12, 21, 2)]


def test_towers_with_batch_norm_are_not_divided():
    from hyco.pipeline.config import override
    from hyco.pipeline.training.recipes import by_name

    with pytest.raises(ValueError, match=r"execution.micro_batch 8 needs towers without batch norm"):
        override(by_name("demo_poincare_resnet"), ["execution.micro_batch=8"])


@pytest.mark.slow
def test_one_process_then_two_then_one_see_the_same_batches(home, tmp_path, monkeypatch):
    """Stopped in the middle of two epochs; in two processes both in pieces, with the average of the weights."""
    recipe = with_everything(micro_batch=5).replace(checkpoint_steps=6, steps=18)
    train(tmp_path / "straight", home, "latest", recipe)
    run = tmp_path / "run"
    stopped_at(7, monkeypatch, run, home, "latest", recipe)  # one process, to the checkpoint of step 6
    script = tmp_path / "stopping.py"
    script.write_text(SIGTERM_AT.format(step=13))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, str(script), str(run)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    step, folder = Checkpoints(run / "checkpoints").latest()  # pyright: ignore[reportGeneralTypeIssues]
    assert step == 13 and json.loads((folder / "state.json").read_text())["lanes"] == 1
    train(run)
    ours, theirs = read_log(run), read_log(tmp_path / "straight")
    assert [line["step"] for line in ours] == list(range(1, 19))
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["epoch"] == b["epoch"]
    ours, theirs = (
        DualEncoder.from_pretrained(r / "model").state_dict() for r in (run, tmp_path / "straight")
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-3) for name in ours)


COMPILED = """
import sys
from pathlib import Path
from hyco.pipeline.training.step_log import StepLog
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from tests.pipeline.training.test_resume import with_everything

import torch
torch.set_num_threads(1)
home, run, stop = Home(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
write = StepLog.write


def breaking(self, step, values):
    write(self, step, values)
    if step == stop:
        raise SystemExit(3)


StepLog.write = breaking
train(run, home, "latest", with_everything(compile=True).replace(steps=12, checkpoint_steps=5))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_continues_bit_for_bit(home, tmp_path):
    """Each part in a process of its own, which compiles again (from the compiler's cache where it has one)."""
    for name, stops in (("straight", (99,)), ("run", (7, 99))):
        for stop in stops:
            command = [sys.executable, "-c", COMPILED, home.store.url, str(tmp_path / name), str(stop)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == (3 if stop == 7 else 0), done.stderr[-2000:]
    assert curve(tmp_path / "run") == curve(tmp_path / "straight")
