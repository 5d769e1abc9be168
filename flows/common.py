"""What the flows share: a shard becomes a task, and progress becomes an artifact one can watch."""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.engine import Engine, WorkerDiedError, open_engine

ARTIFACT_EVERY_S = 5.0


def worker_count() -> int:
    """Worker processes on this host: HYCO_WORKERS, else the number of cores. A fact of the host, not of the run."""
    return int(os.environ.get("HYCO_WORKERS", os.cpu_count() or 1))


def task_runner() -> TaskRunner[PrefectFuture[Any]]:
    """One thread for each worker process: a thread only waits for its shard."""
    return ThreadPoolTaskRunner(max_workers=max(1, worker_count()))  # type: ignore[return-value]


def _worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """A killed worker or a passing fault of storage is; a shard that is not what it claims to be is not."""
    try:
        state.result()
    except (WorkerDiedError, ConnectionError, TimeoutError):
        return True
    except Exception:
        return False
    return False


@task(
    name="shard",
    task_run_name="{label}",
    cache_policy=NO_CACHE,  # the manifest says what is done
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 15],
    retry_condition_fn=_worth_a_retry,
)
def shard(label: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One shard of one stage, done by an engine; it is idempotent, so a retry repeats only what is missing."""
    return work()


class TaskEngine:
    """An engine that runs each call as a Prefect task on another engine, so that a shard is seen in the UI.

    Only to be used inside a flow. What `submit` returns has `result()`, as the stages need it.
    """

    def __init__(self, verb: str, engine: Engine) -> None:
        self.verb, self.engine, self.workers = verb, engine, engine.workers

    def submit(
        self, function: Callable[..., Any], *args: Any, report: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """See Engine.submit; the last argument is the unit, whose path names the task run."""

        def work() -> dict[str, Any]:
            return self.engine.submit(function, *args, report=report).result()

        return shard.submit(f"{self.verb} {args[-1].path}", work)  # type: ignore[return-value]

    def close(self) -> None:
        """End the workers."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def task_engine(verb: str) -> TaskEngine:
    """Open an engine of this host's workers whose calls are tasks of the current flow run."""
    return TaskEngine(verb, open_engine(worker_count()))


def without_traceback(record: logging.LogRecord) -> bool:
    """A filter for the terminal: no records that carry a traceback; a line with the error's text follows them."""
    return not record.exc_info


def quiet_terminal() -> None:
    """Keep tracebacks out of the terminal (the Prefect UI has them), so that a user's mistake stays one line."""
    setup_logging()  # Prefect does this at the first flow run; the second time it keeps the handlers
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(without_traceback)


class ProgressArtifact:
    """A listener for `pipeline.progress.Progress` that keeps one Prefect progress artifact up to date.

    Called from any thread; writes at most once every ARTIFACT_EVERY_S seconds, and always at the end.
    """

    def __init__(self, key: str, label: str) -> None:
        created = create_progress_artifact(0.0, key=key, description=label)
        assert isinstance(created, UUID)
        self._id, self._label = created, label
        self._lock = threading.Lock()
        self._last = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Take the state of a Progress."""
        with self._lock:
            if not state["finished"] and time.monotonic() - self._last < ARTIFACT_EVERY_S:
                return
            self._last = time.monotonic()
            share = (
                100.0
                if state["finished"]
                else 100.0 * state["done"] / max(state["total"] or 0, state["done"], 1)
            )
            update_progress_artifact(self._id, progress=share, description=f"{self._label}: {state['text']}")
