"""A worker's terminal: one line where an observer of Prefect's lost the server; all else as Prefect prints it."""

import os
import subprocess
import sys

from hyco.flows.runtime.settings import CONSOLE_CLASS, CONSOLE_VARIABLE

SAY = """
import prefect.main
from prefect.logging.loggers import get_logger

for name in ("FlowRunCancellingObserver", "worker"):
    try:
        try:
            raise ConnectionError("server rejected\\nHTTP 503")
        except ConnectionError:
            raise OSError("no websocket")
    except OSError:
        get_logger(name).warning("lost 100%% of %s", name, exc_info=True)
"""


def said(tmp_path, **environment) -> list[str]:
    told = subprocess.run(
        [sys.executable, "-c", SAY],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_LOGGING_COLORS": "false"} | environment,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return told.stderr.splitlines()


def test_an_observer_that_loses_the_server_says_so_in_one_line(tmp_path):
    ours, stock = said(tmp_path, **{CONSOLE_VARIABLE: CONSOLE_CLASS}), said(tmp_path)
    first = ours[0]
    assert first.endswith("lost 100% of FlowRunCancellingObserver (OSError: no websocket)")
    assert ours[1].endswith("lost 100% of worker") and ours[2].startswith("Traceback")
    assert len(stock) == 2 * (len(ours) - 1), "Prefect itself prints two tracebacks"
