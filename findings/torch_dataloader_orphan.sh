#!/usr/bin/env bash
# Package: torch 2.13.0, DataLoader with worker processes that are spawned (Linux)
#
# A worker of a DataLoader stays for ever if the process that made it is killed while the worker still imports. Workers
# ask every five seconds whether their parent is still the one that they had, but they note it when their loop begins,
# after their imports: then it is process 1 already, and stays so. A worker that had begun ends within seconds.
#
# Who it hurts: trainings that are killed and started again in their first seconds (out of memory at the start, a
# scheduler that takes a node back): each leaves its workers, with the libraries that they have loaded, until reboot.
# Instead: let worker_init_fn compare os.getppid() with the parent's number, given to it as an argument, and call prctl
# PR_SET_PDEATHSIG.
#
# Seen: killed while importing: 2 of 2 workers are there 20 s later
#       killed while working: 0 of 2 workers are there 20 s later
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile torch==2.13.0 numpy==2.4.6

cat > "$work/training.py" <<'PY'
import multiprocessing
import sys
import time

from torch.utils.data import DataLoader

if __name__ == "__main__":
    batches = iter(DataLoader(range(1000), num_workers=2, multiprocessing_context="spawn"))
    if sys.argv[1] == "working":
        next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
PY

cat > "$work/killer.py" <<'PY'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def runs(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


seen = {}
for moment in ("importing", "working"):
    training = subprocess.Popen([sys.executable, sys.argv[1], moment], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in training.stdout.readline().split()]
    training.kill()
    time.sleep(20)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    print(f"killed while {moment}: {len(left)} of {len(workers)} workers are there 20 s later")
    seen[moment] = len(left)
assert seen == {"importing": 2, "working": 0}, seen
PY
"$work/venv/bin/python" "$work/killer.py" "$work/training.py"
