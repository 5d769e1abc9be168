"""Stopping on request: SIGTERM (preemption, `docker stop`) and Ctrl-C end work at a point where nothing is lost.

Training finishes the current step and saves a checkpoint; mining and packing have stored every finished unit.
A command that SIGTERM stopped ends with 0, one that Ctrl-C stopped with 130; both resume when they are run again.
"""

import contextlib
import os
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

_ERASE, _SHOW_CURSOR = "\r\x1b[K", "\x1b[?25h"
_stopping = threading.Event()

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
    """Raise TerminatedError at the first SIGTERM and KeyboardInterrupt at the first Ctrl-C, in the main thread.

    Later SIGTERMs find the work ending already; a second Ctrl-C ends the process at once.
    """
    _stopping.clear()
    with _handling({signal.SIGTERM: _terminate, signal.SIGINT: _interrupt}):
        yield


def stopping() -> bool:
    """Whether a signal has begun to end the work of `terminable`."""
    return _stopping.is_set()


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _stopping.set()
    raise TerminatedError


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _leave)
    _stopping.set()
    if os.isatty(2):  # erased by the line that says how it ended
        os.write(2, f"{_ERASE}stopping (Ctrl-C again ends at once)".encode())
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    """End this process at once; its children are bound to its life, and what was committed is whole."""
    if os.isatty(2):
        os.write(2, f"{_ERASE}{_SHOW_CURSOR}".encode())
    os.write(2, b"hyco: ended at once by a second Ctrl-C\n")
    os._exit(130)


def told(error: BaseException, quiet: bool = False) -> int:
    """Say on stderr (unless `quiet`) that a command was stopped; return its exit code, 0 after SIGTERM, else 130.

    From then on a further Ctrl-C ends the process at once, without a traceback from its exit handlers.
    """
    if stopping() and os.isatty(2):
        os.write(2, _ERASE.encode())
    if not quiet:
        print(f"{TOLD}{f' {error}' if str(error) else ''}{_REMEDY}", file=sys.stderr, flush=True)
    if threading.current_thread() is threading.main_thread() and stopping():
        signal.signal(signal.SIGINT, _leave)
    return 0 if isinstance(error, TerminatedError | StoppedError) else 130


def where(line: str) -> str | None:
    """The position in a line that reports a stop ("at step 13 of 20"); None for any other line."""
    return line.removeprefix(TOLD).removesuffix(_REMEDY).strip() if line.startswith(TOLD) else None


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, _Handler]) -> Iterator[None]:
    """Install handlers where the interpreter's own or `terminable`'s are in place, and put those back."""
    known = (signal.SIG_DFL, signal.default_int_handler, _terminate, _interrupt)
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
