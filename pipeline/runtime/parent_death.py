"""Processes that end with their parent, however it ends: a killed worker must leave no process running.

python -m hyco.pipeline.runtime.parent_death PARENT COMMAND ...   becomes COMMAND, which ends with process PARENT
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End this process when `parent` does: by the kernel on Linux, by a watching thread elsewhere."""
    bind(parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def bind(parent: int) -> None:
    """Ask the kernel (Linux) for SIGKILL when the thread that started this process ends; survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


if __name__ == "__main__":
    bind(int(sys.argv[1]))
    os.environ["HYCO_LAUNCHER"] = str(os.getpid())  # for children that read their parent's id too late
    os.execvp(sys.argv[2], sys.argv[2:])
