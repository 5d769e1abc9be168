"""One training at a time on a host's GPU, or on its CPUs: the global concurrency limits that `hyco deploy` creates."""

import contextlib
from collections.abc import Iterator

import torch
from prefect.concurrency.sync import concurrency
from prefect.runtime import deployment

GPU_LIMIT, CPU_LIMIT = "hyco-gpu", "hyco-train-cpu"
LEASE_S = 60.0  # how long a dead holder keeps its slot


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
