"""What an engine adds to units of 50 ms: processor time of all its processes, and the time a worker waits for a unit.

Each unit computes for 50 ms of processor time. What the engine adds is what the command, the worker between two units
and, on Ray, the processes of the cluster take, less what these take while nothing is done. The worker's wait is wall
time, in which the other work of the machine counts.
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from hyco.pipeline.runtime.executor import Executor, LocalExecutor
from tests.perf.runner import Case

UNIT_MS, UNITS, REST_S = 50.0, 80, 4.0
BOUNDS = {"local": 5.0, "ray": 10.0}  # per cent of a unit


def cases() -> Iterator[Case]:
    """Both engines beside their bounds."""
    for engine, most in BOUNDS.items():
        name = f"executor, {engine}, 50 ms units"

        def added(engine: str = engine) -> float:
            return measured(engine)[0]

        def wait(engine: str = engine) -> float:
            return measured(engine)[1]

        def equal(engine: str = engine) -> str:
            assert measured(engine)[2] == list(range(UNITS))
            return "equal"

        bound = most / 100 * UNIT_MS
        yield Case(name, f"{most:.0f} % of a unit", "CPU", added, lambda b=bound: b, equal, floor=1.0)
        yield Case(name, f"{most:.0f} % of a unit", "wait", wait, lambda b=bound: b, equal)


def spin(number: int) -> tuple[int, float, float, float, float]:
    """Compute for 50 ms of processor time; the wall and processor times at the beginning and the end."""
    begin, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < UNIT_MS / 1e3:
        pass
    return number, begin, time.monotonic(), cpu, time.process_time()


@cache
def measured(engine: str) -> tuple[float, float, list[int]]:
    """Milliseconds of processor time and of a worker's wait per unit, and what the units returned."""
    if engine == "local":
        with LocalExecutor(1) as executor:
            return run(executor, [])
    from hyco.pipeline.runtime.ray_executor import RayExecutor
    from tests.factories.ray_cluster import RayCluster

    with RayCluster(nodes=1) as cluster, RayExecutor(cluster.address, 1) as executor:
        return run(executor, descendants(os.getpid(), ("raylet", "gcs_server", "ray::")))


def run(executor: Executor, beside: list[int]) -> tuple[float, float, list[int]]:
    """Run the units one after another on one worker; `beside` are processes whose time counts too."""
    for future in [executor.submit(spin, number) for number in range(10)]:
        future.result(120)

    def taken() -> tuple[float, float]:
        return time.process_time() + sum(map(seconds_of, beside)), time.monotonic()

    spent, at = taken()
    time.sleep(REST_S)
    idle, begun = taken()
    told = [future.result(300) for future in [executor.submit(spin, number) for number in range(UNITS)]]
    total, ended = taken()
    added = total - idle - (idle - spent) / (begun - at) * (ended - begun)
    pairs = list(itertools.pairwise(told))
    between = statistics.median(after[3] - one[4] for one, after in pairs)
    wait = statistics.median(after[1] - one[2] for one, after in pairs)
    return 1e3 * (added / UNITS + between), 1e3 * wait, [one[0] for one in told]


def descendants(parent: int, names: tuple[str, ...]) -> list[int]:
    """Processes below one, except workers, with one of these words in their command."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = (int(stat[1]), command)
    found, below = [], {parent}
    while more := {pid for pid, (above, _) in parents.items() if above in below} - below:
        below |= more
    for pid in below - {parent}:
        command = parents[pid][1]
        if any(name in command for name in names) and "RayWorker" not in command:
            found.append(pid)
    return found


def seconds_of(pid: int) -> float:
    """Processor time of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
