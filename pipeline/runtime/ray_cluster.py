"""The connection of this process to a Ray cluster, and the room in it."""

import importlib
import logging
import os
import signal
import sys
import threading
from typing import Any

_MESSAGE = 300  # characters of Ray's own words in a message
_users = 0  # executors of this process that use the connection
_ours = False  # whether this module made it
_lock = threading.Lock()


def connect(address: str) -> Any:
    """Return the module ray, connected to a cluster that runs; ValueError with the remedy when there is none.

    Each call is followed by `disconnect`. Where the process is connected already, that connection is used.
    """
    global _users, _ours
    if "://" in address:
        raise ValueError(f"ray:{address}: give ray:HOST:PORT, and run this command on a node of the cluster")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("the engine ray needs another package: pip install 'hyco[ray]'") from None
    with _lock:
        if not ray.is_initialized():
            handler = signal.getsignal(signal.SIGTERM)
            try:
                # On stdout a command prints its result: the workers' output stays in Ray's logs, and Ray's reports of
                # dead workers, which no option turns off, are told by our own errors.
                inner: Any = importlib.import_module("ray._private.worker")
                inner.print_to_stdstream = _nothing
                ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"no Ray cluster answers at {address or 'this machine'} ({told(error)}): start one with "
                    "`ray start --head`, more nodes with `ray start --address HOST:PORT`, and run this on one of them"
                ) from None
            finally:  # ray takes SIGTERM, on which our commands end in order
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)
            _ours = True
        _users += 1
    return ray


def _nothing(*args: Any, **options: Any) -> None:
    """Print nothing."""


def disconnect() -> None:
    """Leave the cluster when nothing in this process uses it any longer, unless others made the connection."""
    global _users, _ours
    with _lock:
        _users -= 1
        if _users == 0 and _ours:
            import ray

            ray.shutdown()
            _ours = False


def gpus_of(ray: Any) -> float:
    """Return the GPUs that a worker with a detector reserves: one where the cluster has any."""
    return 1.0 if ray.cluster_resources().get("GPU") else 0.0


def room(ray: Any, threads: int, gpus: float) -> int:
    """Return how many workers the cluster can hold, or servers, of 0 threads; ValueError when no node can hold one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [int(node.get("CPU", 0) // threads) if threads else sys.maxsize for node in nodes]
    if gpus:
        fits = [
            min(fit, int(node.get("GPU", 0) / gpus + 1e-6)) for fit, node in zip(fits, nodes, strict=True)
        ]
    if not any(fits):
        held = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ValueError(
            f"no node of the Ray cluster has {threads} CPUs and {gpus:g} GPUs for a worker (nodes: {held}): "
            "add nodes, or give fewer with --gpus"
        )
    return sum(fits)


def told(error: BaseException) -> str:
    """Return what Ray's message says, in one line and without the ids."""
    lines = [line.strip() for line in str(error).splitlines()]
    ids = ("class_name:", "actor_id:", "namespace:", "pid:")
    return " ".join(line for line in lines if line and not line.startswith(ids))[:_MESSAGE]
