"""A Prefect server for the length of one command, where none is configured: on SQLite, loopback only, with the UI.

Prefect's own temporary server outlives a command that is killed; this one ends with its parent.
"""

import atexit
import base64
import http.client
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import IO

from hyco.flows.runtime.settings import spare_loopback, use_home
from hyco.pipeline.runtime.listen import listen

STARTUP_S = 120.0


def ensure_server(home: str) -> str:
    """Return the address of the API that flows of this process run against.

    This is PREFECT_API_URL where the environment sets it, else the address of a new server, which ends with this
    process. Call it before Prefect is imported. Raises RuntimeError, naming the log, when the server does not answer in
    time.
    """
    folder = use_home(home)
    if known := os.environ.get("PREFECT_API_URL"):
        reach(known)
        return known
    assert "prefect" not in sys.modules, "Prefect reads its settings once, when it is imported"
    log = folder / "server.log"
    with listen("127.0.0.1", 0) as listening, log.open("wb") as file:
        process, address = start(listening, file)
    # Prefect empties its queues of logs and events when the interpreter exits. Exit handlers run last in, first out:
    # registered before Prefect's, this one stops the server after they are empty.
    atexit.register(process.terminate)
    wait_for(process, address, f"see {log}")
    os.environ["PREFECT_API_URL"] = address
    return address


def start(listening: socket.socket, log: IO[bytes] | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """Start Prefect's server on a listening socket; return its process and the address of its API.

    The server has a process group of its own: Ctrl-C in a terminal must not end it before this process has told it how
    its runs ended. It ends with this process.

    Args:
        listening: a socket of the loopback address; the caller closes its own copy.
        log: the file that takes what the server prints; by default this process's own stderr.
    """
    port = int(listening.getsockname()[1])
    process = subprocess.Popen(
        guarded([sys.executable, "-m", "hyco.flows.runtime.server_app", str(listening.fileno())]),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment(port),
        pass_fds=[listening.fileno()],
        process_group=0,
    )
    return process, f"http://127.0.0.1:{port}/api"


def reach(address: str) -> None:
    """Raise RuntimeError, with the remedy, when nothing answers at an API's address or it refuses the password."""
    if os.environ.get("PREFECT_API_KEY"):  # Prefect Cloud has other paths
        return
    spare_loopback()
    request = urllib.request.Request(f"{address}/admin/version")
    if password := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30):
            return
    except urllib.error.HTTPError as error:
        remedy = (
            "set PREFECT_API_AUTH_STRING=user:password"
            if error.code in (401, 403)
            else "is it Prefect's API?"
        )
        raise RuntimeError(f"{address} (PREFECT_API_URL) answers {error.code}: {remedy}") from None
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"nothing answers at {address} (PREFECT_API_URL): {getattr(error, 'reason', error)}; is `hyco ui` running?"
        ) from None


def guarded(command: list[str]) -> list[str]:
    """The same command, made to end with this process."""
    return [sys.executable, "-m", "hyco.pipeline.runtime.parent_death", str(os.getpid()), *command]


def environment(port: int) -> dict[str, str]:
    """The server's environment: its pages use port 4200 by default, so they get the address.

    Leases of concurrency slots are stored on disk, so that a restarted server can release those of dead processes; old
    flow runs, their logs and heartbeats are deleted.
    """
    kept = {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # Prefect's default lets any web site that the browser shows read and start runs.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
        # The other UI, which Prefect 3.8 opens by default, loads a script of an analytics host on every page.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    return {
        **kept,
        **os.environ,
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def wait_for(process: subprocess.Popen[bytes], address: str, remedy: str) -> None:
    """Return when the server answers; RuntimeError, which ends with the remedy, when it ends or takes too long."""
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the Prefect server ended with code {process.returncode}: {remedy}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not answer within {STARTUP_S:.0f} s: {remedy}")
