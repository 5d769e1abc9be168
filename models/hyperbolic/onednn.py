"""Matrix products by oneDNN where they are faster than MKL's: up to twice, on AMD's processors with AVX-512.

On Intel's, MKL takes as long, and half of it where both factors are transposed, which oneDNN copies.
"""

import contextlib
import functools
from pathlib import Path

import torch
from torch import Tensor


@functools.cache
def has_onednn() -> bool:
    """Return whether this build of PyTorch has the fused linear layer of oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _faster() -> bool:
    with contextlib.suppress(OSError):
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
            return False
    return has_onednn() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T of float32 matrices on the CPU, not differentiable: [N, K], [M, K] -> [N, M]."""
    if not (_faster() and a.numel() and b.numel()):
        return a @ b.t()
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
