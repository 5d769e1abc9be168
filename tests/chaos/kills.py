"""Mining and packing killed at random instants until it has ended, many times over, and what came of it."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from hyco.storage.gc import collect, referenced
from hyco.storage.shard import read_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.chaos.forked import PASSING
from tests.factories.files import named, tarred

ROOT = Path(__file__).parents[2]


def write_source(folder: Path, units: int, images: int) -> Path:
    """Write `units` tars of `images` captioned images, all different."""
    folder.mkdir(parents=True)
    for unit in range(units):
        members: dict[str, bytes | str] = {}
        for number in range(unit * images, (unit + 1) * images):
            pixels = np.full((24, 32, 3), (number % 256, number // 256, 90), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "PNG")
            members |= named(f"{number:06d}", {"png": data.getvalue(), "txt": f"a block {number}"})
        tarred(folder / f"{unit:05d}.tar", members)
    return folder


class Workers:
    """Worker processes forked from a warm one, see tests.chaos.forked."""

    def __init__(self, source: Path, log: Path, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forked", str(source), str(log)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def start(self, home: str, engine: str | None = None) -> int:
        """Start a worker on a home and return its process id."""
        return self._ask({"start": home, "environment": self.environment, "engine": engine})

    def wait(self, worker: int) -> int:
        """Return how a worker ended: its exit code, or minus the signal."""
        return self._ask({"wait": worker})

    def _ask(self, order: dict[str, Any]) -> int:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@dataclass
class KillCounts:
    """What was done and what went wrong; the last three must be 0."""

    kills: int = 0
    rounds: int = 0
    gave_up: int = 0  # a fault of the store outlasted all tries; started again
    stages: Counter[str] = field(default_factory=Counter)  # how far the killed ones had come
    lost: int = 0
    torn: int = 0
    doubled: int = 0

    def __str__(self) -> str:
        reached = ", ".join(f"{stage} {number}" for stage, number in sorted(self.stages.items()))
        return (
            f"{self.kills} kills -9 ({reached}) in {self.rounds} whole runs, {self.gave_up} starts given up after a "
            f"fault: {self.lost} lost, {self.torn} torn, {self.doubled} doubled"
        )


@dataclass
class Reference:
    """What a home holds that nobody was killed in: the version's name and the keys of its samples."""

    version: str
    keys: Counter[str]

    @classmethod
    def of(cls, store: Store) -> Self:
        """Read the newest version of a home."""
        return cls(Versions(store).load("latest").name, keys_of(store))


def keys_of(store: Store) -> Counter[str]:
    """Count the samples of `latest` by key."""
    keys: Counter[str] = Counter()
    for shards in Versions(store).load("latest").shards.values():
        for shard in shards:
            with store.open(shard.path) as file:
                keys.update(sample.key for sample in read_shard(file, "tar", shard.samples))
    return keys


def torn_in(store: Store) -> list[str]:
    """Return what is not whole: objects that are not what their names say, records of absent ones or not JSON."""
    there = store.list()
    objects = {path for path in there if "/objects/" in path}
    torn = [path for path in objects if store.sha256(path) != Path(path).stem]
    try:
        named = {path for path in referenced(store) if "/objects/" in path}
    except ValueError as error:
        return [*torn, str(error)]
    return torn + sorted(named - objects)


def check(store: Store, reference: Reference, units: int, tally: KillCounts) -> None:
    """Hold a home whose work has ended to the reference."""
    torn = torn_in(store)
    collect(store, older_than_s=0)
    version = Versions(store).load("latest")
    torn += Versions(store).verify(version)
    keys = keys_of(store)
    tally.torn += len(torn)
    tally.lost += sum((reference.keys - keys).values())
    tally.doubled += sum((keys - reference.keys).values())
    assert not torn, torn
    assert version.name == reference.version and keys == reference.keys
    # The cache has folders of the same names: where work is slow, a table of whole records.
    records = [path for path in store.list() if "/records/" in path and not path.startswith("cache/")]
    assert len(records) == 2 * units, records
    assert Versions(store).names() == [version.name] and not store.list("quarantine")


def kill_at_random(
    workers: Workers,
    new_home: Callable[[int], tuple[str, Store]],
    units: int,
    kills: int,
    seed: int = 0,
    look_after_each: bool = False,
) -> KillCounts:
    """Kill workers at random instants until `kills` were killed, and check each home once its work has ended.

    In three of ten cases two workers, as of two hosts, are at one home.

    Args:
        workers: starts the worker processes.
        new_home: gives the home of a round, and the store that it is checked through.
        units: of the source.
        kills: number of workers to kill.
        seed: of the instants.
        look_after_each: look for torn files after each kill, not only at the end of a round.
    """
    chance, tally = random.Random(seed), KillCounts()
    home, store = new_home(0)
    code, whole = PASSING, 0.0
    while code == PASSING:
        worker, began = workers.start(home), time.monotonic()  # the first answer waits for the imports
        code, whole = workers.wait(worker), time.monotonic() - began
    assert code == 0, "the run that is not killed must end well"
    reference = Reference.of(store)
    assert set(reference.keys.values()) == {1}
    while tally.kills < kills:
        tally.rounds += 1
        home, store = new_home(tally.rounds)
        ended = False
        while not ended:
            began = time.monotonic()
            started = [workers.start(home) for _ in range(2 if chance.random() < 0.3 else 1)]
            instants = sorted((chance.uniform(0.0, 1.1 * whole * len(started)), one) for one in started)
            for instant, worker in instants:
                time.sleep(max(0.0, began + instant - time.monotonic()))
                os.kill(worker, signal.SIGKILL)
            codes = [workers.wait(worker) for worker in started]
            assert set(codes) <= {0, PASSING, -signal.SIGKILL}, f"an error that should not be: {codes}"
            tally.kills += codes.count(-signal.SIGKILL)
            tally.gave_up += codes.count(PASSING)
            tally.stages[stage_of(store)] += codes.count(-signal.SIGKILL)
            if look_after_each:
                torn = torn_in(store)
                tally.torn += len(torn)
                assert not torn, torn
            ended = 0 in codes
            # Other work of the machine changes the pace: kill sooner after runs that were over, later after kills.
            whole *= 0.8 if ended else 1.05
        check(store, reference, units, tally)
    return tally


def stage_of(store: Store) -> str:
    """Say how far the work at a home has come."""
    paths = store.list()
    for stage, sign in (("3 published", "versions/v-"), ("2 packing", "packs/"), ("1 mining", "/records/")):
        if any(sign in path for path in paths):
            return stage
    return "0 nothing yet"
