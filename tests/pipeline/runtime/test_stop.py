"""SIGTERM and Ctrl-C: a checkpoint of the step that was running, exit codes 0 and 130, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hyco.pipeline.cli.app import app, run_app
from hyco.pipeline.runtime.progress import Progress
from hyco.pipeline.runtime.stop import StoppedError, TerminatedError, stop_request, terminable
from hyco.pipeline.training import launch as launching
from hyco.pipeline.training.launch import launch
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.training.train import train
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.home import Home
from tests.factories.commands import GROUNDER
from tests.factories.training import make_home, tiny_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
SIGNALS = [(signal.SIGTERM, TerminatedError, 0), (signal.SIGINT, KeyboardInterrupt, 130)]
NEVER = {"checkpoint_steps": 10**6}


@pytest.fixture(autouse=True)
def own_handlers():
    """A command that was interrupted leaves its process to the next Ctrl-C; here the process goes on."""
    before = {number: signal.getsignal(number) for number, _, _ in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("home")
    make_home(home)
    return str(home)


def signalled(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at: int) -> None:
    """Send this process a signal when it has logged step `at`."""
    write = StepLog.write

    def writing(self, step, values):
        write(self, step, values)
        if step == at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(StepLog, "write", writing)


@pytest.mark.parametrize(("number", "kind", "code"), SIGNALS)
def test_training_saves_the_running_step_and_goes_on_from_there(
    home, tmp_path, monkeypatch, capsys, number, kind, code
):
    heard = []
    with monkeypatch.context() as patched, pytest.raises(kind, match="at step 7 of 20"), terminable():
        signalled(patched, number, 7)
        train(tmp_path, Home(home), "latest", tiny_recipe(**NEVER), listener=heard.append)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert [step for step, _ in Checkpoints(tmp_path / "checkpoints").list()] == [7]
    assert heard[-1]["stopped"] and not heard[-1]["finished"]
    assert "stopped after" in capsys.readouterr().err
    assert train(tmp_path)["steps"] == 20
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 21))


def run_hyco(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        run_app(app)
    return int(left.value.code or 0)


@pytest.mark.parametrize(("number", "kind", "code"), SIGNALS)
@pytest.mark.parametrize(
    ("module", "name", "verb"),
    [("hyco.pipeline.mining.mine", "mine_all", "mine"), ("hyco.pipeline.packing.pack", "pack", "pack")],
)
def test_mining_and_packing_say_that_they_were_stopped(
    tmp_path, monkeypatch, capsys, module, name, verb, number, kind, code
):
    def work(*args, **options):
        with Progress(5, verb):
            os.kill(os.getpid(), number)
            time.sleep(10)

    (tmp_path / "00000.tar").touch()
    monkeypatch.setattr(f"{module}.{name}", work)
    words = [
        verb,
        "--source",
        str(tmp_path),
        "--grounder",
        GROUNDER,
        "--home",
        str(tmp_path),
        "--workers",
        "0",
    ]
    assert run_hyco(monkeypatch, *words) == code
    said = capsys.readouterr().err
    assert "hyco: stopped; the same command goes on where it left off" in said
    assert "stopped after" in said and "done in" not in said


def test_a_second_ctrl_c_ends_at_once():
    with stop_request() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)


def test_a_second_ctrl_c_ends_a_command_that_is_slow_to_end():
    """In a process of its own: the first Ctrl-C is held up, the second does not wait for it."""
    script = (
        "import os, signal, time\n"
        "from hyco.pipeline.runtime.stop import stopping, terminable, told\n"
        "try:\n"
        "    with terminable():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt as error:\n"
        "    assert stopping() and told(error) == 130\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 130 and time.monotonic() - began < 50
    assert ended.stderr.splitlines() == [
        "hyco: stopped; the same command goes on where it left off",
        "hyco: ended at once by a second Ctrl-C",
    ]


def test_handlers_of_others_and_other_threads_are_left_alone():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with terminable(), stop_request() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stop
    finally:
        signal.signal(signal.SIGTERM, before)
    thread = threading.Thread(target=lambda: terminable().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def hyco_train(home: Path, processes: int) -> subprocess.Popen[str]:
    words = ["train", "--recipe", "demo", "--home", str(home), "--run", "one", "--processes", str(processes)]
    values = json.loads(tiny_recipe(steps=100_000, batch_size=8, **NEVER).model_dump_json())
    for name in (
        "model",
        "objective",
        "data",
        "optimiser",
        "batch_size",
        "steps",
        "precision",
        "checkpoint_steps",
    ):
        words += ["--set", f"{name}={json.dumps(values[name])}"]
    command = [sys.executable, "-m", "hyco.pipeline", *words, "--set", "log_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "processes", "code"),
    [(signal.SIGTERM, 2, 0), (signal.SIGINT, 2, 130), (signal.SIGINT, 1, 130)],
)
def test_the_command_ends_with_a_checkpoint(tmp_path, number, processes, code):
    make_home(tmp_path, counts=(64,))
    run = tmp_path / "runs/one"
    process = hyco_train(tmp_path, processes)
    deadline = time.monotonic() + 140
    while len(read_log(run)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or a service manager does, the whole group
    said, _ = process.communicate(timeout=140)
    assert process.returncode == code, said
    (step, _), *others = Checkpoints(run / "checkpoints").list()
    assert not others and step == read_log(run)[-1]["step"]
    assert (
        said.splitlines()[-1]
        == f"hyco: stopped at step {step} of 100000; the same command goes on where it left off"
    )
    assert "Traceback" not in said and "done in" not in said


def test_training_that_was_stopped_from_elsewhere_is_told_apart_from_a_failure(tmp_path, monkeypatch):
    training = tmp_path / "training"
    line = "hyco: stopped at step 3 of 9; the same command goes on where it left off"
    training.write_text(f"#!/bin/sh\necho '{line}'\nexit 1\n")
    training.chmod(0o755)
    monkeypatch.setattr(launching.sys, "executable", str(training))
    with pytest.raises(StoppedError, match=r"^at step 3 of 9$"):
        launch(tmp_path)
