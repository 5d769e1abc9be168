"""The processes of docker/compose.yaml without containers: the same commands and settings on this machine's loopback.

PostgreSQL and Redis come from Debian's packages; the Prefect commands and every PREFECT_ setting are read from the
compose file, so that what is proven here is what the compose file says.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
POSTGRES_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
AUTH = "hyco:only-for-this-test"


def missing() -> str | None:
    """What the machine lacks for this, or None."""
    if not POSTGRES_BIN:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if not shutil.which("redis-server"):
        return "Redis is not installed: apt-get install redis-server"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Team:
    """A team's Hyco as processes; a context manager that ends every one of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = Path(tempfile.mkdtemp(prefix="hyco-services-"))
        self.folder.chmod(0o755)
        self.ports = {name: free_port() for name in ("postgres", "redis", "server")}
        self.url = f"http://127.0.0.1:{self.ports['server']}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, service: str) -> dict[str, str]:
        """A service's settings as the compose file has them, with this machine's ports and secrets."""
        found = {}
        for key, value in COMPOSE["services"][service]["environment"].items():
            text = self.filled(str(value))
            for host, port in (("postgres", 5432), ("redis", 6379), ("server", 4200)):
                text = text.replace(f"{host}:{port}", f"127.0.0.1:{self.ports[host]}")
            if text:
                found[key] = text
        if service in ("server", "services", "migrate"):
            found |= {
                "PREFECT_SERVER_API_HOST": "127.0.0.1",
                "PREFECT_SERVER_API_PORT": str(self.ports["server"]),
            }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        prefect = {"PREFECT_HOME": str(self.folder / f"prefect-{service}"), "DO_NOT_TRACK": "1"}
        return kept | prefect | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | found

    def filled(self, text: str) -> str:
        """A text of the compose file with this machine's values for its variables."""
        values = {"HYCO_AUTH": AUTH, "POSTGRES_PASSWORD": "p", "REDIS_PASSWORD": "r", "HYCO_URL": self.url}
        values["HYCO_HOME"] = str(self.home)
        return re.sub(
            r"\$\{([A-Z_]+)(?::?[-?]([^}]*))?\}", lambda found: values.get(found[1], found[2] or ""), text
        )

    def deploy(self) -> str:
        """The one-off service `deploy`, with its own command."""
        return self.run("deploy", [self.filled(word) for word in COMPOSE["services"]["deploy"]["command"]])

    def run(self, service: str, command: list[str], timeout: float = 180) -> str:
        """Run a command to its end in a service's environment; its output. AssertionError when it fails."""
        done = subprocess.run(
            self._resolved(command),
            env=self.environment(service),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def start(self, name: str, command: list[str], service: str | None = None) -> None:
        """Start a command that stays up, in a session of its own; its output goes to NAME.log."""
        environment = self.environment(service) if service else dict(os.environ)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._resolved(command),
                env=environment,
                stdout=log,
                stderr=log,
                cwd=ROOT if service else self.folder,
                start_new_session=True,
            )

    def kill(self, name: str, how: int = signal.SIGKILL) -> None:
        """End a process and what it started."""
        process = self.processes.pop(name)
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    def start_postgres(self) -> None:
        data = self.folder / "postgres"
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if as_user:
            data.mkdir()
            shutil.chown(data, "postgres", "postgres")
        bin_ = POSTGRES_BIN[-1]
        subprocess.run(
            [*as_user, bin_ / "initdb", "-D", data, "-U", "prefect", "--auth=trust", "-N"],
            check=True,
            capture_output=True,
        )
        port = str(self.ports["postgres"])
        options = ["-p", port, "-c", f"unix_socket_directories={data}", "-c", "listen_addresses=127.0.0.1"]
        self.start("postgres", [*as_user, str(bin_ / "postgres"), "-D", str(data), *options])
        ready = [bin_ / "pg_isready", "-h", "127.0.0.1", "-p", port]
        wait(lambda: subprocess.run(ready, capture_output=True).returncode == 0, 60, "PostgreSQL")
        subprocess.run(
            [bin_ / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "prefect", "prefect"], check=True
        )

    def start_redis(self) -> None:
        command = COMPOSE["services"]["redis"]["command"]
        command = [word.replace("${REDIS_PASSWORD}", "r") for word in command]
        self.start("redis", [*command, "--port", str(self.ports["redis"]), "--bind", "127.0.0.1"])
        wait(lambda: _listens(self.ports["redis"]), 30, "Redis")

    def start_server(self) -> None:
        """The half that answers, with the command of the image."""
        self.start("server", ["prefect", "server", "start", "--no-services"], "server")
        wait(lambda: self.health() == 200, 120, f"the server, see {self.folder}/server.log")

    def start_services(self) -> None:
        self.start("services", COMPOSE["services"]["services"]["command"], "services")

    def start_worker(self, pool: str = "cpu") -> None:
        self.start(f"{pool}-worker", ["hyco", "worker", "--pool", pool], "cpu-worker")

    def health(self) -> int:
        return status(f"{self.url}/api/health")

    def read(self, path: str) -> Any:
        """What the API answers, with the password."""
        request = urllib.request.Request(f"{self.url}/api/{path}")
        request.add_header("Authorization", "Basic " + b64encode(AUTH.encode()).decode())
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def migrate(self) -> None:
        self.run("migrate", COMPOSE["services"]["migrate"]["command"])

    def __enter__(self) -> Self:
        try:
            self.start_postgres()
            self.start_redis()
            self.migrate()
            self.start_server()
            self.start_services()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name, signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _resolved(command: list[str]) -> list[str]:
        beside = Path(sys.executable).parent / command[0]
        return [str(beside), *command[1:]] if beside.is_file() else command


def status(url: str, auth: str | None = None, **headers: str) -> int:
    """HTTP status of a GET, 0 when nobody answers."""
    return answer(url, auth, **headers)[0]


def answer(url: str, auth: str | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """HTTP status and headers of a GET; (0, {}) when nobody answers."""
    request = urllib.request.Request(url, headers={key.replace("_", "-"): v for key, v in headers.items()})
    if auth:
        request.add_header("Authorization", "Basic " + b64encode(auth.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)
    except (urllib.error.URLError, OSError):
        return 0, {}


def wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `done`; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.3)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
