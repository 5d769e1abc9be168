"""Training in processes of its own: one (`-m hyco.pipeline.training.train DIR`), or several of it under torchrun.

The parent only reads lines, so a flow that supervises a training holds no model and no GPU memory, and training ends
when the flow does.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hyco.pipeline.runtime.stop import GRACE_S, StoppedError, TerminatedError, terminable, where
from hyco.pipeline.training.nodes import Nodes
from hyco.pipeline.training.run_dir import RunDir, finished
from hyco.storage.folder import Folder

USER_ERROR = "hyco: error:"  # start of the line in which pipeline.training.train reports a user's mistake
STALL_S = 3600.0
# "train, loss 5.312: 12,800/102,400 samples, 391.2 samples/s, 3 min 49 s left", printed by pipeline.runtime.progress
_PROGRESS = re.compile(r"^train\b.*?: ([\d,]+)/([\d,]+) samples")
_OF_TORCHRUN = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
}


def launch(
    run_dir: RunDir,
    processes: int = 1,
    on_line: Callable[[str], None] = print,
    on_progress: Callable[[dict[str, Any]], None] = lambda state: None,
    stall_s: float = STALL_S,
    nodes: Nodes | None = None,
) -> dict[str, Any]:
    """Train the run that `prepare` set up, in `processes` processes per node, and return its train.json.

    Args:
        run_dir: directory or URL with config.json.
        processes: one per GPU; 1 on a CPU.
        on_line: gets every line that training prints.
        on_progress: gets {"done", "total", "text", "finished"} for every progress line.
        stall_s: training that prints nothing for this many seconds is ended; it prints a line every few seconds.
        nodes: this node and the others, each of which calls this; None trains on this machine alone.

    SIGTERM and Ctrl-C end the training at a checkpoint, at most GRACE_S seconds later: TerminatedError and
    KeyboardInterrupt then say at which step.

    Raises:
        ValueError: training refused its configuration or its checkpoint.
        StoppedError: the processes themselves got SIGTERM; they have saved a checkpoint.
        RuntimeError: training failed otherwise; the text is its last line. Started again, it resumes from its last
            checkpoint.
    """
    folder = Folder.of(run_dir)
    train = ["-m", "hyco.pipeline.training.train", str(folder)]
    environment, grace = dict(os.environ), GRACE_S
    if nodes or processes > 1:
        grace += 10  # torchrun itself kills after GRACE_S
        # On one machine its host name need not resolve.
        meet = nodes.arguments(folder.name) if nodes else ["--standalone", "--local-addr=127.0.0.1"]
        meet += [f"--nproc-per-node={processes}", f"--shutdown-timeout={GRACE_S:.0f}"]
        train = ["-m", "torch.distributed.run", *meet, *train]
        # Gloo would search for the interface of the machine's host name.
        reach = (
            nodes.environment() if nodes else {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        )
        environment = {**reach, **environment}
    else:
        for name in _OF_TORCHRUN & environment.keys():  # of a cluster's job: they would name other processes
            del environment[name]
    command = [sys.executable, *train]
    guard = [sys.executable, "-m", "hyco.pipeline.runtime.parent_death", str(os.getpid())]
    with terminable():
        process = subprocess.Popen(
            [*guard, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            env=environment,
            process_group=0,  # a terminal's Ctrl-C reaches only this process, which passes it on once
        )
        last: deque[str] = deque(maxlen=200)
        spoke, ended = [time.monotonic()], threading.Event()

        def end_when_stalled() -> None:
            while not ended.wait(min(5.0, stall_s / 4)):
                if time.monotonic() - spoke[0] > stall_s:
                    last.append(f"no output for {stall_s:g} s")
                    process.kill()
                    return

        threading.Thread(target=end_when_stalled, daemon=True).start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                line, spoke[0] = line.rstrip(), time.monotonic()
                last.append(line)
                # A user's error is raised here; the line must not be shown twice.
                if where(line) is None and not line.startswith(USER_ERROR):
                    on_line(line)
                if nodes and line.startswith(USER_ERROR):
                    last.extend(_end(process, grace))  # torchrun would start the processes again
                    break
                if match := _PROGRESS.match(line):
                    done, total = (int(group.replace(",", "")) for group in match.groups())
                    text = line.partition(": ")[2]
                    on_progress({"done": done, "total": total, "text": text, "finished": done >= total})
            code = process.wait()
        except BaseException as error:
            lines = _end(process, grace)
            _explain(folder, lines)
            if isinstance(error, KeyboardInterrupt | TerminatedError) and (at := _stopped_at(lines)):
                error.args = (at,)
            raise
        finally:
            ended.set()
    if (at := _stopped_at(last)) is not None:
        raise StoppedError(at)
    if code != 0:
        _explain(folder, last)
        raise RuntimeError(
            f"training in {folder} failed with code {code}: "
            f"{next((line for line in reversed(last) if line), 'no output')}"
        )
    result = finished(folder)
    assert result is not None, "the last act of a training"
    return result


def _end(process: subprocess.Popen[str], grace: float) -> list[str]:
    """Ask a training to stop, wait for its end, and return its last output.

    torchrun passes SIGTERM on, waits GRACE_S seconds and kills the remaining processes. It, or a training without it,
    is killed after `grace` seconds.
    """
    process.terminate()
    killer = threading.Timer(grace, process.kill)
    killer.start()
    try:
        said, _ = process.communicate()
    finally:
        killer.cancel()
    return said.splitlines()


def _explain(run_dir: Folder, lines: Iterable[str]) -> None:
    """Raise ValueError if training reported a user's mistake."""
    if told := [line for line in lines if line.startswith(USER_ERROR)]:
        raise ValueError(f"training in {run_dir} failed: {told[-1].removeprefix(USER_ERROR).strip()}")


def _stopped_at(lines: Iterable[str]) -> str | None:
    return next((at for line in lines if (at := where(line)) is not None), None)
