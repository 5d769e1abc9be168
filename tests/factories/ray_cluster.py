"""A Ray cluster on this machine: its nodes are processes, without dashboard, log monitor and telemetry."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the handler of SIGTERM back, which a node that is started takes for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


class RayCluster:
    """A head node and further ones; the head has no CPU for workers, so that any other node may be killed.

    Args:
        nodes: those that work.
        cpus: of each, as Ray counts them.
    """

    def __init__(self, nodes: int = 2, cpus: int = 4) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray._private.node import Node
        from ray.cluster_utils import Cluster

        with _own_sigterm(), pytest.MonkeyPatch.context() as patch:  # four processes less, and six seconds
            patch.setattr(Node, "start_api_server", lambda self, **options: None)
            patch.setattr(Node, "start_monitor", lambda self: None)
            self._cluster = Cluster(
                initialize_head=True, head_node_args={**_SMALL, "num_cpus": 0, "_system_config": _QUICK}
            )
        self.nodes: list[Any] = [self.add_node(cpus) for _ in range(nodes)]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return str(self._cluster.address)

    def add_node(self, cpus: int = 4) -> Any:
        """Start a node and return it."""
        with _own_sigterm():
            return self._cluster.add_node(**_SMALL, num_cpus=cpus)

    def kill_node(self, node: Any) -> None:
        """kill -9 of everything that belongs to a node at once, as when its power fails."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def close(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False}
_QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "worker_niceness": 0,  # its 15 would let a busy machine starve the workers
}


def kill(pid: int) -> None:
    """kill -9, whether or not it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is read
        return False


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return found
