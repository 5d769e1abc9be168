"""The server of `hyco ui`: a read before a write never fails on SQLite, and what needs no action is a count."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.orchestration import core_policy
from sqlalchemy.exc import OperationalError

from hyco.flows.runtime.server_app import Counted, OwnServerOnly, begin_immediate, harmless


async def two_writers(database: Path) -> list[str]:
    """Two transactions that read, then write, begun at the same time; the faults of both."""
    config = AioSqliteConfiguration(f"sqlite+aiosqlite:///{database}")
    engine = await config.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE t (n INTEGER)"))

    async def write(number: int) -> str:
        session = await config.session(engine)
        try:
            async with session, config.begin_transaction(session):
                await session.execute(sa.text("SELECT count(*) FROM t"))
                await asyncio.sleep(0.2)  # as long as the other takes to read too
                await session.execute(sa.text(f"INSERT INTO t VALUES ({number})"))
        except OperationalError as error:
            return str(error.orig)
        return ""

    faults = await asyncio.gather(write(1), write(2))
    await engine.dispose()
    return list(faults)


def test_prefect_fails_a_write_after_a_read_and_we_do_not(tmp_path, monkeypatch):
    assert "database is locked" in asyncio.run(two_writers(tmp_path / "stock.db")), (
        "Prefect begins transactions that write IMMEDIATE by itself: begin_immediate can go"
    )
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", begin_immediate)
    assert asyncio.run(two_writers(tmp_path / "ours.db")) == ["", ""]


LOCKED = OperationalError("INSERT", {}, Exception("database is locked"))


def record(text: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("prefect.server", logging.ERROR, __file__, 1, text, (), info)


@pytest.mark.parametrize(
    ("text", "error", "shown"),
    [
        ("Error flushing 1 events (1 to retry, 0 dropped)", LOCKED, False),
        ("Error flushing 3 events (1 to retry, 2 dropped)", LOCKED, True),
        ("Dropping event 7 after 6 failed attempts", None, True),
        ("Action failed: 'Failed to set state: Run is already in terminal state COMPLETED.'", None, False),
        ("Action failed: 'Webhook call failed'", None, True),
        ("Error flushing 1 events (1 to retry, 0 dropped)", RuntimeError("disk full"), True),
    ],
)
def test_only_what_prefect_repeats_or_has_done_already_is_counted(text, error, shown):
    assert (harmless(record(text, error)) is None) == shown


def test_a_hundred_of_them_are_one_line(capsys):
    counted = Counted(every=3600)
    assert not any(counted.filter(record("Error flushing", LOCKED)) for _ in range(100))
    assert counted.filter(record("something else"))
    assert capsys.readouterr().err == ""
    counted.tell()
    counted.tell()
    said = capsys.readouterr().err
    assert said == "hyco ui: in the last 0 min: 100 x SQLite was busy and Prefect tried again\n"
    counted.every = 0
    assert not counted.filter(record("Error flushing", LOCKED))
    assert "1 x SQLite was busy" in capsys.readouterr().err


def test_the_message_that_is_looked_for_is_that_of_the_installed_prefect():
    assert "already in terminal state" in Path(core_policy.__file__).read_text()


def test_the_filter_outlives_what_prefect_imports_later(tmp_path: Path) -> None:
    """A process of its own, because it configures logging."""
    script = (
        "import logging, sys\n"
        "from hyco.flows.runtime import server_app\n"
        "def run(self, sockets):\n"
        "    import prefect.main  # the server does so some time after it has begun\n"
        "    for name in ('prefect.server.events.actions', 'uvicorn.error'):\n"
        "        logging.getLogger(name).warning('Action failed: already in terminal state %s', name)\n"
        "        logging.getLogger(name).warning('worth a look: %s', name)\n"
        "server_app.Server.run = run\n"
        "server_app.main()\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = subprocess.run(
            [sys.executable, "-c", script, str(listening.fileno())],
            env={**own, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"},
            pass_fds=[listening.fileno()],
            capture_output=True,
            text=True,
            timeout=110,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stderr.splitlines()
    assert [line.split("worth a look: ")[-1] for line in said[:-1]] == [
        "prefect.server.events.actions",
        "uvicorn.error",
    ]
    assert said[-1] == "hyco ui: in the last 0 min: 2 x an automation found its run ended already"


@pytest.mark.parametrize(
    ("pages", "also"),
    [("", ""), ("https://pages.example.org/hyco/", " https://pages.example.org"), ("not an address", "")],
)
def test_images_come_from_this_machine_or_the_pages_of_the_home(pages: str, also: str) -> None:
    """Prefect's pages of blocks and events load the blocks' logos from a public host."""
    sent: list[dict] = []

    async def application(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(OwnServerOnly(application, 4200, pages)({"type": "http"}, None, send))
    ((name, policy),) = sent[0]["headers"]
    assert name == b"content-security-policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy.decode().split(";"))
    assert rules["img-src"] == f"'self' data: blob: http://127.0.0.1:* http://localhost:*{also}"
    assert "http://127.0.0.1:4200" in rules["connect-src"]
