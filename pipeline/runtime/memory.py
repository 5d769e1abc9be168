"""How the C library keeps memory that a process has freed."""

import contextlib
import ctypes
import sys

# Parameters of mallopt, <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed blocks for the next step instead of returning them to the kernel; False where this is not glibc.

    A training step frees what it allocated, and the next one needs the same again: with glibc's defaults the kernel
    takes back and clears these pages on every step, a fifth of a small step on a CPU. For a process of its own that
    repeats the same work; its resident memory stays at its peak.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _MOST)  # older versions refuse it: blocks above 32 MB stay mapped one by one
        return bool(mallopt(_TRIM_THRESHOLD, _MOST))
    return False
