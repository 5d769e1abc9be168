"""A worker's terminal: one line where an observer of Prefect's lost the server; all else as Prefect prints it."""

import os
import subprocess
import sys

from hyco.flows.runtime.settings import WORKER

SAY = """
import asyncio
import logging

import prefect.main
from prefect._internal.observers import FlowRunCancellingObserver
from prefect.logging.loggers import get_logger

for name in ("FlowRunCancellingObserver", "worker"):
    try:
        try:
            raise ConnectionError("server rejected\\nHTTP 503")
        except ConnectionError:
            raise OSError("no websocket")
    except OSError:
        get_logger(name).warning("lost 100%% of %s", name, exc_info=True)


async def end() -> None:
    observer = FlowRunCancellingObserver(on_cancelling=print)
    task = asyncio.create_task(asyncio.sleep(9))
    task.add_done_callback(observer._handle_polling_task_done)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.1)
    raise SystemExit(0)


asyncio.run(end())
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
    ours, stock = said(tmp_path, **WORKER), said(tmp_path)
    assert ours[0].endswith("lost 100% of FlowRunCancellingObserver (OSError: no websocket)")
    assert ours[1].endswith("lost 100% of worker") and ours[2].startswith("Traceback")
    assert ours[-1] == "OSError: no websocket", "and nothing of the polling that ended"
    assert any("Exception in callback FlowRunCancellingObserver" in line for line in stock), (
        "Prefect ends without that traceback by itself: ConsoleHandler need not know of it"
    )
