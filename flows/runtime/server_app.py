"""The process of `hyco ui`: Prefect's server on a given socket, with safe SQLite writes and a short log.

python -m hyco.flows.runtime.server_app FD   serves on the listening socket with that file descriptor

Prefect 3.8 begins most of its SQLite transactions DEFERRED: they read, then write. Where another connection has written
in between, SQLite refuses the write at once ("database is locked"), whatever timeout is set, and where two of them wait
for each other, both wait for the whole timeout of 60 s. Begun IMMEDIATE, a transaction waits for its turn before it
reads: docs/decisions.md has the measurement.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from prefect.server.api.server import create_app
from prefect.server.database.configurations import AioSqliteConfiguration

TOLD_EVERY_S = 600.0

_DEFERRED = AioSqliteConfiguration.begin_transaction


def begin_immediate(config: AioSqliteConfiguration, session: Any, with_for_update: bool = False) -> Any:
    """Begin every transaction as Prefect begins those that it knows to write after reading: IMMEDIATE."""
    return _DEFERRED(config, session, with_for_update=True)


class OwnServerOnly:
    """Forbids the pages of an application to load anything from, or send anything to, another server.

    Prefect's second UI (/v2) asks an analytics host on every page, and the pages of blocks and events load the logos of
    blocks from a public host. Images of artifacts come from the home's pages: on this machine, or at `pages`.
    """

    def __init__(self, application: Any, port: int, pages: str = "") -> None:
        self.application = application
        own = " ".join(
            f"{kind}://{name}:{port}" for kind in ("http", "ws") for name in ("127.0.0.1", "localhost")
        )
        code = "'self' 'unsafe-inline' 'unsafe-eval' blob:"
        elsewhere = urlsplit(pages)
        images = " ".join(
            ["'self' data: blob: http://127.0.0.1:* http://localhost:*"]
            + ([f"{elsewhere.scheme}://{elsewhere.netloc}"] if elsewhere.netloc else [])
        )
        policy = (
            f"connect-src 'self' {own}; script-src {code}; worker-src 'self' blob:; img-src {images}; "
            "frame-ancestors 'self'"
        )
        self.header = (b"content-security-policy", policy.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application; ASGI."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self.header]
            await send(message)

        await self.application(scope, receive, sending)


class Counted(logging.Filter):
    """Drops log records that need no action and prints how many there were, at most every `every` seconds.

    Two kinds: a write that SQLite refused and that Prefect repeats, and an automation that wanted to end a run that
    had ended already. The count is printed with the next of these messages, and at the end.
    """

    def __init__(self, every: float = TOLD_EVERY_S) -> None:
        super().__init__()
        self.every, self._told = every, time.monotonic()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be printed."""
        kind = harmless(record)
        if kind is None:
            return True
        with self._lock:
            self._counts[kind] += 1
            if time.monotonic() - self._told < self.every:
                return False
        self.tell()
        return False

    def tell(self) -> None:
        """Print the counts since they were printed last, in one line; nothing when there are none."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            minutes, self._told = (time.monotonic() - self._told) / 60, time.monotonic()
        if counts:
            text = ", ".join(f"{count} x {kind}" for kind, count in counts.items())
            print(f"hyco ui: in the last {minutes:.0f} min: {text}", file=sys.stderr, flush=True)


def harmless(record: logging.LogRecord) -> str | None:
    """What a record that needs no action tells of; None for any other."""
    text = record.getMessage()
    if ("dropped)" in text and " 0 dropped)" not in text) or text.startswith("Dropping event"):
        return None  # given up after every retry: a task run's state is missing in the UI
    if text.startswith("Action failed") and "terminal state" in text:
        return "an automation found its run ended already"
    error = record.exc_info[1] if record.exc_info else None
    if "database is locked" in text or "database is locked" in str(error):
        return "SQLite was busy and Prefect tried again"
    return None


class Server(uvicorn.Server):
    """Ends without a word when it is asked to: what Prefect's services log while they are cancelled helps nobody."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal, as uvicorn does."""
        logging.disable(logging.CRITICAL)
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    AioSqliteConfiguration.begin_transaction = begin_immediate  # type: ignore[method-assign]
    application = create_app()
    counted = Counted()
    for name in [None, *logging.root.manager.loggerDict]:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(counted)
    guarded = OwnServerOnly(application, listening.getsockname()[1], os.environ.get("HYCO_SERVE_URL", ""))
    # Prefect configures logging again whenever a module of it is first imported that does so. It keeps the handlers,
    # and with them the filter, as long as nobody has configured logging in between: uvicorn does, unless log_config is
    # None. Its loggers have Prefect's handlers without it.
    config = uvicorn.Config(
        guarded, timeout_keep_alive=5, timeout_graceful_shutdown=5, log_level="warning", log_config=None
    )
    server = Server(config)
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # uvicorn raises the signal again when the server has ended
        signal.signal(number, lambda number, frame: None)
    server.run(sockets=[listening])
    counted.tell()


if __name__ == "__main__":
    main()
