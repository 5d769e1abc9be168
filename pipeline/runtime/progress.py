"""Progress of a stage: a bar on a terminal, a plain line every ten seconds in a log, a dict for listeners."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

Listener = Callable[[dict[str, Any]], None]


class Progress:
    """Counts towards `total` and shows it. Thread-safe; a context manager.

    Args:
        total: how many there are, or None when it is unknown.
        label: what is being done, such as "mine".
        unit: what is counted, such as "images".
        listener: called with {"label", "unit", "done", "total", "rate", "seconds", "left", "finished",
            "stopped", "text"} at most every `every` seconds and once at the end; left and rate (per second) may be
            None. At the end either `finished` is true or, when an error or a person ended the work, `stopped`. Its
            errors do not stop the work.
        done: number done before this run; it counts towards the total, not towards the rate.
        stream: output stream; stderr by default.
        every: seconds between plain lines and between listener calls.
    """

    quiet: ClassVar[bool] = False
    """True shows nothing of any progress of this process (`hyco --quiet`); listeners hear of it all the same."""

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = "images",
        listener: Listener | None = None,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit, self.listener, self.every = total, label, unit, listener, every
        self.done = self._before = done
        self._stream = stream or sys.stderr
        self._clock = clock
        self._lock = threading.RLock()
        self._start = self._told = clock()
        self._finished = self._stopped = False
        self._bar = self._make_bar() if self._stream.isatty() and not self.quiet else None
        if self._bar:
            self._bar.start()

    def advance(self, count: int = 1) -> None:
        """Add `count` to what is done."""
        with self._lock:
            self.done += count
            if self._bar:
                self._bar.update(self._task, completed=self.done, note=self.state()["text"])
            if self._clock() - self._told >= self.every:
                self._tell()

    def expect(self, total: int) -> None:
        """Correct the total."""
        with self._lock:
            self.total = total
            if self._bar:
                self._bar.update(self._task, total=total)

    def state(self) -> dict[str, Any]:
        """Return the state in the form that the listener gets."""
        seconds = self._clock() - self._start
        fresh = self.done - self._before
        rate = fresh / seconds if fresh > 0 and seconds > 0 else None
        known = self.total is not None and rate is not None
        state = {
            "label": self.label,
            "unit": self.unit,
            "done": self.done,
            "total": self.total,
            "rate": rate,
            "seconds": seconds,
            "left": max(0, self.total - self.done) / rate
            if known and self.total is not None and rate
            else None,
            "finished": self._finished,
            "stopped": self._stopped,
        }
        return {**state, "text": _note(state)}

    def close(self, finished: bool = True) -> None:
        """Show the final count and stop; say "done" only if the work is `finished`."""
        with self._lock:
            if self._finished or self._stopped:
                return
            self._finished, self._stopped = finished, not finished
            if self._bar:
                self._bar.update(self._task, completed=self.done, note=self.state()["text"])
                self._bar.stop()
            self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(finished=error[0] is None)

    def _tell(self) -> None:
        self._told = self._clock()
        state = self.state()
        if not self._bar and not self.quiet:
            print(line(state), file=self._stream, flush=True)
        if self.listener:
            try:
                self.listener(state)
            except Exception as error:  # an artifact that cannot be written must not stop the work
                print(f"{self.label}: progress listener failed: {error}", file=self._stream, flush=True)

    def _make_bar(self) -> Bar:
        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self._stream),
        )
        self._task = bar.add_task(
            self.label, total=self.total, completed=self.done, note=self.state()["text"]
        )
        return bar


def line(state: dict[str, Any]) -> str:
    """Return a state as one line: "mine: 1,200/5,000 images, 61.3 images/s, 1 min 2 s left"."""
    return f"{state['label']}: {state['text']}"


def _note(state: dict[str, Any]) -> str:
    total = "" if state["total"] is None else f"/{state['total']:,}"
    parts = [f"{state['done']:,}{total} {state['unit']}"]
    if state["rate"] is not None:
        parts.append(f"{state['rate']:.1f} {state['unit']}/s")
    if state["finished"]:
        parts.append(f"done in {duration(state['seconds'])}")
    elif state["stopped"]:
        parts.append(f"stopped after {duration(state['seconds'])}")
    elif state["left"] is not None:
        parts.append(f"{duration(state['left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in words: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
