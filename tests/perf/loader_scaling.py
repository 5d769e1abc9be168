"""python -m tests.perf.loader_scaling [TEXT]: what a second core gives to the loader, to its parts, and to plain C.

Each kind of work runs in one process and in two at the same time, in turns; beside it the loader with two threads and
with one and two workers, from the second epoch on, where its shard is in memory. Printed are the medians of the ratios
of images per second, the best rounds of both against each other, and how many cores were used: other programs take
their part. With TEXT, only rows that contain it. In the rows "busy" the thread that takes the batches runs Python for
some 30 ms after each.
"""

import functools
import hashlib
import io
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.training.augment import choose, render
from hyco.pipeline.training.batch import START, Batch
from hyco.pipeline.training.dataloader import SWITCH_SECONDS, Batches, ShardFile
from tests.perf import bench_loader

ROUNDS, BATCHES = 13, 14
LOOPS = 1_500_000
SETTLE = 0.5
"""Seconds before each round, for what the round before still prepares ahead."""
_STREAMS: list[Generator[Batch]] = []


def works(shard: str) -> dict[str, Callable[[], int]]:
    """Work by name; each call does some and returns how many images, or blocks, it was."""
    bench_loader.shard = lambda: Path(shard)
    samples = bench_loader.samples()
    size, config = bench_loader.SIZE, bench_loader.CONFIG
    pixels = np.empty((2, size, size, 3), np.uint8)

    def digests() -> int:
        for _ in range(40_000):
            hashlib.sha256(bytes(4096)).digest()
        return 40_000

    def decoded() -> int:
        for sample in samples:
            Image.open(io.BytesIO(sample.image)).convert("RGB").load()
        return len(samples)

    def views() -> int:
        made = 0
        for number, sample in enumerate(samples):
            rng = np.random.default_rng(number)
            choice = choose(sample, config, rng)
            render(sample, choice, config, rng, pixels[0], pixels[1:])
            made += 1 + len(choice.parts)
        return made

    def loader(threads: int, workers: int = 0, loops: int = 0) -> Callable[[], int]:
        file = ShardFile("packed", len(samples), functools.partial(Path(shard).open, "rb"))
        told = cast(Tokenizer, bench_loader.Untold())
        given = config.replace(threads=threads, workers=workers, prefetch=max(2, workers))
        reader = Batches([file], told, given, batch_size=bench_loader.BATCH, image_size=size)
        stream = reader.start(START)
        _STREAMS.append(stream)

        def run() -> int:
            images = 0
            for batch in itertools.islice(stream, BATCHES):
                images += len(batch.images) + len(batch.image_boxes)
                for _ in range(loops):  # as a training's own thread, it keeps Python's lock
                    pass
            return images

        return run

    return {
        "sha256": digests,
        "JPEG by PIL": decoded,
        "decode, crop, resize": views,
        "loader": loader(1),
        "2 threads": loader(2),
        "1 worker": loader(1, 1),
        "2 workers": loader(1, 2),
        "busy": loader(1, loops=LOOPS),
        "busy, 2 threads": loader(2, loops=LOOPS),
        "busy, 1 worker": loader(1, 1, LOOPS),
        "busy, 2 workers": loader(1, 2, LOOPS),
    }


def processor_time() -> float:
    """Seconds of processor time of this process and of its children that live."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children()]
    ticks = sum(int(ticks) for stat in stats for ticks in stat.rpartition(")")[2].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def serve(pipe: Connection, shard: str) -> None:
    """Do the work that is asked for and answer with its rate and the cores it used, until None."""
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_SECONDS)  # as the trainer's process does
    known = works(shard)
    while (name := pipe.recv()) is not None:
        time.sleep(SETTLE)
        wall, processor = time.perf_counter(), processor_time()
        done = known[name]()
        wall, processor = time.perf_counter() - wall, processor_time() - processor
        pipe.send((done / wall, processor / wall))
    for stream in _STREAMS:
        stream.close()


def main() -> None:
    """Print the table."""
    shard, spawn = str(bench_loader.shard()), multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(2):
        here, there = spawn.Pipe()
        spawn.Process(target=serve, args=(there, shard)).start()  # a daemon could have no workers
        pipes.append(here)

    def rate(name: str, which: list[Connection]) -> tuple[float, float]:
        for pipe in which:
            pipe.send(name)
        each = [pipe.recv() for pipe in which]
        return sum(one for one, _ in each), sum(cores for _, cores in each)

    names = ("sha256", "JPEG by PIL", "decode, crop, resize", "loader")
    rows = [(f"{name}, 2 processes", name, name, 2) for name in names]
    rows += [(f"loader, {name}", "loader", name, 1) for name in ("2 threads", "2 workers")]
    rows += [("loader, 2 workers beside 1 worker", "1 worker", "2 workers", 1)]
    rows += [(name, "busy", name, 1) for name in ("busy, 2 threads", "busy, 1 worker", "busy, 2 workers")]
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for title, alone, name, count in [row for row in rows if wanted in row[0]]:
        for pipe in pipes:  # warm up
            for warm in (alone, name):
                rate(warm, [pipe])
        pairs = [(rate(alone, [pipes[n % 2]]), rate(name, pipes[:count])) for n in range(ROUNDS)]
        (one, used), (more, both) = (
            [list(side) for side in zip(*rates, strict=True)] for rates in zip(*pairs, strict=True)
        )
        ratio = statistics.median(b / a for a, b in zip(one, more, strict=True))
        print(
            f"{title:36s} {ratio:.2f} times one, best {max(more) / max(one):.2f}; "
            f"{statistics.median(one):.0f} and {statistics.median(more):.0f} per second "
            f"on {statistics.median(used):.2f} and {statistics.median(both):.2f} cores",
            flush=True,
        )
    for pipe in pipes:
        pipe.send(None)


if __name__ == "__main__":
    main()
