"""Ctrl-C as a terminal sends it, to the whole process group: one line, exit code 130, nothing left running."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from hyco.demo.write import write_shard
from tests.factories.commands import GROUNDER, ROOT

STARTUP_S = 240
STOPPED = r"hyco: stopped.*; the same command goes on where it left off"
AT_ONCE = r"hyco: ended at once by a second Ctrl-C"


class Command:
    """A command of hyco in a session of its own, whose leader is the only member of its process group."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / "log"
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hyco.flows", *words],
                cwd=ROOT,
                env={**env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def until(self, text: str) -> None:
        """Wait until the command has printed a text."""
        deadline = time.monotonic() + STARTUP_S
        while text not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def ctrl_c(self, times: int = 1) -> list[str]:
        """Send SIGINT to the group, half a second apart; the lines that were printed afterwards."""
        before = len(self.log.read_text())
        for _ in range(times):
            os.killpg(self.process.pid, signal.SIGINT)
            time.sleep(0.5)
        self.process.wait(120)
        return self.log.read_text()[before:].splitlines()

    def left(self) -> str:
        """The processes of the session, once those that die with their parent have done so."""
        time.sleep(1.5)
        ran = subprocess.run(
            ["ps", "-s", str(self.process.pid), "-o", "args="], capture_output=True, text=True
        )
        return "".join(line for line in ran.stdout.splitlines() if "defunct" not in line)

    def close(self) -> None:
        """End what is left of the command."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def hyco(tmp_path: Path):
    commands = []

    def start(*words: str) -> Command:
        commands.append(Command(tmp_path, *words, "--home", str(tmp_path / "home")))
        return commands[-1]

    yield start
    for command in commands:
        command.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_journey_ends_with_one_line(hyco, tmp_path: Path, times: int) -> None:
    write_shard(str(tmp_path / "scenes"), "train", 0, 60, seed=5, size=128)
    words = ["--source", str(tmp_path / "scenes/train"), "--grounder", GROUNDER, "--recipe", "demo"]
    journey = hyco("journey", *words, "--workers", "1")
    journey.until("for flow 'mine'")
    said = [line for line in journey.ctrl_c(times) if not line.startswith("mine: ")]
    assert journey.process.returncode == 130
    assert len(said) <= 2 and not re.search("ERROR|WARNING|Traceback|Crash", "\n".join(said)), said
    assert re.fullmatch(f"{STOPPED}|{AT_ONCE}" if times == 2 else STOPPED, said[-1])
    assert journey.left() == ""


@pytest.mark.timeout(600)
def test_the_ui_announces_an_address_that_is_its_own_and_ends_without_a_word(hyco) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = hyco("ui", "--port", port)
        assert taken.process.wait(120) == 2
        assert taken.log.read_text() == f"hyco: error: port {port} is taken: give --port\n"
    with socket.create_server(("127.0.0.1", 0)) as free:
        pages = str(free.getsockname()[1])
    ui = hyco("ui", "--port", port, "--pages-port", pages)
    ui.until("pages of ")
    with urllib.request.urlopen(f"http://127.0.0.1:{pages}/", timeout=30) as answer:
        assert b"dataset versions" in answer.read().lower()
    assert f"http://127.0.0.1:{port}/runs" in ui.log.read_text()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=30) as answer:
        assert answer.status == 200
    assert ui.ctrl_c() == []
    assert ui.process.returncode == 0 and ui.left() == ""
