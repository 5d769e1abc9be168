"""Executors: the same work in this process, in processes of this machine, or in actors of a Ray cluster.

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

from hyco.pipeline.config_fields import nearest
from hyco.pipeline.runtime.calls import WorkerDiedError
from hyco.pipeline.runtime.local_executor import InProcess, LocalExecutor

__all__ = ["Executor", "InProcess", "LocalExecutor", "WorkerDiedError", "address_of", "open_executor"]

LOCAL, RAY = "local", "ray"


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


def open_executor(
    workers: int | None,
    threads: int | None = None,
    timeout_s: float | None = None,
    engine: str = LOCAL,
    gpus: float | None = None,
    servers: int | None = None,
) -> Executor:
    """Return an executor of `workers` processes; 0 works in this process.

    Args:
        workers: processes; each loads its own models. None: one per core, or as many as a cluster has room for.
        threads: CPU threads of each; by default the machine's cores divided by the workers, 1 on a cluster.
        timeout_s: a process that takes longer for one call is killed (WorkerDiedError); None sets no limit.
        engine: "local" for this machine, "ray" or "ray:HOST:PORT" for a Ray cluster that runs.
        gpus: GPUs per server of a cluster, or per worker without servers; None takes one where it has any. Local
            workers share those there are.
        servers: processes of a cluster that hold a detector each for all workers; None takes one for each GPU.

    Raises:
        ValueError: numbers that do not fit each other or the engine, or a cluster that cannot be had.
    """
    address = address_of(engine)
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}: give 0 (this process) or more")
    if workers == 0 and address is not None:
        raise ValueError(f"workers is 0 and the engine {engine}: give workers of the cluster, or no engine")
    if servers and address is None:
        raise ValueError(
            f"grounders is {servers} and the engine {engine}: give --engine ray, or leave it out"
        )
    if workers == 0:
        return InProcess()
    if address is not None:
        from hyco.pipeline.runtime.ray_executor import RayExecutor

        return RayExecutor(address, workers, threads or 1, gpus, timeout_s=timeout_s, servers=servers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or cores
    return LocalExecutor(workers, threads or max(1, cores // workers), timeout_s=timeout_s)


def address_of(engine: str) -> str | None:
    """Return the address in the name of an engine, "" for the cluster of this machine, None for the local engine."""
    kind, _, address = engine.partition(":")
    if engine == LOCAL:
        return None
    if kind == RAY:
        return address
    raise ValueError(f"engine {engine!r}: give local, ray or ray:HOST:PORT{nearest(kind, (LOCAL, RAY))}")
