"""Which torch device a name means ("auto", "cpu", "cuda", "cuda:N"), how fast it is, and where it takes bfloat16."""

import contextlib
import functools
import os
import platform
import time
from pathlib import Path

import torch

SIDE = {"cuda": 8192, "cpu": 768}
"""Rows and columns of the measured matrix product."""
_TRIES = 5


def resolve_device(name: str) -> torch.device:
    """The device of that name, with its index where it is a GPU.

    "auto" is a GPU where there is one, else the CPU. Of several GPUs, "auto" and "cuda" take the one of this process:
    by LOCAL_RANK under torchrun, by HYCO_WORKER_NUMBER in a worker of pipeline.runtime.executor, else the first.

    Raises:
        ValueError: an unknown name, or a GPU that is not there; in one line with the remedy.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        if not count:
            raise ValueError("device 'cuda' was asked for and torch finds no GPU: use --device cpu")
        # Processes of one training need a GPU each; workers that mine may share one.
        number = os.environ.get("LOCAL_RANK") or int(os.environ.get("HYCO_WORKER_NUMBER", "0")) % count
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device '{name}' is unknown: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and device.index >= count:
        raise ValueError(f"device '{name}' is not here ({count} GPUs): use auto, cpu, or fewer processes")
    return device


def machine_of(device: torch.device) -> str:
    """The hardware behind a device in words: "NVIDIA H200", or the name of the CPU and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    A CPU without them emulates bfloat16: a step of the demo's training took 13 times as long as in float32.
    """
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocasts(precision: str, device: torch.device, began: str | None = None) -> bool:
    """Whether towers of this precision run under bfloat16 autocast: where the device is not faster in float32.

    A run that began in one precision (`began`, of its checkpoint) keeps it, unless the device would emulate bfloat16.
    """
    if (began or precision) != "bfloat16" or not has_bfloat16(device):
        return False
    return began is not None or device.type != "cpu" or _gains_by_bfloat16()


def precision_of(half: bool) -> str:
    """What checkpoints and train.json call the precision of towers that do or do not run under autocast."""
    return "bfloat16" if half else "float32"


def _gains_by_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16: of two with its instructions one was, by half."""
    cpu = torch.device("cpu")
    return matmul_rate(cpu, torch.bfloat16) > matmul_rate(cpu, torch.float32)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a square matrix product on a device, the best of a few, measured once for a process.

    On a CPU by the processor time of this thread: other programs take turns, and the device is no slower for that.
    """
    clock = time.thread_time if device.type == "cpu" else functools.partial(now, device)
    side = SIDE.get(device.type, SIDE["cpu"])
    drawn = torch.Generator(device).manual_seed(0)  # the numbers of the training stay as they are
    a, b = (torch.randn(side, side, device=device, generator=drawn).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_TRIES):
        began = clock()
        torch.mm(a, b)
        best = min(best, clock() - began)
    return 2 * side**3 / best


def now(device: torch.device) -> float:
    """Seconds on a clock, after the work that a GPU was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
