"""A Prefect server, a worker and a home as processes of their own, as an installation has them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyco.demo.write import write_shard
from hyco.flows.runtime.server import guarded
from tests.factories.commands import GROUNDER, HYCO, ROOT

PATIENCE = float(os.environ.get("HYCO_TEST_PATIENCE", 1))  # above 1 where other work shares the cores
TINY = [
    "retrain.journey.recipe.steps=20",
    "retrain.journey.recipe.batch_size=16",
    "retrain.journey.recipe.log_every=1",
    "retrain.journey.recipe.checkpoint_steps=5",
    "retrain.journey.recipe.entailment_start=0",
    "retrain.journey.recipe.entailment_ramp=0",
    "retrain.journey.recipe.optimiser.warmup_steps=2",
    "retrain.journey.recipe.model.vision.width=64",
    "retrain.journey.recipe.model.vision.depth=1",
    "retrain.journey.recipe.model.text.depth=1",
    "retrain.journey.assess.draws=100",
    "retrain.min_new=10",
    "retrain.settle_s=1",
    "retrain.gate.tolerance=0.99",
    "retrain.gate.above_chance=false",
]


class Operation:
    """One home with its server and workers; the end of the `with` block, or `close`, ends everything it started.

    Args:
        folder: of all that it writes.
        home: URL of the home; without one it is a folder.
    """

    def __init__(self, folder: Path, home: str | None = None) -> None:
        self.folder, self.home, self.source = folder, home or folder / "home", folder / "source"
        self.source.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        self.env = {
            **own,
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "15",
            "OMP_NUM_THREADS": "1",
            "HYCO_WORKERS": "1",
            "DO_NOT_TRACK": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.server = self.start_server()

    def __enter__(self) -> "Operation":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                guarded([*command]), cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def start_server(self) -> subprocess.Popen[bytes]:
        """Start the server, on its own database, and wait until it answers."""
        process = self.start("server", *HYCO, "ui", "--home", str(self.home), "--port", str(self.port))
        self.wait("the server answers", lambda: self.ask("GET", "/health") is True, 180)
        return process

    def start_worker(self, pool: str = "cpu") -> subprocess.Popen[bytes]:
        """Start a worker of a pool."""
        return self.start("worker", sys.executable, "-m", "prefect", "worker", "start", "--pool", pool)

    def hyco(self, *arguments: str, code: int = 0) -> str:
        """Run a command of hyco to its end and return what it printed; it must exit with `code`."""
        ran = subprocess.run(
            [*HYCO, *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300 * PATIENCE,
        )
        assert ran.returncode == code, (
            f"{arguments}: {ran.returncode}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
        )
        return ran.stdout

    def deploy(self, *settings: str) -> str:
        """hyco deploy, with a tiny recipe and these settings."""
        chosen = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
        where = [
            "--home",
            str(self.home),
            "--source",
            str(self.source),
            "--grounder",
            GROUNDER,
            "--recipe",
            "demo",
        ]
        held = ["--assess-source", str(self.folder / "held" / "heldout")]
        return self.hyco("deploy", *where, *held, *chosen)

    def drop(self, number: int, images: int = 30) -> Path:
        """Put a new shard into the watched folder, as a person would who copies a file there."""
        out = self.folder / f"made{number}"
        write_shard(str(out), "train", number, images, seed=7, size=128)
        (made,) = (out / "train").glob("*.tar")
        return made.rename(self.source / made.name)

    def hold(self, images: int = 30) -> None:
        """Make the held-out source that champion and challengers are asked about."""
        write_shard(str(self.folder / "held"), "heldout", 0, images, seed=7, size=128)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request of the REST API; None while the server does not answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.api + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except (urllib.error.URLError, OSError):
            return None

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow, oldest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        return self.ask("POST", "/flow_runs/filter", body) or []

    def states(self, flow: str) -> list[str]:
        """The state names of a flow's runs that have begun or ended, oldest first."""
        return [
            run["state_name"] for run in self.runs(flow) if run["state_name"] not in ("Scheduled", "Late")
        ]

    def artifacts(self, key: str) -> list[dict[str, Any]]:
        """All artifacts with a key, oldest first."""
        body = {"artifacts": {"key": {"any_": [key]}}, "limit": 200}
        return sorted(self.ask("POST", "/artifacts/filter", body) or [], key=lambda made: made["created"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """All events of a name."""
        found = self.ask("POST", "/events/filter", {"filter": {"event": {"name": [name]}}, "limit": 50})
        return (found or {}).get("events", [])

    def wait(self, what: str, ready: Callable[[], Any], seconds: float) -> Any:
        """Wait until `ready` says something true and return it; the logs are shown when it never does."""
        deadline = time.monotonic() + seconds * PATIENCE
        while not (found := ready()):
            assert time.monotonic() < deadline, f"never came: {what}\n{self.tail()}"
            time.sleep(1.0)
        return found

    def tail(self) -> str:
        """The last lines of the logs and the state of every run."""
        flows = ("watch", "retrain", "train", "mine", "pack", "assess")
        seen = {
            flow: [(run["name"], run["state_name"], run["start_time"]) for run in self.runs(flow)]
            for flow in flows
        }
        logs = [
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.folder.glob("*.log")
        ]
        return json.dumps(seen, indent=1) + "\n".join(logs)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9 one process, and nothing else."""
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """End what is still running, workers first, and wait for what they had started."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        deadline = time.monotonic() + 30
        while left(self.folder) and time.monotonic() < deadline:
            time.sleep(0.5)


def left(folder: Path) -> list[str]:
    """Command lines of processes that still have to do with a folder."""
    every = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in every if str(folder) in line and "defunct" not in line]
