"""A look at a home of 10^5 units beside the way of version 0.1, which reads every record at every look.

Each number is the least of three processes of their own, as a scheduled look is one, both ways in turns: seconds of
processor time, and peak memory with all imports. `watch` is what a check of the watch flow asks when nothing is new.
The home is written as mining and packing leave it, with a version of 10^5 shards and ten of 10^4. The earlier way is
written out here: hash the source, read every record and every version, and write each again to compare it with its
checksum. The first look at the home, which makes the tables, is not in the figures.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hyco.storage.sealed import seal
from tests.perf.runner import Case

UNITS, SHARDS, VERSIONS = 100_000, 10_000, 10
TURNS = 3
TIMES = 20.0

_START = """
import json, sys, time
from pathlib import Path
from tests.perf import bench_scale as bench
what, way, folder = sys.argv[1:]
bench.imported()
began = time.process_time()
told = getattr(bench, f"{way}_{what}")(Path(folder))
seconds = time.process_time() - began
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "mb": peak * 1024 / 1e6, "told": told}))
"""


def cases() -> Iterator[Case]:
    """Time and memory of each look."""
    for what in ("watch", "status", "plan"):
        name = f"scale, {what} at 10^5"

        def equal(what: str = what) -> str:
            ours, theirs = looked(what, "ours")["told"], looked(what, "earlier")["told"]
            assert ours == theirs, f"{ours} != {theirs}"
            return "equal"

        def seconds(way: str, what: str = what) -> float:
            return looked(what, way)["seconds"]

        def memory(way: str, what: str = what) -> float:
            return looked(what, way)["mb"]

        yield Case(
            name,
            "version 0.1",
            "s",
            lambda s=seconds: s("ours"),
            lambda s=seconds: s("earlier"),
            equal,
            TIMES,
        )
        yield Case(
            name, "version 0.1", "MB", lambda m=memory: m("ours"), lambda m=memory: m("earlier"), equal
        )


def looked(what: str, way: str) -> dict[str, Any]:
    """The result of a look, and the least of its seconds and of its peak memory in several processes."""
    told = [pair[way] for pair in looks(what)]
    return told[0] | {name: min(one[name] for one in told) for name in ("seconds", "mb")}


@cache
def looks(what: str) -> list[dict[str, dict[str, Any]]]:
    """Look at the home both ways in turns, each in a process of its own."""
    return [{way: look(what, way) for way in ("ours", "earlier")} for _ in range(TURNS)]


def look(what: str, way: str) -> dict[str, Any]:
    """Look at the home in a process of its own; the result, its seconds and the peak memory of the process."""
    command = [sys.executable, "-c", _START, what, way, str(folder())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@cache
def folder() -> Path:
    """Write the source and the home, and look at the home once."""
    import atexit

    made = Path(tempfile.mkdtemp(prefix="hyco-scale-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    write(made)
    subprocess.run(
        [sys.executable, "-c", _START, "watch", "ours", str(made)], check=True, stdout=subprocess.PIPE
    )
    return made


def imported() -> None:
    """Import what both ways use: it is in the memory of both, and in the seconds of neither."""
    import hyco.pipeline.mining.price
    import hyco.pipeline.registry.retraining
    import hyco.pipeline.ui.status  # noqa: F401


def configuration(made: Path) -> Any:
    """The configuration that the home was mined and packed with and is watched with, as a deployment stores it."""
    from hyco.pipeline.registry.retraining import RetrainConfig

    return RetrainConfig.model_validate_json((made / "config.json").read_text())


def ours_watch(made: Path) -> Any:
    """What a check of the watch flow asks."""
    from hyco.pipeline.registry.retraining import check, grown, unsettled
    from hyco.storage.home import Home

    config, home = configuration(made), Home(made / "home")
    decision = check(config, home)
    assert decision is not None
    waits = unsettled(config.journey.mine.source, config.settle_s)
    return [waits, grown(config, home), decision.version, decision.new_samples]


def ours_status(made: Path) -> Any:
    """What `hyco status` tells."""
    from hyco.pipeline.ui.status import holdings
    from hyco.storage.home import Home

    found = holdings(Home(made / "home"))
    return [found["mined"], [[one["name"], one["latest"]] for one in found["versions"]]]


def ours_plan(made: Path) -> Any:
    """What `hyco plan` tells of the units."""
    from hyco.pipeline.mining.price import price
    from hyco.storage.home import Home

    found = price(configuration(made).journey.mine, Home(made / "home"))
    return [found.units, found.units_new]


def earlier_watch(made: Path) -> Any:
    """The same, reading everything."""
    from hyco.pipeline.packing.pack import pack_digest
    from hyco.pipeline.sources.listing import list_source
    from hyco.storage.home import Home

    config, home = configuration(made), Home(made / "home")
    mine, pack = config.journey.mine, config.journey.pack
    ages = [time.time() - path.stat().st_mtime for path in Path(mine.source).iterdir() if path.is_file()]
    waits = max((config.settle_s - age for age in ages if age < config.settle_s), default=0.0)
    assert list_source(mine.source).files
    units, done = earlier_units(config, home)
    pending = [unit for unit in units if unit.name not in done]
    again = earlier_listing(mine)
    packed = earlier_records(home.packs(pack_digest(mine, pack)))
    shards = {shard["path"] for unit in again for shard in packed[unit.name]["shards"]["train"]}
    versions = earlier_versions(home)
    present = [one for one in versions if {ref["path"] for ref in one["shards"]["train"]} == shards]
    versions = earlier_versions(home)  # `check` listed them again
    latest = home.versions.latest()
    newest = next(one for one in versions if one["name"] == latest)
    fresh = sum(shard["samples"] for shard in newest["shards"]["train"])
    return [waits, bool(pending) or not present, newest["name"], fresh]


def earlier_status(made: Path) -> Any:
    """The same, reading everything."""
    from hyco.storage.home import Home

    home, mined = Home(made / "home"), []
    for one in home.all_detections():
        records = earlier_records(one).values()
        images, failed = (sum(record[name] for record in records) for name in ("images", "failed"))
        mined.append(
            {"name": one.folder.rpartition("/")[2], "units": len(records), "images": images, "failed": failed}
        )
    latest = home.versions.latest()
    return [mined, [[one["name"], one["name"] == latest] for one in earlier_versions(home)]]


def earlier_plan(made: Path) -> Any:
    """The same, reading everything."""
    from hyco.storage.home import Home

    units, done = earlier_units(configuration(made), Home(made / "home"))
    return [len(units), len([unit for unit in units if unit.name not in done])]


def earlier_units(config: Any, home: Any) -> tuple[list[Any], set[str]]:
    """The units of the source and the names of those that are done."""
    from hyco.pipeline.config import digest
    from hyco.storage.objects import objects_in

    mined, units = home.detections(digest(config.journey.mine)), earlier_listing(config.journey.mine)
    earlier_records(mined)  # looked through for older reading rules
    records = earlier_records(mined)
    there = set(home.store.list(mined.objects))
    return units, {unit for unit, record in records.items() if objects_in(record) <= there}


def earlier_listing(mine: Any) -> list[Any]:
    """The units of the source, hashed in this process."""
    from hyco.pipeline.sources.source import open_source

    return open_source(mine.source, mine.limits, mine.columns).units()


def earlier_records(manifest: Any) -> dict[str, Any]:
    """Every record of a folder, proven."""
    return {unit: earlier_unseal(manifest.store.read_bytes(manifest.path(unit))) for unit in manifest.units()}


def earlier_versions(home: Any) -> list[dict[str, Any]]:
    """Every version, proven."""
    from hyco.storage.layout import version_path

    found = [earlier_unseal(home.store.read_bytes(version_path(name))) for name in home.versions.names()]
    return sorted(found, key=lambda one: (one["created"], one["name"]))


def earlier_unseal(data: bytes) -> dict[str, Any]:
    """The record in a sealed file, written again twice to compare it with its checksum."""
    held = json.loads(data)
    body = {name: value for name, value in held.items() if name != "proof"}
    assert json.dumps(held, indent=1, ensure_ascii=False).encode() == data
    assert (
        hashlib.sha256(json.dumps(body, indent=1, ensure_ascii=False).encode()).hexdigest() == held["proof"]
    )
    return body


def write(made: Path) -> None:
    """Write the source, and the home as mining and packing leave it."""
    from hyco.pipeline.config import digest
    from hyco.pipeline.end_to_end import compose
    from hyco.pipeline.mining import grounder
    from hyco.pipeline.packing.pack import pack_digest
    from hyco.pipeline.registry.retraining import RetrainConfig
    from hyco.storage.home import Home
    from hyco.storage.layout import SHARDS as OBJECTS
    from hyco.storage.versions import ShardRef

    (made / "source").mkdir(parents=True)
    (made / "source/000000.tar").touch()
    grounder.grounder_digest = lambda spec: "c" * 16
    journey = compose(str(made / "source"), "onnx:none", "demo", assess_source=str(made / "source"))
    config, home = RetrainConfig(journey=journey), Home(made / "home")
    (made / "config.json").write_text(config.model_dump_json())
    mine, pack = config.journey.mine, config.journey.pack
    mined, packed = home.detections(digest(mine)), home.packs(pack_digest(mine, pack))
    for path in (mined.prefix, mined.objects, packed.prefix, OBJECTS):
        Path(home.store.path(path)).mkdir(parents=True)
    home.store.create(mined.config, seal(mine.model_dump(mode="json")))
    failures = f"{mined.objects}/{'f' * 64}.parquet"
    Path(home.store.path(failures)).touch()
    refs = []
    for number in range(UNITS):
        data = f"unit {number}".encode()
        (made / f"source/{number:06d}.tar").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        found, shard = f"{mined.objects}/{sha256}.parquet", f"{OBJECTS}/{sha256}.tar"
        for path in (found, shard):
            Path(home.store.path(path)).touch()
        record = _mined(number, sha256, found, failures)
        Path(home.store.path(mined.path(record["unit"]))).write_bytes(seal(record))
        refs.append(ShardRef(shard, sha256, 12_345_678, 100, 250))
        record = _packed(record, refs[-1])
        Path(home.store.path(packed.path(record["unit"]))).write_bytes(seal(record))
    configs = {"mine": mine.model_dump(mode="json"), "pack": pack.model_dump(mode="json")}
    digests = {"mine": digest(mine), "pack": pack_digest(mine, pack)}
    for number in range(VERSIONS + 1):
        some = refs if number == VERSIONS else refs[: SHARDS - number]
        counts = {"images": 100 * len(some), "parts": 250 * len(some)}
        home.versions.store.exists = lambda path: True  # type: ignore[method-assign]
        home.versions.publish(configs, digests, {"train": some, "val": []}, counts, ["c" * 16])


def _mined(number: int, sha256: str, found: str, failures: str) -> dict[str, Any]:
    seconds = {
        "load": 0.1,
        "source": 1.2,
        "nouns": 0.9,
        "decode": 2.2,
        "ground": 80.5,
        "write": 0.2,
        "total": 85.1,
    }
    return {
        "unit": sha256[:12],
        "path": f"{number:06d}.tar",
        "sha256": sha256,
        "detections": {"path": found, "sha256": sha256, "rows": 4800},
        "failures": {"path": failures, "sha256": "f" * 64, "rows": 0},
        "images": 100,
        "captions": 100,
        "phrases": 300,
        "boxes": 4800,
        "phrases_with_boxes": 300,
        "phrases_unknown": 0,
        "captions_unknown": 0,
        "failed": 0,
        "failed_by_code": {},
        "not_downloaded": 0,
        "detector": "c" * 16,
        "rules": "grit-1",
        "reading": 3,
        "started": 1000.0 + number,
        "finished": 1085.1 + number,
        "seconds": seconds,
    }


def _packed(mined: dict[str, Any], shard: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **{name: mined[name] for name in ("unit", "path", "sha256")},
        "detections": mined["detections"]["path"],
        "shards": {"train": [asdict(shard)], "val": []},
        "failures": None,
        "without": "",
        "counts": {"mined_images": 100, "images": 100, "train_images": 100, "captions": 100, "parts": 250},
        "scores": [0] * 20,
        "detectors": ["c" * 16],
        "seconds": 3.2,
    }
