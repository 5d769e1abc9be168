"""Prefect's environment for a run that finds no server: a database under the home, no telemetry, JSON, heartbeats.

Imports no Prefect, because Prefect reads these variables once, when it is imported.
"""

import os
from pathlib import Path

from hyco.storage.layout import PREFECT

# Every flow run sends a heartbeat this often, so that the automations can recognise dead runs.
HEARTBEAT_S = 30

# The environment of `hyco worker` and of its runs.
WORKER = {
    # Prefect's logging configuration takes the class of its console handler from this variable.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_CLASS": "hyco.flows.runtime.console.ConsoleHandler",
    # A drop waits for the worker's question twice: for the look, and for the training that the look starts.
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback() -> None:
    """Exclude servers of this machine from the proxy settings of urllib, httpx and websockets.

    A machine behind a proxy has http_proxy set and often not no_proxy; the proxy cannot reach our server on loopback.
    """
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in known.split(",") if name.strip()]
    if "*" not in names:
        names += [name for name in LOOPBACK if name not in names]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(names)


def use_home(home: str) -> Path:
    """Point Prefect at `home`/prefect unless the environment already names a server or a Prefect home.

    Requests to loopback use no proxy. Returns the directory that holds the Prefect database. Call before the
    first `import prefect`.
    """
    directory = Path(home).absolute() / PREFECT if "://" not in home else Path.home() / ".hyco" / PREFECT
    defaults = {
        "PREFECT_HOME": str(directory),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_CLI_COLORS": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    }
    spare_loopback()
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    chosen = Path(os.environ["PREFECT_HOME"])
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen
