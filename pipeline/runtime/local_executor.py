"""Work in processes of this machine: started clean, reused, replaced when they die, ended with their parent.

Each worker has a pipe of its own. A shared queue would be simpler, but a worker killed while it holds the queue's lock
would block all others. One thread of the parent starts the workers and talks to them: on Linux a process dies with the
*thread* that started it (PR_SET_PDEATHSIG), so that thread must live as long as the executor.
"""

import contextlib
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from hyco.pipeline.runtime.calls import Report, WorkerDiedError, environment, name_of


class InProcess:
    """The engine without processes: a call has ended when `submit` returns."""

    workers = 0

    def submit(self, function: Callable[..., Any], *args: Any, report: Report | None = None) -> Future[Any]:
        """See Engine.submit."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*args, **({"report": report} if report else {})))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(slots=True)
class _Call:
    payload: bytes
    name: str
    future: Future[Any]
    report: Report | None
    begun: float = 0.0  # time at which a worker got it


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    call: _Call | None = None
    overdue: bool = False


class LocalExecutor:
    """`workers` processes with `threads` CPU threads each.

    Args:
        workers: at least 1.
        threads: for torch, BLAS and OpenMP in each worker.
        restarts: maximum number of dead workers that are replaced.
        timeout_s: a worker that takes longer for one call is killed; None sets no limit.
    """

    def __init__(
        self, workers: int, threads: int = 1, restarts: int = 8, timeout_s: float | None = None
    ) -> None:
        if workers < 1 or threads < 1:
            raise ValueError(f"workers is {workers} and threads {threads}: give at least 1 of each")
        self.workers, self.threads, self.restarts = workers, threads, restarts
        self.timeout_s = timeout_s
        self._waiting: deque[_Call] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._numbers = itertools.count()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="hyco-engine", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., Any], *args: Any, report: Report | None = None) -> Future[Any]:
        """See Engine.submit. The function must be importable by name and the arguments picklable (ValueError)."""
        name = name_of(function, args)
        call = _Call(pickle.dumps((function, args, report is not None)), name, Future(), report)
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._waiting.append(call)
        self._wakeup_writer.send(b"!")
        return call.future

    def close(self) -> None:
        """See Engine.close."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._wakeup_writer.send(b"!")
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        workers: list[_Worker] = []
        failure: Exception | None = None
        try:
            while not self._closed:
                self._give_work(workers)
                self._end_overdue(workers)
                for ready in wait(
                    [self._wakeup_reader, *(worker.pipe for worker in workers)], self._patience(workers)
                ):
                    if ready is self._wakeup_reader:
                        self._wakeup_reader.recv(4096)
                    else:
                        self._listen(workers, next(worker for worker in workers if worker.pipe is ready))
        except Exception as problem:  # a failure of the thread must not leave callers waiting forever
            failure = problem
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for worker in workers:
            _stop(worker)
            if worker.call:
                closed = RuntimeError("the executor was closed before the call had ended")
                worker.call.future.set_exception(failure or closed)
        for call in waiting:
            if failure is None:
                call.future.cancel()
            elif call.future.set_running_or_notify_cancel():
                call.future.set_exception(failure)

    def _patience(self, workers: list[_Worker]) -> float | None:
        """Seconds until the first running call is overdue; None when none can be."""
        begun = [worker.call.begun for worker in workers if worker.call and not worker.overdue]
        if self.timeout_s is None or not begun:
            return None
        return max(0.0, min(begun) + self.timeout_s - time.monotonic())

    def _end_overdue(self, workers: list[_Worker]) -> None:
        for worker in workers:
            if self.timeout_s and worker.call and not worker.overdue:
                worker.overdue = time.monotonic() - worker.call.begun >= self.timeout_s
                if worker.overdue:
                    worker.process.kill()  # its pipe will report this shortly

    def _give_work(self, workers: list[_Worker]) -> None:
        """Hand waiting calls to idle workers, starting workers up to the limit."""
        while True:
            idle = next((worker for worker in workers if worker.call is None), None)
            with self._lock:
                if not self._waiting or (idle is None and len(workers) >= self.workers):
                    return
                call = self._waiting.popleft()
            if not call.future.set_running_or_notify_cancel():
                continue
            if idle is None:
                idle = self._start()
                workers.append(idle)
            call.begun = time.monotonic()
            idle.call = call
            with contextlib.suppress(OSError):  # dead already: its pipe will report it
                idle.pipe.send_bytes(call.payload)

    def _listen(self, workers: list[_Worker], worker: _Worker) -> None:
        """Receive one message from a worker, or the end of its pipe."""
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._discard(workers, worker)
            return
        call = worker.call
        assert call is not None, f"worker {worker.process.pid} sent {kind} without a call"
        if kind == "report":
            if call.report:
                with contextlib.suppress(Exception):  # a faulty progress bar must not stop the work
                    call.report(value)
            return
        worker.call = None
        if kind == "result":
            call.future.set_result(value)
        else:
            call.future.set_exception(value)

    def _discard(self, workers: list[_Worker], worker: _Worker) -> None:
        workers.remove(worker)
        worker.pipe.close()
        code = worker.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        if worker.overdue:
            hint = f" (longer than {self.timeout_s:g} s)"
        if worker.call:
            worker.call.future.set_exception(
                WorkerDiedError(f"worker {worker.process.pid} {how}{hint} in {worker.call.name}")
            )
        if self.restarts == 0:
            raise WorkerDiedError(
                f"worker {worker.process.pid} {how}{hint} and no restart is left: use fewer workers"
            )
        self.restarts -= 1

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "hyco.pipeline.runtime.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment(self.threads, next(self._numbers) % self.workers)},
            )
        return _Worker(process, Connection(ours.detach()))


def _stop(worker: _Worker) -> None:
    """End a worker: an idle one exits when its pipe closes, a busy one is killed (its commit is atomic)."""
    worker.pipe.close()
    if worker.call is None:
        deadline = time.monotonic() + 5.0
        while worker.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    if worker.process.poll() is None:
        worker.process.kill()
    worker.process.wait()
