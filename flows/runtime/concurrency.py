"""One job at a time on a GPU, or one training on a host's CPUs: the global concurrency limits of `hyco deploy`.

Slots count GPUs and name none. Where several jobs may run at once, each GPU has a worker of its own that sees only that
GPU and takes one run at a time: `CUDA_VISIBLE_DEVICES=1 hyco worker --pool gpu --limit 1`.
"""

import contextlib
from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

from hyco.pipeline.runtime.device import resolve_device

GPU_LIMIT, CPU_LIMIT = "hyco-gpu", "hyco-train-cpu"
LEASE_S = 60.0  # how long a dead process keeps its slot


@contextlib.contextmanager
def slot(gpu_only: bool = False, gpus: int = 1) -> Iterator[None]:
    """Wait for slots of this many GPUs, or for the one slot of training on a CPU, and hold them.

    Only a deployed run waits; a flow that a person starts in a terminal begins at once. The slots of a dead process are
    released when the lease ends.

    Args:
        gpu_only: hold nothing where there is no GPU.
        gpus: how many; all slots where the limit is smaller.
    """
    name = GPU_LIMIT if resolve_device("auto").type == "cuda" else CPU_LIMIT
    if deployment.id is None or (gpu_only and name != GPU_LIMIT):
        yield
        return
    wanted = _at_most(gpus) if name == GPU_LIMIT else 1
    with concurrency(name, wanted, lease_duration=LEASE_S):
        yield


def _at_most(gpus: int) -> int:
    """This many slots, but no more than the limit: the server would refuse them."""
    if gpus == 1:
        return 1
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        return min(gpus, client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit)
    return gpus
