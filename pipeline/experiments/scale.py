"""Where the time of a large mining goes: the real planner, manifest and executor with units that find nothing.

    python -m hyco.pipeline.experiments.scale simulate --units 100000             and --engine ray:HOST:PORT
    python -m hyco.pipeline.experiments.scale estimate --home HOME ...     prices GRIT-20M from a home's records

A unit of the simulation is a file of a few bytes. Its worker commits two small objects and a record, as mining does,
and reads no image. `make scale` runs the simulation; docs/scale.md has the tables.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hyco.pipeline.experiments.grid import command
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig, plan, summary
from hyco.pipeline.runtime.executor import LOCAL, open_executor
from hyco.pipeline.runtime.progress import Progress
from hyco.pipeline.runtime.run_units import run_units
from hyco.pipeline.sources.reading_rules import READING
from hyco.pipeline.sources.records import NOT_DOWNLOADED
from hyco.pipeline.sources.source import Unit
from hyco.storage.home import Home

IMAGES = 1000  # that a unit says it has


def stub(config: MineConfig, home: Home, unit: Unit, report: Any = None) -> dict[str, Any]:
    """Commit the result of a unit without any detection and return its record; `seconds` say what took how long."""
    mined, seconds = mining.results(config, home), dict[str, float]()
    began = time.time()
    if (record := mined.done(unit.name)) is not None:
        return record
    with _timed(seconds, "objects"):
        made = [
            home.store.commit(
                mined.objects, ".parquet", lambda file, kind=kind: _write(file, f"{kind} {unit.name}")
            )
            for kind in ("detections", "failures")
        ]
    record = {
        "unit": unit.name, "path": unit.path, "sha256": unit.sha256, "reading": READING, NOT_DOWNLOADED: 0,
        **{kind: {"path": one.path, "sha256": one.sha256, "rows": 0}
           for kind, one in zip(("detections", "failures"), made, strict=True)},
        **dict.fromkeys(("captions", "phrases", "boxes", "phrases_with_boxes", "phrases_unknown", "failed"), 0),
        "images": IMAGES, "reused": 0, "captions_unknown": 0, "failed_by_code": {}, "detector": "none",
        "rules": "none", "started": round(began, 3), "finished": round(time.time(), 3), "seconds": {"total": 0.0},
    }  # fmt: skip
    with _timed(seconds, "record"):
        mined.commit(unit.name, record)
    if report:
        report(IMAGES)
    return {**record, "seconds": seconds}


def simulate(units: int, engine: str, workers: int | None, folder: Path) -> dict[str, Any]:
    """Plan and mine `units` stubs in `folder`, look at the finished home, and return what took how many seconds."""
    source, home, seconds = folder / "source", Home(str(folder / "home")), dict[str, float]()
    with _timed(seconds, "write the source (not part of a mining)"):
        source.mkdir(parents=True, exist_ok=True)
        for number in range(units):
            if not (path := source / f"{number:06d}.tar").exists():
                path.write_text(f"unit {number}")
    config = MineConfig(source=str(source), grounder="onnx:none", weights="none")
    with _timed(seconds, "first plan: list, hash, records"):
        work = plan(config, home)
    inside: dict[str, float] = {"objects": 0.0, "record": 0.0}
    with open_executor(workers, threads=1, engine=engine, gpus=0.0) as executor:
        with _timed(seconds, "start the workers"):
            for future in [executor.submit(_nothing) for _ in range(executor.workers)]:
                future.result()
        cpu = time.process_time()
        with _timed(seconds, "units"), Progress(len(work.pending) * IMAGES, "stub", "images") as progress:

            def submit(unit: Unit) -> Future[Any]:
                return executor.submit(stub, config, home, unit, report=progress.advance)

            def add(record: dict[str, Any]) -> None:
                for name in inside:
                    inside[name] += record["seconds"][name]

            run_units(submit, work.pending, add)
        driver, count = time.process_time() - cpu, executor.workers
    with _timed(seconds, "summary of all records"):
        found = summary(config, home, [*work.done, *work.pending])
    with _timed(seconds, "plan with nothing to do"):
        left = plan(config, home).pending
    assert found["units_done"] == units and not left, f"{found['units_done']} of {units} units are done"
    each = 1e3 / units
    return {
        "units": units,
        "engine": engine.partition(":")[0],
        "workers": count,
        "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
        "ms_per_unit": {
            "wall": round(seconds["units"] * each, 3),
            "of a worker": round(seconds["units"] * count * each, 3),
            "worker: two objects": round(inside["objects"] * each, 3),
            "worker: record": round(inside["record"] * each, 3),
            "driver, processor": round(driver * each, 3),
        },
        "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _nothing() -> None:
    """What a worker does first, so that its start counts apart."""


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode())


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("simulate", help="stub units through planner, executor and manifest")
    run.add_argument("--units", type=int, default=100_000)
    run.add_argument("--engine", default=LOCAL, help="local, ray or ray:HOST:PORT")
    run.add_argument("--workers", type=int)
    table = verbs.add_parser("estimate", help="hours, bytes, requests and rows of a large run")
    table.add_argument(
        "--home", required=True, help="a home with mined and packed units, whose costs are used"
    )
    table.add_argument("--images", type=int, default=20_000_000)
    table.add_argument("--shard", type=int, default=10_000, help="images per shard")
    table.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    table.add_argument("--gpu-rate", type=float, required=True, help="images per second that a GPU grounds")
    table.add_argument(
        "--gpu-tflops", type=float, required=True, help="TFLOP/s that a training reaches on a GPU"
    )
    table.add_argument("--image-bytes", type=float, required=True, help="bytes of a source image")
    asked = parser.parse_args()

    def work() -> None:
        if asked.verb == "estimate":
            from hyco.pipeline.experiments.scale_estimate import estimate  # imports torch; workers need not

            print(
                estimate(
                    Home(asked.home),
                    asked.images,
                    asked.shard,
                    asked.gpus,
                    asked.gpu_rate,
                    asked.gpu_tflops,
                    asked.image_bytes,
                )
            )
            return
        folder = Path(tempfile.mkdtemp(prefix="hyco-scale-"))
        try:
            print(json.dumps(simulate(asked.units, asked.engine, asked.workers, folder), indent=1))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return command(work)


if __name__ == "__main__":
    from hyco.pipeline.experiments import scale  # a worker cannot import what is defined in __main__

    sys.exit(scale.main())
