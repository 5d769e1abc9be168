"""One mining run over thousands of shards: does the server stay responsive, and does it lose a task run?

python -m tests.services.many_shards --shards 2000              a server of its own, on SQLite
python -m tests.services.many_shards --team                     docker/compose.yaml's: PostgreSQL, Redis, two processes

The flow, its tasks, the engine and the manifest are the real ones; only the grounding of a shard is stood in for, by a
record that is written at once, so that nothing but Prefect is under load. Prints one JSON object; exit code 1 when a
task run is missing or not Completed.
"""

import argparse
import base64
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from hyco.storage.manifest import Manifest
from hyco.storage.store import Store


def mine_cheaply(config: Any, home: str, unit: Any, report: Any = lambda done: None) -> dict[str, Any]:
    """Stand in for pipeline.mining.mine.mine_shard: the same record, no work."""
    from hyco.pipeline.mining.mine import prefix

    now = time.time()
    counts = dict.fromkeys(("images", "captions", "phrases", "boxes", "phrases_with_boxes"), 1)
    record = {**counts, "unit": unit.name, "path": unit.path, "failed": 0, "failed_by_code": {}}
    record |= {"started": now, "finished": now + 0.001, "seconds": {"total": 0.001}}
    Manifest(Store(home), f"{prefix(config)}/records").commit(unit.name, record)
    report(1)
    return record


class Pulse(threading.Thread):
    """Asks the server what the UI asks, twice a second, and keeps the seconds each answer took."""

    def __init__(self, api: str) -> None:
        super().__init__(daemon=True)
        self.api, self.seconds, self.lost, self.over = api, [], 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            began = time.monotonic()
            try:
                ask(self.api, "/flow_runs/filter", {"limit": 20})
                self.seconds.append(time.monotonic() - began)
            except OSError:
                self.lost += 1


def ask(api: str, path: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
    request = urllib.request.Request(api + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def settle(api: str, run: str, expected: int, patience_s: float) -> dict[str, int]:
    """Count a flow run's task runs by state; events are recorded a little later than they happen."""
    deadline = time.monotonic() + patience_s
    while True:
        only = {"flow_runs": {"id": {"any_": [run]}}}
        states = ("COMPLETED", "FAILED", "CRASHED", "RUNNING", "PENDING")
        found = {
            state: ask(api, "/task_runs/count", {**only, "task_runs": {"state": {"type": {"any_": [state]}}}})
            for state in states
        }
        found["all"] = ask(api, "/task_runs/count", only)
        if found["COMPLETED"] >= expected or time.monotonic() > deadline:
            return found
        time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument(
        "--tasks", type=int, help="most task runs of the flow run; Hyco's own bound by default"
    )
    parser.add_argument("--patience", type=float, default=120, help="seconds that recording may lag behind")
    parser.add_argument("--team", action="store_true", help="PostgreSQL and Redis, as in docker/compose.yaml")
    options = parser.parse_args()
    os.environ.setdefault("HYCO_WORKERS", "2")
    folder = Path(tempfile.mkdtemp(prefix="many-shards-"))
    (folder / "source").mkdir()
    for number in range(options.shards):
        (folder / "source" / f"{number:05d}.tar").write_text(f"shard {number}")
    with contextlib.ExitStack() as stack:
        if options.team:
            from tests.services.topology import AUTH, Team

            team = stack.enter_context(Team(folder / "home"))
            os.environ |= {"PREFECT_API_URL": f"{team.url}/api", "PREFECT_API_AUTH_STRING": AUTH}
        return measure(options, folder)


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Mine the shards and print what came of it."""
    from hyco.flows.runtime.server import ensure_server

    api = ensure_server(str(folder / "home"))
    from hyco.flows.mine import mine
    from hyco.flows.runtime import task_executor as task_engine
    from hyco.pipeline.mining import mine as mining
    from tests.services import many_shards

    if options.tasks:
        task_engine.MAX_TASKS = options.tasks
    mining.mine_shard = many_shards.mine_cheaply
    config = mining.MineConfig(source=str(folder / "source"), grounder="transformers:none", weights="none")
    pulse = Pulse(api)
    pulse.start()
    began = time.monotonic()
    state = mine(config, str(folder / "home"), return_state=True)
    seconds = time.monotonic() - began
    run = str(state.state_details.flow_run_id)
    size = -(-options.shards // task_engine.MAX_TASKS)
    expected = -(-options.shards // size)
    found = settle(api, run, expected, options.patience)
    recorded = time.monotonic() - began
    pulse.over.set()
    ordered = sorted(pulse.seconds)
    report = {
        "shards": options.shards,
        "mined": state.result()["units_done"],
        "task_runs_expected": expected,
        "task_runs": found,
        "lost": expected - found["COMPLETED"],
        "seconds": round(seconds, 1),
        "all_recorded_after_s": None if found["COMPLETED"] < expected else round(recorded, 1),
        "answers": len(ordered),
        "unanswered": pulse.lost,
        "answer_median_s": round(statistics.median(ordered), 3),
        "answer_p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "answer_worst_s": round(ordered[-1], 3),
        "database": "postgresql" if options.team else "sqlite",
    }
    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    if not options.team and database.is_file():
        report["database_mb"] = round(database.stat().st_size / 1e6, 1)
    print(json.dumps(report, indent=1))
    return 1 if report["lost"] or report["mined"] != options.shards else 0


if __name__ == "__main__":
    sys.exit(main())
