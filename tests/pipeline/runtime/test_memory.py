"""Memory that a process has freed stays its own."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from hyco.pipeline.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit(3)
def work():
    return sum(float(torch.ones(1 << 20)[0]) for _ in range(20)) + float((torch.ones(1 << 24) * 2)[0])
work(), work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_repeated_work_gets_its_pages_once():
    """128 MB that are freed and needed again five times: 32,768 pages each, or none."""
    faults = []
    for how in ("keep", "default"):
        done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True)
        if done.returncode == 3:
            pytest.skip("another C library than glibc")
        faults.append(int(done.stdout))
    assert faults[0] < 40_000 < 100_000 < faults[1]
