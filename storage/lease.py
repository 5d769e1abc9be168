"""The right to write a folder of a remote home: one process at a time, on whichever machine it runs.

lease/000000001.json ... are created if absent, like the rows of the registry; the holder of the highest number has the
folder and replaces its file every BEAT_S seconds. A process that finds a holder on another machine waits: a file that
stays the same for PATIENCE_S seconds has lost its holder, and the next number is free. A holder that was taken for dead
finds the higher number before it writes anything more (`check`). Clocks are not compared.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from hyco.storage.store import Store

BEAT_S = 10.0
PATIENCE_S = 45.0
_FOLDER = "lease"


class Lease:
    """The lease of one folder; a context manager that takes it and gives it back.

    Args:
        store: the files of the folder.
        place: identifies this machine's working copy. Its processes exclude each other by a lock of the file system,
            so a lease that was taken from here has lost its holder.
        tell: gets a line when there is a wait, by default printed to stderr.

    Raises:
        ValueError: on entering, when another process holds it; by `check`, when another process took it.
    """

    def __init__(self, store: Store, place: str, tell: Callable[[str], object] | None = None) -> None:
        self.store, self.place, self.tell = store, place, tell or _to_stderr
        self.number = 0
        self._mine = {
            "holder": uuid.uuid4().hex, "place": place, "host": platform.node(), "pid": os.getpid()
        }  # fmt: skip
        self._ended = threading.Event()

    def __enter__(self) -> "Lease":
        while True:
            number, held = self._newest()
            if held and not held.get("released") and held.get("place") != self.place:
                self._wait(number, held)
            if self._create(number + 1):
                break
        for older in self._numbers()[:-1]:
            self.store.delete(_path(older))
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beating.join()
        with contextlib.suppress(OSError, ValueError):  # the next holder waits a little longer then
            self.check()
            self._write(released=True)

    def check(self) -> None:
        """Raise ValueError when another process has taken the lease, so that this one must not write any more."""
        if (there := self._numbers()) and there[-1] > self.number:
            _, taken = self._newest()
            raise ValueError(
                f"{self.store.url} was taken over by {_named(taken)}, as nothing was heard from this process for "
                f"{PATIENCE_S:g} s: it is being trained there"
            )

    def _create(self, number: int) -> bool:
        data = json.dumps({**self._mine, "beat": 0}).encode()
        # After an error a store may say that the file exists although this process created it.
        if not self.store.create(_path(number), data) and self._read(number) != json.loads(data):
            return False
        self.number = number
        return True

    def _wait(self, number: int, held: dict[str, Any]) -> None:
        """Return when the holder shows no sign of life for PATIENCE_S; ValueError as soon as it does."""
        self.tell(
            f"{self.store.url} was being trained by {_named(held)}: waiting up to {PATIENCE_S:g} s for it"
        )
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            time.sleep(min(1.0, PATIENCE_S / 10))
            now, there = self._newest()
            if (now, there) != (number, held):
                if there.get("released"):
                    return
                raise ValueError(
                    f"{self.store.url} is being trained by another process, {_named(there)}: wait for it, or end it "
                    "first"
                )

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_S):
            beat += 1
            with contextlib.suppress(OSError):  # the next beat may get through
                self._write(beat=beat)

    def _write(self, **more: Any) -> None:
        self.store.replace(_path(self.number), json.dumps({**self._mine, **more}).encode())

    def _newest(self) -> tuple[int, dict[str, Any]]:
        there = self._numbers()
        return (there[-1], self._read(there[-1])) if there else (0, {})

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(self.store.read_bytes(_path(number))))
        except (FileNotFoundError, ValueError, TypeError):  # removed meanwhile
            return {}

    def _numbers(self) -> list[int]:
        names = (path.rpartition("/")[2].removesuffix(".json") for path in self.store.list(_FOLDER))
        return sorted(int(name) for name in names if name.isdigit())


def _path(number: int) -> str:
    return f"{_FOLDER}/{number:09d}.json"


def _named(held: dict[str, Any]) -> str:
    return f"process {held.get('pid', '?')} on {held.get('host', 'another machine')}"


def _to_stderr(text: str) -> None:
    print(f"hyco: {text}", file=sys.stderr, flush=True)
