"""Training on several nodes: the options, and two nodes of two processes on this machine, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyco.pipeline.training.nodes import Nodes
from hyco.pipeline.training.run_dir import prepare
from hyco.pipeline.training.step_log import read_log
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((1, 0, "10.0.0.1:1"), "--nodes is 1: give 2 or more, or leave it out"),
        ((2, 2, "10.0.0.1:1"), "--node-rank is 2: number the 2 nodes from 0 to 1"),
        ((2, 0, ""), "--nodes needs --rendezvous HOST:PORT"),
        ((2, 0, "node:x"), "--rendezvous is 'node:x': give HOST:PORT, such as 10.0.0.1:29500"),
        ((2, 0, ":29500"), "--rendezvous is ':29500': give HOST:PORT"),
    ],
)
def test_options_that_cannot_work_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        Nodes(*given)


def test_a_rendezvous_is_a_host_and_a_port():
    assert Nodes(2, 0, "node0").endpoint == ("node0", 29500)
    assert Nodes(2, 0, "10.0.0.1:400").endpoint == ("10.0.0.1", 400)
    assert Nodes(2, 0, "[fd00::1]:400").endpoint == ("fd00::1", 400) == Nodes(2, 0, "[fd00::1]:400").endpoint
    assert Nodes(2, 0, "127.0.0.1").own_address() == "127.0.0.1"
    if sys.platform == "linux":
        assert Nodes(2, 0, "127.0.0.1").environment()["GLOO_SOCKET_IFNAME"] == "lo"
    told = Nodes(2, 1, "127.0.0.1:400").arguments("tiny")
    assert "--rdzv-endpoint=127.0.0.1:400" in told and "--rdzv-id=tiny" in told and "--nnodes=2" in told
    assert any("is_host=0" in one for one in told)


def test_an_address_that_other_nodes_do_not_reach_is_refused(monkeypatch):
    with pytest.raises(ConnectionError, match=r"no way to --rendezvous nowhere\.invalid:1"):
        Nodes(2, 1, "nowhere.invalid:1").own_address()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 2, 0, "", ("127.0.1.1", 29500))])
    with pytest.raises(
        ValueError, match=r"node0 is 127\..* on this node, which no other node reaches: give node 0's"
    ):
        Nodes(2, 0, "node0").own_address()


def start(home: Path, run: str, rank: int, port: int) -> subprocess.Popen[bytes]:
    """One node: it runs what `hyco train --nodes 2 --processes 2` runs after preparing the run."""
    code = (
        "import sys; from hyco.pipeline.training.launch import launch; from hyco.pipeline.training.nodes import Nodes\n"
        f"launch({str(home / 'runs' / run)!r}, 2, nodes=Nodes(2, {rank}, '127.0.0.1:{port}'))"
    )
    # The name of this machine need not resolve, and need not be asked for.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (home / f"{run}-{rank}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def said(home: Path, run: str) -> str:
    return "".join((home / f"{run}-{rank}.log").read_text() for rank in range(2))[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_node_comes_back_and_the_order_of_samples_is_that_of_an_uninterrupted_run(
    tmp_path, free_ports
):
    make_home(tmp_path, counts=(64, 64))
    recipe = tiny_recipe(steps=60, batch_size=16, checkpoint_steps=10)
    for run in ("straight", "killed"):
        prepare(tmp_path / "runs" / run, Home(tmp_path), "latest", recipe)
    nodes = [start(tmp_path, "straight", rank, free_ports[0]) for rank in range(2)]
    assert [node.wait(400) for node in nodes] == [0, 0], said(tmp_path, "straight")

    nodes = [start(tmp_path, "killed", rank, free_ports[1]) for rank in range(2)]
    checkpoints = tmp_path / "runs" / "killed" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("step-*")):
        assert all(node.poll() is None for node in nodes) and time.monotonic() < deadline, said(
            tmp_path, "killed"
        )
        time.sleep(0.02)
    os.kill(nodes[1].pid, signal.SIGKILL)
    nodes[1].wait()
    assert not (tmp_path / "runs" / "killed" / "train.json").exists()
    nodes[1] = start(tmp_path, "killed", 1, free_ports[1])
    assert [node.wait(400) for node in nodes] == [0, 0], said(tmp_path, "killed")

    straight, killed = (read_log(tmp_path / "runs" / run) for run in ("straight", "killed"))
    assert json.loads((tmp_path / "runs" / "killed" / "train.json").read_text())["processes"] == 4
    assert [line["step"] for line in killed] == list(range(1, 61))
    assert [line["epoch"] for line in killed] == [line["epoch"] for line in straight]
    for ours, theirs in zip(killed, straight, strict=True):  # another order of samples gives another loss
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.fixture
def free_ports() -> list[int]:
    import socket

    held = [socket.socket() for _ in range(2)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
