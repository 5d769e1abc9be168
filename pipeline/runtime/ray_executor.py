"""Work in actors of a Ray cluster: started where there is room, reused, replaced when they or their nodes die.

An actor does one call at a time and keeps what it has loaded (a grounder). Ray restarts and repeats nothing here: the
caller is told that a worker died and decides, as with processes of this machine. What a call commits is visible once,
however often the call runs, see storage.manifest.

Every node needs this package, and the home and the source under the same paths or URLs. Actors work in the directory
of the command, where it exists. What is sent between nodes is pickled by Ray: its ports belong into a private network.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hyco.pipeline.runtime import served
from hyco.pipeline.runtime.calls import Answer, Report, WorkerDiedError, answer, environment, name_of
from hyco.pipeline.runtime.ray_cluster import connect, disconnect, gpus_of, room, told

LOOK_S = 0.5  # how often the reports of a running call are fetched
REPORTS = 1000  # reports that an actor holds; a call that makes more of them waits until they are fetched
ROOM_S = 60.0  # how often a command without any worker says that it waits


class RayWorker:
    """The actor: one thread does a call while another gives its reports away."""

    def __init__(self, directory: str, servers: list[Any], limit_s: float | None) -> None:
        if Path(directory).is_dir():
            os.chdir(directory)
        served.use(servers, limit_s)
        self._reports: queue.Queue[Any] = queue.Queue(REPORTS)

    def place(self) -> str:
        """Return where this is, for messages."""
        import ray

        return f"worker {os.getpid()} on {ray.util.get_node_ip_address()}"

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], reports: bool
    ) -> tuple[Answer, list[Any]]:
        """Do a call and return its answer, and the reports that were not fetched."""
        more = {"report": self._reports.put} if reports else {}
        return answer(lambda: function(*args, **more)), self.fetch()

    def fetch(self) -> list[Any]:
        """Return the reports since the last time, in order."""
        return [self._reports.get_nowait() for _ in range(self._reports.qsize())]


@dataclass(slots=True)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    name: str
    future: Future[Any]
    report: Report | None


@dataclass(slots=True)
class _Worker:
    actor: Any
    place: str
    used: float  # when it last answered


class _ClosedError(Exception):
    """The executor was closed: the threads end."""


class RayExecutor:
    """Up to `workers` actors, fewer while the cluster has no room for them.

    Args:
        address: HOST:PORT of the cluster; "" for the one that this machine is a node of, or RAY_ADDRESS.
        workers: at least 1; None takes as many as the cluster has room for.
        threads: CPU cores that each reserves, for torch, BLAS and OpenMP.
        gpus: GPUs that each server reserves, and without servers each worker; a fraction to share one. None takes one
            where the cluster has any.
        restarts: maximum number of dead actors that are replaced; by default 8 for each worker.
        timeout_s: an actor that takes longer for one call is killed, a server after half of it; None sets no limit.
        servers: further actors, to which the workers send what needs a GPU (pipeline.runtime.served). None takes as
            many as the cluster has GPUs for, none where it has no GPU.

    Raises:
        ValueError: no cluster answers, or none of its nodes has these CPUs and GPUs; with the remedy.
    """

    def __init__(
        self,
        address: str = "",
        workers: int | None = None,
        threads: int = 1,
        gpus: float | None = None,
        restarts: int | None = None,
        timeout_s: float | None = None,
        servers: int | None = None,
    ) -> None:
        if (workers is not None and workers < 1) or threads < 1 or (gpus or 0) < 0 or (servers or 0) < 0:
            raise ValueError(
                f"workers is {workers}, threads {threads}, gpus {gpus} and servers {servers}: "
                "give at least 1, 1, 0 and 0"
            )
        self._ray = connect(address)
        try:
            each = gpus_of(self._ray) if gpus is None else gpus
            if each and servers != 0:
                most = room(self._ray, 0, each)
                servers = most if servers is None else min(servers, most)
            self.gpus = 0.0 if servers else each  # of a worker
            fits = room(self._ray, threads, self.gpus)
        except ValueError:
            disconnect()
            raise
        self.workers, self.threads, self.timeout_s = workers or fits, threads, timeout_s
        self.restarts = 8 * self.workers if restarts is None else restarts
        self._class = self._ray.remote(RayWorker)
        self.servers = [self._start_server(number, each) for number in range(servers or 0)]
        self._waiting: deque[_Call] = deque()
        self._actors: dict[Any, bool] = {}  # whether each has answered
        self._change = threading.Condition()
        self._closed, self._connected = False, True
        self._failure: Exception | None = None
        self._said = time.monotonic()
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"hyco-ray-{number}", daemon=True)
            for number in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *args: Any, report: Report | None = None) -> Future[Any]:
        """See Executor.submit. The function must be importable by name (ValueError)."""
        call = _Call(function, args, name_of(function, args), Future(), report)
        with self._change:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._waiting.append(call)
            self._change.notify()
        return call.future

    def close(self) -> None:
        """See Executor.close."""
        self._end(None)
        for thread in self._threads:
            thread.join()
        self._end_servers()
        with self._change:
            connected, self._connected = self._connected, False
        if connected:
            disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _end(self, failure: Exception | None) -> None:
        """Stop all work; calls that wait are cancelled, or get the failure."""
        with self._change:
            if self._closed:
                return
            self._closed, self._failure = True, failure
            waiting, self._waiting = self._waiting, deque()
            self._change.notify_all()
        for actor in list(self._actors):  # busy ones too: their commit is atomic
            self._kill(actor)
        for call in waiting:
            if failure is None:
                call.future.cancel()
            elif call.future.set_running_or_notify_cancel():
                call.future.set_exception(failure)

    def _serve(self, number: int) -> None:
        """Work on calls with one actor at a time until the executor is closed."""
        worker: _Worker | None = None
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._closed or self._waiting)
                try:
                    worker = self._ready(number, worker)
                    if (call := self._take()) is not None:
                        self._perform(worker, call)
                except WorkerDiedError as died:
                    if worker is not None:
                        self._kill(worker.actor)
                    worker = None
                    self._count(died)
        except _ClosedError:
            pass
        except Exception as failure:  # must not leave callers waiting forever
            self._end(failure)

    def _take(self) -> _Call | None:
        """The next call, unless another thread was faster or its future was cancelled."""
        with self._change:
            call = self._waiting.popleft() if self._waiting else None
        return call if call and call.future.set_running_or_notify_cancel() else None

    def _count(self, died: WorkerDiedError) -> None:
        with self._change:
            if self._closed:
                raise _ClosedError
            self.restarts -= 1
            none_left = self.restarts < 0
        if none_left:
            raise WorkerDiedError(f"{died}, and no restart is left: use fewer workers") from died

    def _ready(self, number: int, worker: _Worker | None) -> _Worker:
        """An actor that lives: this one, or a new one as soon as the cluster has room for it."""
        if worker and time.monotonic() - worker.used < LOOK_S and not self._closed:
            return worker
        actor = worker.actor if worker else self._start(number)  # after a rest its node may be gone
        place = actor.place.remote()
        while not self._closed:
            try:
                found = self._ray.get(place, timeout=LOOK_S)
                self._actors[actor] = True
                return _Worker(actor, found, time.monotonic())
            except self._ray.exceptions.GetTimeoutError:
                self._say_waiting()
            except self._ray.exceptions.RayError as error:
                self._kill(actor)
                if not self._closed:
                    raise WorkerDiedError(f"a worker died before it had a call: {told(error)}") from None
        raise _ClosedError

    def _start(self, number: int) -> Any:
        options: dict[str, Any] = {
            "num_cpus": self.threads,
            "num_gpus": self.gpus,
            "max_concurrency": 2,  # a call, and fetch
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment(self.threads, number)},
        }
        with self._change:
            if self._closed:
                raise _ClosedError
            limit_s = self.timeout_s and self.timeout_s / 2
            actor = self._class.options(**options).remote(str(Path.cwd()), self.servers, limit_s)
            self._actors[actor] = False
        return actor

    def _start_server(self, number: int, gpus: float) -> Any:
        """Start an actor that Ray restarts; it reserves no CPU, so that workers never keep it from starting again."""
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": gpus,
            "max_restarts": 8,
            "max_task_retries": 0,  # served decides what is sent again
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment(self.threads, number)},
        }
        kind = self._ray.remote(concurrency_groups={served.QUICK: 1})(served.Server)
        return kind.options(**options).remote()

    def usage(self) -> list[tuple[float, float, int]]:
        """Return seconds in calls, seconds since the first began, and calls, of each server that answers."""
        asked = [one.usage.options(concurrency_group=served.QUICK).remote() for one in self.servers]
        told = self._ray.wait(asked, num_returns=len(asked), timeout=LOOK_S)[0] if asked else []
        found = []
        for one in told:
            with contextlib.suppress(self._ray.exceptions.RayError):
                found.append(self._ray.get(one))
        return found

    def _end_servers(self) -> None:
        """Say how busy the servers were, and end them."""
        used = [one for one in self.usage() if one[1]]
        if used:
            busy = sum(one[0] for one in used) / sum(one[1] for one in used)
            print(f"hyco: {len(used)} grounders worked {busy:.0%} of the time", file=sys.stderr, flush=True)
        for actor in self.servers:
            self._kill(actor)
        self.servers = []

    def _kill(self, actor: Any) -> None:
        with self._change:
            self._actors.pop(actor, None)
        with contextlib.suppress(Exception):  # it is dead already, or its cluster is
            self._ray.kill(actor, no_restart=True)

    def _perform(self, worker: _Worker, call: _Call) -> None:
        """Do one call and settle its future; WorkerDiedError when its actor died."""
        try:
            kind, value = self._answer(worker, call)
        except WorkerDiedError as error:
            closed = RuntimeError("the executor was closed before the call had ended")
            call.future.set_exception((self._failure or closed) if self._closed else error)
            raise
        except Exception as error:  # its arguments cannot be sent
            call.future.set_exception(error)
            return
        worker.used = time.monotonic()
        if kind == "result":
            call.future.set_result(value)
        else:
            call.future.set_exception(value)

    def _answer(self, worker: _Worker, call: _Call) -> Answer:
        """What the function returned or raised; its reports reach the callback first."""
        begun, fetched, errors = time.monotonic(), None, self._ray.exceptions
        running, wait_s = worker.actor.run.remote(call.function, call.args, call.report is not None), LOOK_S
        while True:
            left = begun + self.timeout_s - time.monotonic() if self.timeout_s else wait_s
            try:
                found, rest = self._ray.get(running, timeout=max(0.0, min(wait_s, left)))
                break
            except errors.GetTimeoutError:
                if self.timeout_s and time.monotonic() - begun >= self.timeout_s:
                    how = f"was killed (longer than {self.timeout_s:g} s)"
                    raise WorkerDiedError(f"{worker.place} {how} in {call.name}") from None
                if call.report:
                    passed = 0 if fetched is None else self._pass_on(call.report, fetched, 0.0)
                    if passed is not None:
                        fetched = worker.actor.fetch.remote()
                        wait_s = LOOK_S if passed < REPORTS else 0.01  # the call may wait for this
            except errors.RayError as error:
                raise WorkerDiedError(f"{worker.place} died in {call.name}: {told(error)}") from None
        if call.report:
            if fetched is not None:
                self._pass_on(call.report, fetched, LOOK_S)
            _each(call.report, rest)
        return found

    def _pass_on(self, report: Report, fetched: Any, timeout_s: float) -> int | None:
        """Pass fetched reports to the callback and return how many; None when they have not come yet."""
        try:
            return _each(report, self._ray.get(fetched, timeout=timeout_s))
        except self._ray.exceptions.GetTimeoutError:
            return None
        except self._ray.exceptions.RayError:  # the call itself tells how its actor ended
            return 0

    def _say_waiting(self) -> None:
        """Say once a minute that no node has room for a worker while none works."""
        with self._change:
            if any(self._actors.values()) or time.monotonic() - self._said < ROOM_S:
                return
            self._said = time.monotonic()
        free = self._ray.available_resources()
        least = f"{self.threads} CPUs and {self.gpus:g} GPUs"
        there = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
        print(f"hyco: waiting for a Ray node with {least} ({there})", file=sys.stderr, flush=True)


def _each(report: Report, values: list[Any]) -> int:
    for value in values:
        with contextlib.suppress(Exception):  # a faulty progress bar must not stop the work
            report(value)
    return len(values)
