"""Executors: the same work in this process, in processes of this machine, or (later) on a cluster.

An executor runs importable functions with picklable arguments, one shard per call:

    with open_executor(workers=2) as executor:
        future = executor.submit(mine_shard, config, home, unit, report=bar.advance)
        record = future.result()

With `report`, the function gets a keyword `report` of its own; the values that it reports reach the caller's callback,
on a thread of the executor. tests/pipeline/runtime/test_executor.py tests what every engine must do.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, Self

from pipeline.runtime.local_executor import InProcess, LocalExecutor, WorkerDiedError

__all__ = ["Executor", "InProcess", "LocalExecutor", "WorkerDiedError", "open_executor"]


class Executor(Protocol):
    """The interface of an executor. `workers` is the number of concurrent calls."""

    workers: int

    def submit(
        self, function: Callable[..., Any], *args: Any, report: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """Call function(*args) on a worker, from any thread; exceptions come out of the future.

        Raises WorkerDiedError from the future when the worker was killed while it worked.
        """
        ...

    def close(self) -> None:
        """Stop: calls that have not begun are cancelled, workers end, running calls with them."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def open_executor(workers: int, threads: int | None = None, timeout_s: float | None = None) -> Executor:
    """Return an executor of `workers` processes; 0 works in this process.

    Args:
        workers: processes; each loads its own models.
        threads: CPU threads of each; by default the machine's cores divided by the workers.
        timeout_s: a process that takes longer for one call is killed (WorkerDiedError); None sets no limit.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}: give 0 (this process) or more")
    if workers == 0:
        return InProcess()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return LocalExecutor(workers, threads or max(1, cores // workers), timeout_s=timeout_s)
