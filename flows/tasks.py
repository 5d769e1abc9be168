"""Shards as Prefect tasks: one task a shard, or a group of them where there are many, on an engine of this host."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.runtime import deployment
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows import artifacts
from pipeline.engine import Engine, WorkerDiedError, open_engine

MAX_TASKS = 500  # of one flow run: the server loses task runs when thousands come at once
PASSING = (WorkerDiedError, ConnectionError, TimeoutError)  # a killed worker, a passing fault of storage
GPU_LIMIT, CPU_LIMIT = "hyco-gpu", "hyco-train-cpu"
LEASE_S = 60.0  # how long a dead holder keeps its slot


def worker_count() -> int:
    """Worker processes on this host: HYCO_WORKERS, else the number of cores. A fact of the host, not of the run."""
    return int(os.environ.get("HYCO_WORKERS", os.cpu_count() or 1))


def task_runner() -> TaskRunner[PrefectFuture[Any]]:
    """One thread for each worker process: a thread only waits for its shard."""
    return ThreadPoolTaskRunner(max_workers=max(1, worker_count()))  # type: ignore[return-value]


@contextlib.contextmanager
def slot(gpu_only: bool = False) -> Iterator[None]:
    """Wait for the slot of this host's GPU, or for that of training on a CPU, and hold it.

    Only a deployed run waits: a flow that a person starts in a terminal is that person's decision. A process that
    dies gives its slot back when the lease runs out.
    """
    name = GPU_LIMIT if torch.cuda.is_available() else CPU_LIMIT
    if deployment.id is None or (gpu_only and name != GPU_LIMIT):
        yield
        return
    with concurrency(name, lease_duration=LEASE_S):
        yield


def _worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """A killed worker or a passing fault of storage is; a shard that is not what it claims to be is not."""
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
    cache_policy=NO_CACHE,  # the manifest says what is done
    persist_result=False,
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=3),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_a_retry,
)
def shard(label: str, work: Callable[[], int]) -> int:
    """Some shards of one stage, done by an engine; idempotent, so a retry repeats only what is missing."""
    return work()


@dataclass(slots=True)
class _Call:
    """One unit's work, and what became of it."""

    path: str
    start: Callable[[], Future[Any]]
    outcome: Any = None
    ended: bool = False


@dataclass(slots=True)
class _Group:
    calls: list[_Call]
    task: Any = None

    def work(self) -> int:
        """Do the calls that have not ended, all at once; raise the first fault, a passing one before others."""
        started = [(call, call.start()) for call in self.calls if not call.ended]
        faults: list[Exception] = []
        for call, future in started:
            try:
                call.outcome, call.ended = future.result(), True
            except PASSING as error:  # tried again with the task
                call.outcome = error
                faults.insert(0, error)
            except Exception as error:
                call.outcome, call.ended = error, True
        faults += [call.outcome for call in self.calls if call.ended and isinstance(call.outcome, Exception)]
        if faults:
            raise faults[0]
        return len(self.calls)


class _Later(Future[Any]):
    """What TaskEngine.submit returns: asking for the result begins the work of all that were submitted."""

    def __init__(self, engine: "TaskEngine", call: _Call) -> None:
        super().__init__()
        self.engine, self.call = engine, call

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the unit and return its record; raises what its work raised."""
        group = self.engine.begin(self.call)
        group.task.wait()
        if self.call.outcome is None:
            group.task.result()  # the task never ran: this says why
        if isinstance(self.call.outcome, Exception):
            raise self.call.outcome
        return self.call.outcome


@dataclass(slots=True)
class TaskEngine:
    """An engine whose calls are Prefect tasks on another engine, so that shards are seen in the UI.

    Only to be used inside a flow. Up to MAX_TASKS units are a task each; more are shared out among so many tasks.
    """

    verb: str
    engine: Engine
    workers: int = field(init=False)
    _waiting: list[_Call] = field(default_factory=list)
    _groups: dict[int, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workers = self.engine.workers

    def submit(
        self, function: Callable[..., Any], *args: Any, report: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """See Engine.submit; the last argument is the unit, whose path names the task run."""
        call = _Call(args[-1].path, lambda: self.engine.submit(function, *args, report=report))
        self._waiting.append(call)
        return _Later(self, call)

    def begin(self, call: _Call) -> _Group:
        """Hand all that waits to Prefect and return the group that a call is in."""
        waiting, self._waiting = self._waiting, []
        size = max(1, math.ceil(len(waiting) / MAX_TASKS))
        for start in range(0, len(waiting), size):
            group = _Group(waiting[start : start + size])
            more = f" and {len(group.calls) - 1} more" if len(group.calls) > 1 else ""
            group.task = shard.submit(f"{self.verb} {group.calls[0].path}{more}", group.work)
            self._groups |= {id(member): group for member in group.calls}
        return self._groups[id(call)]

    def failed(self) -> dict[str, Exception]:
        """The faults of the units that failed, by the path of the unit."""
        calls = [call for group in {id(g): g for g in self._groups.values()}.values() for call in group.calls]
        return {call.path: call.outcome for call in calls if isinstance(call.outcome, Exception)}

    def close(self) -> None:
        """End the workers; units that failed are named in the log and in an artifact."""
        self.engine.close()
        if failed := self.failed():
            for path, error in failed.items():
                get_run_logger().error("%s of %s failed: %s", self.verb, path, error)
            artifacts.failed_units(self.verb, failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def task_engine(verb: str) -> TaskEngine:
    """Open an engine of this host's workers whose calls are tasks of the current flow run."""
    return TaskEngine(
        verb, open_engine(worker_count(), timeout_s=float(os.environ.get("HYCO_SHARD_TIMEOUT_S", 7200)))
    )
