"""What Prefect costs per shard: mining of small shards as a flow with a task per shard, beside the plain `mine_all`.

Each shard holds one image with its own boxes, so that hardly any work of mining is left. Processor time is that of the
program, its workers and its server (on SQLite), each run in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.perf import bench_boxes
from tests.perf.runner import Case

SHARDS = 100

_RUN = """
import json, os, sys, time
from pathlib import Path
from hyco.flows.runtime.server import ensure_server
source, home, how = sys.argv[1:]

def spent():
    tree, ticks = {os.getpid()}, 0
    stats = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    while more := {pid for pid, (parent, _) in stats.items() if parent in tree} - tree:
        tree |= more
    return sum(stats[pid][1] for pid in tree) / os.sysconf("SC_CLK_TCK")

if how == "flow":
    ensure_server(home)
    from hyco.flows.mine import mine
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.runtime.executor import open_executor
from hyco.pipeline.sources.boxes import preset
from hyco.pipeline.sources.columns import Columns
from hyco.storage.home import Home
config = MineConfig(source=source, grounder="source", columns=Columns(boxes=preset("grit")))
begin, began = spent(), time.perf_counter()
if how == "flow":
    found = mine(config, home)
else:
    with open_executor(2) as executor:
        found = mine_all(config, Home(home), executor)
took = time.perf_counter() - began
time.sleep(5)  # the server records the last events a little later
print(json.dumps({"units": found["units_done"], "processor": spent() - begin, "wall": took}))
"""


def cases() -> Iterator[Case]:
    """Milliseconds per shard, of processor time and by the clock."""
    for name, key in (("processor", "processor"), ("clock", "wall")):
        yield Case(
            f"flow of {SHARDS} shards, {name}",
            "mine_all",
            "ms/shard",
            lambda key=key: 1000 * ran("flow")[key] / SHARDS,
            lambda key=key: 1000 * ran("plain")[key] / SHARDS,
            same_units,
        )


@cache
def ran(how: str) -> dict[str, Any]:
    """Mine the shards as a flow or plainly, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, home = Path(folder) / "source", Path(folder) / "home"
        bench_boxes.write_rows(source, SHARDS, 1)
        done = subprocess.run(
            [sys.executable, "-c", _RUN, str(source), str(home), how],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def same_units() -> str:
    """Assert that both mined every shard."""
    assert ran("flow")["units"] == ran("plain")["units"] == SHARDS
    return f"{SHARDS} shards"
