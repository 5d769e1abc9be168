"""What the flows share: how a shard becomes a task, and how progress becomes an artifact one can watch."""

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

# Prefect loses task runs when thousands are mapped at once (architecture.md, law 1); past this, a task takes several.
MAX_TASKS = 900
ARTIFACT_EVERY_S = 5.0


def worker_count() -> int:
    """Worker processes on this host: HYCO_WORKERS, else the number of cores. A fact of the host, not of the run."""
    return int(os.environ.get("HYCO_WORKERS", os.cpu_count() or 1))


def task_runner() -> ThreadPoolTaskRunner:
    """One thread for each worker process: a thread only waits for its shard."""
    return ThreadPoolTaskRunner(max_workers=max(1, worker_count()))


class ProgressArtifact:
    """A listener for `pipeline.progress.Progress` that keeps one Prefect progress artifact up to date.

    Called from any thread; writes at most once every ARTIFACT_EVERY_S seconds, and always at the end.
    """

    def __init__(self, key: str, description: str) -> None:
        self._id: UUID = create_progress_artifact(0.0, key=key, description=description)  # type: ignore[assignment]
        self._description = description
        self._lock = threading.Lock()
        self._last = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Take the state of a Progress: done, total, rate and seconds left."""
        with self._lock:
            finished = state["done"] >= state["total"]
            if not finished and time.monotonic() - self._last < ARTIFACT_EVERY_S:
                return
            self._last = time.monotonic()
            share = 100.0 * state["done"] / max(state["total"], 1)
            update_progress_artifact(self._id, share, f"{self._description}: {state['text']}")


@task(name="shards", task_run_name="{label}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 15])
def run_shards(label: str, work: Callable[[Any], dict[str, Any]], units: Sequence[Any]) -> list[dict[str, Any]]:
    """Do the shards of one task, in order; each is idempotent, so a retry repeats only what is missing."""
    return [work(unit) for unit in units]


def map_shards(verb: str, work: Callable[[Any], dict[str, Any]], units: Sequence[Any]) -> list[dict[str, Any]]:
    """Run `work` once for each unit, a task for each (or for a few, past MAX_TASKS), and return their records.

    A failed shard does not stop the others; the first failure is raised when all have ended.
    """
    size = max(1, math.ceil(len(units) / MAX_TASKS))
    futures = []
    for group in (units[i : i + size] for i in range(0, len(units), size)):
        label = f"{verb} {group[0].name}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
        futures.append(run_shards.submit(label, work, group))
    wait(futures)
    return [record for future in futures for record in future.result()]
