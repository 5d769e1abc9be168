"""A worker process of the local executor, which starts it as `python -m hyco.pipeline.runtime.worker FD PARENT`.

Started as a separate program, not forked and not with multiprocessing's spawn: the parent's threads and locks are not
copied, and its main module (pytest, Prefect, a notebook) is not imported again.
"""

import contextlib
import functools
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from hyco.pipeline.runtime.calls import answer
from hyco.pipeline.runtime.parent_death import die_with


def main() -> None:
    """Take calls from the pipe until it closes."""
    pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe: the signal to stop
        while True:
            pipe.send(answer(functools.partial(_work, pipe, pipe.recv_bytes())))


def _work(pipe: Connection, payload: bytes) -> Any:
    function, args, reports = pickle.loads(payload)  # from our own parent, through a private pipe
    more = {"report": lambda value: pipe.send(("report", value))} if reports else {}
    return function(*args, **more)


if __name__ == "__main__":
    main()
