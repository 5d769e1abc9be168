"""Builds and loads C++ kernels: once for a user, a version of torch and a kind of processor.

The kernels are called with addresses by ctypes, so they need no part of torch that has to be compiled along: building
takes six seconds of processor time. A finished library appears in the cache by one rename, so that processes that
build at the same time, or are killed, do no harm; the next build deletes the folder that a killed one has left. It ends
with a hash of what is before: a library that was cut off, by a full disk or a copy, would end the process that loads
it, so it is built again.

The kernels use torch's threads, so what holds for torch's own operations holds for them: a process that has computed
with several threads must not go on computing after os.fork. It waits for threads that only its parent has. Use the
start methods "spawn" or "forkserver" of multiprocessing, or one thread.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyco.models.hyperbolic.transforms import recorded

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
SWITCH = "HYCO_KERNELS"
"""Environment variable: 0 leaves the work to plain torch."""
FLAGS = {
    "AVX2": "-mavx2 -mfma -mf16c -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2",
    "AVX512": "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mf16c -DCPU_CAPABILITY=AVX512 -DCPU_CAPABILITY_AVX512",
}
"""By the kind of processor that torch found (ATEN_CPU_CAPABILITY overrides it)."""
SECONDS = 300
"""Longest time that a compiler is waited for."""

Signatures = Mapping[str, tuple[Any, list[Any]]]
"""By the name of a function, its result's and its arguments' types of ctypes."""

_P, _I, _F, _B = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_bool
_SIGNATURES: Signatures = {
    "planes": (None, [_P] * 3 + [_I] * 2 + [_F] * 2),
    "plane_slopes": (_F, [_P] * 5 + [_I] * 2 + [_F] * 2),
    "project": (None, [_P] * 8 + [_I] * 4 + [_F] * 3),
    "project_slopes": (_F, [_P] * 11 + [_I] * 4 + [_F] * 2),
    "unlift": (_F, [_P] * 3 + [_I] * 2 + [_F] * 2),
    "lift_heads": (_F, [_P] * 2 + [_I] * 7 + [_F] * 2 + [_B]),
    "unlift_heads": (_F, [_P] * 4 + [_I] * 9 + [_F] * 2 + [_B]),
    "means": (None, [_P] * 3 + [_I] * 5 + [_F] * 2),
    "mean_slopes": (_F, [_P] * 4 + [_I] * 5 + [_F]),
    "shares": (None, [_P] * 3 + [_I] * 9),
    "share_slopes": (None, [_P] * 5 + [_I] * 9),
    "window_squares": (None, [_P] * 2 + [_I] * 3 + [_P, _I, _F]),
    "window_slopes": (None, [_P] * 3 + [_I] * 3 + [_P, _I, _F]),
    "respond": (None, [_P] * 6 + [_I] * 4 + [_F] * 3),
    "respond_slopes": (_F, [_P] * 9 + [_I] * 4 + [_F] * 3),
    "norm_sums": (None, [_P] * 3),
    "norm_ends": (None, [_P, _F] + [_P] * 3 + [_I] + [_F] * 2),
    "norm_angles": (_F, [_P] * 4),
    "norm_results": (None, [_P] * 4),
    "norm_gain_slope": (_F, [_P] * 5),
    "norm_mean_slopes": (_F, [_P] * 5 + [_F] + [_P] * 2),
    "norm_sum_slopes": (None, [_P, _F] + [_P] * 4 + [_I]),
    "norm_bias_slopes": (_F, [_P] * 4 + [_I, _F]),
    "norm_slopes": (_F, [_P] * 6),
    "norm_track": (None, [_P] * 4 + [_I] + [_F] * 8),
    "mobius_sums": (None, [_P] * 4 + [_I] * 3 + [_F] * 2),
    "mobius_slopes": (_F, [_P] * 6 + [_I] * 3 + [_F] * 2),
}


def cache_folder() -> Path:
    """Folder of the built libraries, which may not exist yet: kernels/ in this machine's cache (HYCO_CACHE)."""
    chosen, caches = os.environ.get("HYCO_CACHE"), os.environ.get("XDG_CACHE_HOME")
    cache = Path(chosen).expanduser() if chosen else Path(caches or Path.home() / ".cache") / "hyco"
    return cache / "kernels"


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; null for None."""
    return None if tensor is None else tensor.data_ptr()


def usable(*tensors: Tensor | None) -> bool:
    """Whether the kernels can work on these tensors: real ones, float32, on a CPU, and nobody traces or transforms."""
    return concrete(*tensors) and library() is not None


def concrete(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether these are dense tensors of these types on the CPU, and nothing records or transforms what is done."""
    return not recorded() and all(t is None or _dense(t, dtypes) for t in tensors)


def _dense(t: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    plain = type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and t.dtype in dtypes
    return plain and t.layout == torch.strided and not t.is_neg() and t.numel() > 0


def kernels() -> ctypes.CDLL:
    """The kernels, after `usable` has said that they are there."""
    found = library()
    assert found is not None
    return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels of hyperbolic layers, see `load`."""
    return load(SOURCE, _SIGNATURES)


def load(source: Path, signatures: Signatures) -> ctypes.CDLL | None:
    """Functions of a C++ file, built on the first call on a machine; None without a compiler or switched off."""
    flags = FLAGS.get(torch.backends.cpu.get_cpu_capability())
    if os.environ.get(SWITCH) == "0" or flags is None or sys.platform != "linux":
        return None
    try:
        return _load(_built(flags, source), signatures)
    except (OSError, ValueError, subprocess.SubprocessError, RuntimeError) as error:
        log.info("plain torch, which is slower, in place of the C++ kernels of %s: %s", source, error)
        return None


def _load(file: Path, signatures: Signatures) -> ctypes.CDLL:
    kernels = ctypes.CDLL(str(file))
    for name, (result, arguments) in signatures.items():
        function = getattr(kernels, name)
        function.restype, function.argtypes = result, arguments
    return kernels


def _built(flags: str, source: Path = SOURCE) -> Path:
    """The library of a file for these flags, from the cache or the compiler; headers are of its folder or ours.

    Raises:
        OSError, subprocess.SubprocessError, RuntimeError: no compiler, no folder to write to, a failed build.
    """
    flags += " -O3 -std=c++20 -fPIC -shared -fopenmp -w"
    here = SOURCE.parent
    sources = [source, *sorted({*source.parent.glob("*.h"), *here.glob("*.h")})]
    told = "\n".join(
        (*(file.read_text() for file in sources), torch.__version__, str(torch.version.git_version), flags)
    )
    target = cache_folder() / f"kernels-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if _intact(target):
        return target
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or ""]
    if not compiler[0]:
        raise RuntimeError("no C++ compiler (g++) was found")
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("building the C++ kernels of %s, once: %s", source, target)
    home = Path(torch.__file__).parent
    _delete_abandoned(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        command = [
            *compiler,
            *flags.split(),
            f"-I{home / 'include'}",
            f"-I{here}",
            str(source),
            "-o",
            str(made),
        ]
        command += [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if result.returncode:
            raise RuntimeError(f"{compiler[0]} failed: {result.stderr.strip()[:500]}")
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        made.replace(target)
    return target


def _delete_abandoned(cache: Path) -> None:
    """Delete the folders of builds that were killed: those older than a build may take."""
    for folder in cache.iterdir():
        try:
            old = folder.is_dir() and time.time() - folder.stat().st_mtime > 2 * SECONDS
        except FileNotFoundError:  # a build that has just ended
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)


def _intact(file: Path) -> bool:
    """Whether a library is there with the hash of its content behind it, where loaders do not look."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]
