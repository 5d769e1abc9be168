"""Matrix products by oneDNN where they are faster than MKL's: up to twice, on processors with AVX-512."""

import functools

import torch
from torch import Tensor


@functools.cache
def has_onednn() -> bool:
    """Return whether this build of PyTorch has the fused linear layer of oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def _faster() -> bool:
    return has_onednn() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T of float32 matrices on the CPU, not differentiable: [N, K], [M, K] -> [N, M]."""
    if not (_faster() and a.numel() and b.numel()):
        return a @ b.t()
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
