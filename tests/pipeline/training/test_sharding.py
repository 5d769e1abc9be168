"""A training whose parameters are divided over two processes (FSDP2): the losses of DDP, and the same checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyco.pipeline.config import override
from hyco.pipeline.training.recipes import by_name
from hyco.pipeline.training.step_log import read_log
from hyco.pipeline.training.train import train
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe
from tests.pipeline.training.test_resume import with_everything

STEPS, STOP = 8, 5
# One process group for several trainings: starting two processes takes longer than all of them.
SCRIPT = """
import contextlib, os, signal, sys
from pathlib import Path

import torch
import torch.distributed as dist

from hyco.pipeline.runtime.stop import TerminatedError
from hyco.pipeline.training import sharding
from hyco.pipeline.training import train as trainer
from hyco.pipeline.training.step_log import StepLog
from hyco.storage.home import Home
from tests.pipeline.training.test_sharding import STOP, recipe

dist.init_process_group("gloo")
write, stop = StepLog.write, [0]


@contextlib.contextmanager
def processes(device):
    yield dist.get_rank(), 2, torch.device("cpu")


def stopping(self, step, values):
    write(self, step, values)
    if step == stop[0]:
        os.kill(os.getpid(), signal.SIGTERM)


shard, held = sharding.shard, []


def counted(model, device, ranks):
    whole = sum(value.numel() for value in model.parameters())
    shard(model, device, ranks)
    parts = [value.to_local() if sharding.is_sharded(value) or hasattr(value, "to_local") else value
             for value in model.parameters()]
    held.append(sum(part.numel() for part in parts) / whole)


trainer._processes, StepLog.write, sharding.shard = processes, stopping, counted
home, runs = Home(sys.argv[1]), Path(sys.argv[2])
for name, options, stop[0] in (
    ("ddp", {}, 0),
    ("sharded", {"sharded": True}, 0),
    ("pieces", {"sharded": True, "micro_batch": 3, "checkpoint_activations": True}, 0),
    ("resumed", {"sharded": True}, STOP),
    ("resumed", {"sharded": True}, 0),
    ("to_one", {"sharded": True}, STOP),
    ("from_one", {"sharded": True}, 0),
):
    try:
        trainer.train(runs / name, home, "latest", recipe(**options))
    except TerminatedError:
        assert stop[0]
assert all(0.49 < part < 0.56 for part in held), held
dist.destroy_process_group()
"""


def recipe(**execution):
    return with_everything(**execution).replace(steps=STEPS, checkpoint_steps=100)


def curve(run: Path) -> list[list[float]]:
    return [[line["loss"], line["curvature"], line["temperature"]] for line in read_log(run)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sharded_training_is_that_of_ddp_and_continues_in_any_number_of_processes(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    make_home(tmp_path / "home")
    home = Home(tmp_path / "home")
    from tests.pipeline.training.test_resume import stopped_at

    alone = recipe().replace(checkpoint_steps=STOP)
    stopped_at(STOP + 1, monkeypatch, tmp_path / "from_one", home, "latest", alone)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command += [str(tmp_path / "script.py"), str(tmp_path / "home"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    straight = curve(tmp_path / "ddp")
    for name in ("sharded", "pieces"):
        assert list(curve(tmp_path / name)) == [pytest.approx(line, rel=1e-5) for line in straight]
    # Exactly as if nothing had happened; then with another number of processes.
    assert curve(tmp_path / "resumed") == curve(tmp_path / "sharded")
    for name in ("model/model.safetensors", "ema.safetensors", "model.safetensors"):
        ours, theirs = (
            load_file(run / name if "/" in name else Checkpoints(run / "checkpoints").latest()[1] / name)  # pyright: ignore[reportOptionalSubscript]
            for run in (tmp_path / "resumed", tmp_path / "sharded")
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    step, folder = Checkpoints(tmp_path / "to_one" / "checkpoints").latest()  # pyright: ignore[reportGeneralTypeIssues]
    assert step == STOP and json.loads((folder / "state.json").read_text())["lanes"] == 2
    saved = torch.load(folder / "optimiser.pt", weights_only=True)
    assert [type(value["exp_avg"]) for value in saved["state"].values()].count(torch.Tensor) == len(
        saved["state"]
    )
    assert len(saved["param_groups"]) == 2
    train(tmp_path / "to_one")
    for a, b in zip(curve(tmp_path / "to_one"), straight, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert [line["step"] for line in read_log(tmp_path / "from_one")] == list(range(1, STEPS + 1))
    shutil.rmtree(tmp_path / "home")


def test_sharding_is_refused_where_it_would_not_work():
    assert override(by_name("hycoclip_vit_l"), ["execution.sharded=true"]).execution.sharded
    with pytest.raises(ValueError, match=r"execution.sharded true needs a ViT and start.learn=all"):
        override(by_name("demo_poincare_resnet"), ["execution.sharded=true"])


def test_one_process_divides_nothing(tmp_path):
    make_home(tmp_path / "home")
    short = tiny_recipe(steps=3, checkpoint_steps=2)
    runs = [tmp_path / "plain", tmp_path / "sharded"]
    for run, execution in zip(runs, ([], ["execution.sharded=true"]), strict=True):
        train(run, Home(tmp_path / "home"), "latest", override(short, execution))
    assert curve(runs[0]) == curve(runs[1])
