"""What the calls of every executor have in common: their names, answers and failures, and the workers' environment."""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[Any], None]
Answer = tuple[str, Any]
"""("result", value) or ("error", exception)."""


class WorkerDiedError(ChildProcessError):
    """A worker process ended in the middle of a call: killed, out of memory, or crashed in native code."""


def name_of(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Return the name of a call for messages; ValueError when a worker could not import the function."""
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise ValueError(f"{name} cannot be found by a worker: define it at the top of an importable module")
    text = ", ".join(str(getattr(arg, "path", getattr(arg, "name", arg))) for arg in args[-1:])
    return f"{name}({text if len(text) <= 120 else text[:117] + '...'})"


def answer(work: Callable[[], Any]) -> Answer:
    """Do the work of a call and return what its worker sends back; an error that cannot travel becomes a plain one."""
    try:
        found = ("result", work())
        pickle.dumps(found)
        return found
    except Exception as error:
        error.add_note("in the worker:\n" + traceback.format_exc())
        return ("error", carried(error))


def environment(threads: int, number: int) -> dict[str, str]:
    """Return the environment of a worker: CPU threads for torch, BLAS and OpenMP, its number, and our modules."""
    return {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HYCO_WORKER_NUMBER": str(number),
    }


def carried(error: Exception) -> Exception:
    """The error itself where it can be pickled, else a plain one with its text."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
