"""The Prefect task for shards, its retries, and the number of workers."""

import os
from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from hyco.pipeline.runtime.executor import WorkerDiedError, address_of

PASSING = (WorkerDiedError, ConnectionError, TimeoutError)  # a killed worker, a transient storage fault


def worker_count(engine: str) -> int | None:
    """Worker processes: HYCO_WORKERS, else one per core; on a cluster None, as many as it has room for.

    A property of the host, not of the run.
    """
    if given := os.environ.get("HYCO_WORKERS"):
        return int(given)
    return (os.cpu_count() or 1) if address_of(engine) is None else None


def _worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """Retry a killed worker or a transient storage fault, but not a damaged shard."""
    try:
        state.result()
    except PASSING:
        return True
    except Exception:
        return False
    return False


@task(
    name="shard",
    task_run_name="{label}",
    cache_policy=NO_CACHE,  # the manifest records the finished units
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=3),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_a_retry,
)
def shard(label: str, work: Callable[[], int]) -> int:
    """Some shards of one stage, done by an executor; idempotent, so a retry repeats only the missing ones."""
    return work()
