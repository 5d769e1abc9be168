"""One job at a time on a GPU, or one training on a host's CPUs: the global concurrency limits of `hyco deploy`.

A slot counts GPUs and names none. Where several jobs may run at once, each GPU has a worker of its own, shown that GPU
only and taking one run at a time: `CUDA_VISIBLE_DEVICES=1 hyco worker --pool gpu --limit 1`.
"""

import contextlib
from collections.abc import Iterator

import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

GPU_LIMIT, CPU_LIMIT = "hyco-gpu", "hyco-train-cpu"
LEASE_S = 60.0  # how long a dead holder keeps its slot


@contextlib.contextmanager
def slot(gpu_only: bool = False, gpus: int = 1) -> Iterator[None]:
    """Wait for the slots of so many GPUs, or for the one of training on a CPU, and hold them.

    Only a deployed run waits: a flow that a person starts in a terminal is that person's decision. A process that
    dies gives its slots back when the lease runs out.

    Args:
        gpu_only: hold nothing where there is no GPU.
        gpus: how many; all slots where the limit has fewer.
    """
    name = GPU_LIMIT if torch.cuda.is_available() else CPU_LIMIT
    if deployment.id is None or (gpu_only and name != GPU_LIMIT):
        yield
        return
    wanted = _at_most(gpus) if name == GPU_LIMIT else 1
    with concurrency(name, wanted, lease_duration=LEASE_S):
        yield


def _at_most(gpus: int) -> int:
    """So many slots, or as many as the limit has: the server would refuse more."""
    if gpus == 1:
        return 1
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        return min(gpus, client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit)
    return gpus
