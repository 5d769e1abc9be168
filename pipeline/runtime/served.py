"""Servers of a Ray cluster: processes that hold what is large, a detector on a GPU, and answer the workers' calls.

A worker does all of a unit but what it sends to a server, so while a server works on the images of one worker, the
others read, parse and decode the next ones. A server does one call at a time. Workers send calls, not units: what a
unit commits, and when it is tried again, is decided as without servers.

Ray restarts a server that dies. A call that the server had begun raises WorkerDiedError, as if the worker itself had
died of it, so that the unit that kills servers is the one that is named; a call that only waited is sent again.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hyco.pipeline.runtime.calls import WorkerDiedError, answer, name_of

LOOK_S = 30.0  # after so long without an answer a server is asked whether it lives
RESENT = 8  # how often a call is sent again that had not begun when its server died
QUICK = "quick"  # group of the calls that do not wait for others


class Server:
    """The actor: one thread does the calls, another the quick ones."""

    def __init__(self) -> None:
        self._busy, self._since, self._calls = 0.0, 0.0, 0

    def serve(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Yield None when the call begins, then its answer and the seconds that it took."""
        yield None
        began = time.monotonic()
        self._since = self._since or began
        found = answer(lambda: function(*args))
        took = time.monotonic() - began
        self._busy, self._calls = self._busy + took, self._calls + 1
        yield found, took

    def quick(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return the answer of a call that does not use the GPU."""
        return answer(lambda: function(*args))

    def usage(self) -> tuple[float, float, int]:
        """Return the seconds in calls, the seconds since the first began, and the number of calls."""
        return self._busy, time.monotonic() - self._since if self._since else 0.0, self._calls


@dataclass(slots=True)
class Servers:
    """The servers of this worker's executor.

    Attributes:
        actors: their handles; a dead one is removed.
        limit_s: a call that takes longer is ended with its server; None sets no limit.
        first: which one is asked first, so that workers spread over them.
        waited_s: seconds in which calls of this process waited for their turn, or for a server to start.
        served: whether there were any.
    """

    actors: list[Any] = field(default_factory=list)
    limit_s: float | None = None
    first: int = 0
    waited_s: float = 0.0
    served: bool = False


class _AwayError(Exception):
    """A server does not answer: another one is asked."""


_mine = Servers()


def use(actors: list[Any], limit_s: float | None) -> None:
    """Let the calls of this process go to these servers."""
    number = int(os.environ.get("HYCO_WORKER_NUMBER", "0"))
    _mine.actors, _mine.limit_s, _mine.first = list(actors), limit_s, number
    _mine.served = bool(actors)


def has_servers() -> bool:
    """Return whether this process is a worker with servers, dead or alive: it has no GPU of its own."""
    return _mine.served


def waited_s() -> float:
    """Return the seconds that calls of this process have waited for their turn."""
    return _mine.waited_s


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args) of a server, where it waits for its turn; exceptions are raised here.

    Raises:
        WorkerDiedError: the server died, or took longer than the limit, in the middle of this call; or none is left.
    """
    return _sent(function, args, _turn)


def quick_call(function: Callable[..., Any], *args: Any) -> Any:
    """Return function(*args) of a server at once, beside what it works on."""
    return _sent(function, args, _at_once)


def _sent(function: Callable[..., Any], args: tuple[Any, ...], ask: Callable[..., Any]) -> Any:
    """Send a call to one server after another until one has begun it."""
    ray: Any = importlib.import_module("ray")
    for _ in range(RESENT):
        if not _mine.actors:
            break
        actor = _mine.actors[_mine.first % len(_mine.actors)]
        try:
            kind, value = ask(ray, actor, function, args)
        except ray.exceptions.ActorDiedError:  # for good: Ray has restarted it often enough
            _mine.actors.remove(actor)
        except (ray.exceptions.RayActorError, _AwayError):
            _mine.first += 1
        else:
            if kind == "error":
                raise value
            return value
    raise WorkerDiedError(
        f"no server is left for {name_of(function, args)}: see Ray's logs for how they died"
    )


def _at_once(ray: Any, actor: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return ray.get(actor.quick.options(concurrency_group=QUICK).remote(function, args))


def _turn(ray: Any, actor: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    sent = time.monotonic()
    coming = actor.serve.options(num_returns="streaming").remote(function, args)
    _until_begun(ray, actor, coming)
    if _mine.limit_s and not ray.wait([coming], timeout=_mine.limit_s)[0]:
        with contextlib.suppress(Exception):
            ray.kill(actor, no_restart=False)
        what = f"a server was killed (longer than {_mine.limit_s:g} s) in {name_of(function, args)}"
        raise WorkerDiedError(what)
    try:
        found, took = ray.get(next(coming))
    except ray.exceptions.RayActorError as error:
        what = f"a server died in {name_of(function, args)}: {type(error).__name__}"
        raise WorkerDiedError(what) from None
    _mine.waited_s += max(0.0, time.monotonic() - sent - took)
    return found


def _until_begun(ray: Any, actor: Any, coming: Any) -> None:
    """Wait until a server begins a call; _AwayError when it does not live and another one may be asked."""
    while not ray.wait([coming], timeout=LOOK_S)[0]:
        asked = actor.usage.options(concurrency_group=QUICK).remote()
        if not ray.wait([asked], timeout=LOOK_S)[0] and len(_mine.actors) > 1:
            ray.cancel(coming)
            raise _AwayError
    ray.get(next(coming))
