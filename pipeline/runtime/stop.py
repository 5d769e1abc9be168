"""Stopping on request: SIGTERM (preemption, `docker stop`) and Ctrl-C end work at a point where nothing is lost.

Training finishes the current step and saves a checkpoint; mining and packing have stored every finished unit.
A command that SIGTERM stopped ends with 0, one that Ctrl-C stopped with 130; both resume when they are run again.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NoReturn

GRACE_S = 30.0
"""Seconds from SIGTERM to the end of a training: it is killed if its step and its checkpoint take longer."""

TOLD = "hyco: stopped"  # start of the line that reports it
_REMEDY = "; the same command goes on where it left off"

_Handler = Callable[[int, FrameType | None], None]


class TerminatedError(BaseException):
    """SIGTERM as an exception like KeyboardInterrupt: handlers of ordinary errors do not catch it."""


class StoppedError(RuntimeError):
    """Work in another process was asked to stop, saved its state and ended; started again, it resumes."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def end(self, text: str) -> NoReturn:
        """End the work: KeyboardInterrupt after Ctrl-C, else TerminatedError, with the text."""
        raise KeyboardInterrupt(text) if self.signal == signal.SIGINT else TerminatedError(text)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record SIGTERM and Ctrl-C during a block, which checks the request and calls `end`.

    A second Ctrl-C ends at once. Outside the main thread, and where a signal is ignored or other code handles it,
    nothing changes.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = request.signal or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handling({signal.SIGTERM: note, signal.SIGINT: note}):
        yield request


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise TerminatedError at the first SIGTERM, in the main thread; later ones are ignored."""
    with _handling({signal.SIGTERM: _terminate}):
        yield


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TerminatedError


def told(error: BaseException, quiet: bool = False) -> int:
    """Report on stderr (unless `quiet`) that a command was stopped; return its exit code, 0 after SIGTERM, else 130."""
    if not quiet:
        print(f"{TOLD}{f' {error}' if str(error) else ''}{_REMEDY}", file=sys.stderr, flush=True)
    return 0 if isinstance(error, TerminatedError | StoppedError) else 130


def where(line: str) -> str | None:
    """The position in a line that reports a stop ("at step 13 of 20"); None for any other line."""
    return line.removeprefix(TOLD).removesuffix(_REMEDY).strip() if line.startswith(TOLD) else None


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    """Install handlers where the interpreter's own or `terminable`'s are set, and restore those at the end."""
    known = (signal.SIG_DFL, signal.default_int_handler, _terminate)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if signal.getsignal(number) in known:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
