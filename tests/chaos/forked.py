"""A warm process that forks one worker for each line it reads: `python -m tests.chaos.forked SOURCE`.

A worker mines and packs the whole source into a home, as `hyco mine` and `hyco pack` do, with a detector and nouns that
cost nothing; importing everything anew for each of hundreds of kills would cost most of the time.

Lines in: {"start": home, "environment": {...}, "engine": null for this process} or {"wait": pid}; lines out: the
process id, or how it ended: 0 when the version was published, PASSING after a fault of the store that another start may
survive, another exit code for an error that should not be, minus the signal that killed it.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import s3fs  # noqa: F401  (imported before the fork, not after each)

from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing.pack import pack
from hyco.pipeline.runtime.executor import InProcess, open_executor
from hyco.storage.home import Home
from tests.chaos.cheap import PACK, config, mine_on_a_cluster

PASSING = 75  # EX_TEMPFAIL


def work(mine: MineConfig, home: str, engine: str | None = None) -> int:
    """Mine and pack into a home, in this process or with an engine, and return the exit code."""
    try:
        if engine:
            mining.mine_shard = mine_on_a_cluster
        with open_executor(2, engine=engine) if engine else InProcess() as executor:
            mine_all(mine, Home(home), executor)
            pack(mine, PACK, Home(home), executor)
    except ConnectionError as error:
        print(error, file=sys.stderr)
        return PASSING
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Serve the lines of stdin until it closes."""
    mine = config(sys.argv[1])
    os.dup2(os.open(Path(sys.argv[2]), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.environ |= order["environment"]
            os._exit(work(mine, order["start"], order.get("engine")))
        print(child, flush=True)


if __name__ == "__main__":
    main()
