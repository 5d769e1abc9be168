"""A worker process of the local executor, which starts it as `python -m pipeline.runtime.worker FD PARENT`.

Started as a separate program, not forked and not with multiprocessing's spawn: the parent's threads and locks are not
copied, and its main module (pytest, Prefect, a notebook) is not imported again.
"""

import contextlib
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from pipeline.runtime.parent_death import die_with


def main() -> None:
    """Take calls from the pipe until it closes."""
    pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe: the signal to stop
        while True:
            pipe.send(_answer(pipe, pipe.recv_bytes()))


def _answer(pipe: Connection, payload: bytes) -> tuple[str, object]:
    try:
        function, args, reports = pickle.loads(payload)  # from our own parent, through a private pipe
        more = {"report": lambda value: pipe.send(("report", value))} if reports else {}
        answer = ("result", function(*args, **more))
        pickle.dumps(answer)
        return answer
    except Exception as error:
        error.add_note("in the worker:\n" + traceback.format_exc())
        return ("error", _carried(error))


def _carried(error: Exception) -> Exception:
    """The error itself where it can be pickled, else a plain one with its text."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
