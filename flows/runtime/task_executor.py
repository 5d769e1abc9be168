"""An executor whose calls are Prefect tasks: one task per shard, or per group of shards where there are many."""

import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from prefect import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from hyco.flows.reporting import artifacts
from hyco.flows.runtime.tasks import PASSING, shard, worker_count
from hyco.pipeline.runtime.executor import LOCAL, Executor, open_executor

MAX_TASKS = 500  # of one flow run: the server loses task runs when it gets thousands at once


@dataclass(slots=True)
class _Call:
    """One unit's work and its result."""

    path: str
    start: Callable[[], Future[Any]]
    outcome: Any = None
    ended: bool = False


@dataclass(slots=True)
class _Group:
    calls: list[_Call]
    task: Any = None

    def work(self) -> int:
        """Run the unfinished calls concurrently; raise the first error, a transient one before others."""
        started = [(call, call.start()) for call in self.calls if not call.ended]
        faults: list[Exception] = []
        for call, future in started:
            try:
                call.outcome, call.ended = future.result(), True
            except PASSING as error:  # retried with the task
                call.outcome = error
                faults.insert(0, error)
            except Exception as error:
                call.outcome, call.ended = error, True
        faults += [call.outcome for call in self.calls if call.ended and isinstance(call.outcome, Exception)]
        if faults:
            raise faults[0]
        return len(self.calls)


class _Later(Future[Any]):
    """The result of TaskExecutor.submit: requesting one result starts all submitted units."""

    def __init__(self, executor: "TaskExecutor", call: _Call) -> None:
        super().__init__()
        self.executor, self.call = executor, call

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the unit and return its record; raises the error of its work."""
        group = self.executor.begin(self.call)
        group.task.wait()
        if self.call.outcome is None:
            group.task.result()  # the task never ran: this raises the reason
        if isinstance(self.call.outcome, Exception):
            raise self.call.outcome
        return self.call.outcome


@dataclass(slots=True)
class TaskExecutor:
    """An executor whose calls are Prefect tasks on another engine, so that the UI shows shards.

    Only for use inside a flow. Up to MAX_TASKS units are one task each; more are distributed over that many tasks.
    """

    verb: str
    executor: Executor
    workers: int = field(init=False)
    _runner: ThreadPoolTaskRunner[Any] = field(init=False)
    _waiting: list[_Call] = field(default_factory=list)
    _groups: dict[int, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workers = self.executor.workers
        # A thread only waits for its shards. Not the flow's own runner: the engine is chosen when a flow runs.
        self._runner = ThreadPoolTaskRunner(max_workers=max(1, self.workers)).__enter__()

    def submit(
        self, function: Callable[..., Any], *args: Any, report: Callable[[Any], None] | None = None
    ) -> Future[Any]:
        """See Executor.submit; the first argument with a path is the unit and gives the task run its name."""
        unit = next(value for value in args if hasattr(value, "path"))
        call = _Call(unit.path, lambda: self.executor.submit(function, *args, report=report))
        self._waiting.append(call)
        return _Later(self, call)

    def begin(self, call: _Call) -> _Group:
        """Submit all waiting calls to Prefect and return the group that a call is in."""
        waiting, self._waiting = self._waiting, []
        size = max(1, math.ceil(len(waiting) / MAX_TASKS))
        for start in range(0, len(waiting), size):
            group = _Group(waiting[start : start + size])
            more = f" and {len(group.calls) - 1} more" if len(group.calls) > 1 else ""
            label = f"{self.verb} {group.calls[0].path}{more}"
            group.task = self._runner.submit(shard, {"label": label, "work": group.work})
            self._groups |= {id(member): group for member in group.calls}
        return self._groups[id(call)]

    def failed(self) -> dict[str, Exception]:
        """The errors of the failed units, by path."""
        calls = [call for group in {id(g): g for g in self._groups.values()}.values() for call in group.calls]
        return {call.path: call.outcome for call in calls if isinstance(call.outcome, Exception)}

    def close(self) -> None:
        """End the workers; failed units are listed in the log and in an artifact."""
        self.executor.close()
        self._runner.__exit__(None, None, None)
        if failed := self.failed():
            for path, error in failed.items():
                get_run_logger().error("%s of %s failed: %s", self.verb, path, error)
            artifacts.failed_units(self.verb, failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def task_engine(verb: str, engine: str = LOCAL, gpus: float | None = None) -> TaskExecutor:
    """Open an executor whose calls are tasks of the current flow run, see pipeline.runtime.executor.open_executor."""
    limit = float(os.environ.get("HYCO_SHARD_TIMEOUT_S", 7200))
    return TaskExecutor(verb, open_executor(worker_count(engine), timeout_s=limit, engine=engine, gpus=gpus))
