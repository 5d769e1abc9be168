"""Images per second of a GRIT-shaped source with its own boxes, from parquet to a published dataset version.

100,000 rows with GRIT's columns in shards of 5,000: photograph-like images of 256 x 192 pixels, 2 noun chunks, one of
them with a referring expression. Mining takes the boxes without a detector; packing cuts crops of 64 pixels. The
workers are those of `hyco mine`, one for each core of this machine.
"""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hyco.pipeline.imaging.crop import Resizer
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import open_executor
from hyco.pipeline.sources.boxes import preset
from hyco.pipeline.sources.columns import Columns
from hyco.storage.home import Home
from tests.perf.runner import Case

ROWS = int(os.environ.get("HYCO_BENCH_ROWS", "100000"))
SHARD = 5000
WIDTH, HEIGHT, CROP = 256, 192, 64
RESIZERS: tuple[Resizer, ...] = ("pillow", "torch")
CORES = len(os.sched_getaffinity(0))
CAPTION = "a brown dog beside a red ball on the grass, number "


def cases() -> Iterator[Case]:
    """Seconds for all rows, against the goal of 1,000 images per second on two cores.

    "processor time" is that of all processes divided by the cores: the seconds on a machine without other work.
    """
    goal = ROWS / 1000 * 2 / CORES
    for by, name in product(RESIZERS, ("mining", "packing", "both", "processor time")):
        yield Case(
            f"GRIT rows, resize={by}, {name}",
            "1,000 images/s",
            "s",
            lambda by=by, name=name: spent(by)[name],
            lambda: goal,
            lambda by=by: checked(by),
            1.0 if name == "processor time" else None,
        )


@cache
def spent(by: Resizer) -> dict[str, float]:
    """Seconds of mining and of packing with one of the resizers, and what was made."""
    with tempfile.TemporaryDirectory() as folder:
        source, home = Path(folder) / "grit", Home(Path(folder) / "home")
        write_rows(source)
        mine = MineConfig(source=str(source), grounder="source", columns=Columns(boxes=preset("grit")))
        began, before = time.perf_counter(), _processor_s()
        with open_executor(CORES) as executor:
            found = mine_all(mine, home, executor)
        mined = time.perf_counter() - began
        with open_executor(CORES) as executor:
            version = pack(mine, PackConfig(image_size=CROP, resize=by), home, executor)
        both, processor = time.perf_counter() - began, (_processor_s() - before) / CORES
    parts = version.counts["parts"] / found["images"]
    times = {"mining": mined, "packing": both - mined, "both": both, "processor time": processor}
    return {**times, "images": found["images"], "parts": parts}


def _processor_s() -> float:
    """Processor time of this process and of its ended children, in seconds."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def checked(by: Resizer) -> str:
    """Assert that every row was mined and packed, and say with how many parts."""
    assert spent(by)["images"] == ROWS
    return f"{spent(by)['parts']:.1f} parts"


def write_rows(folder: Path, count: int = ROWS, shard_rows: int = SHARD) -> None:
    """Shards with the columns of GRIT and the bytes of distinct images, as much work to decode as photographs."""
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    pixels = np.array(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    for shard, start in enumerate(range(0, count, shard_rows)):
        rows: dict[str, list[Any]] = {
            name: [] for name in ("key", "jpg", "caption", "noun_chunks", "ref_exps")
        }
        for number in range(start, min(start + shard_rows, count)):
            for bit in range(20):  # blocks of a JPEG, so that no two images are alike
                pixels[:8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
            dog, ball = [0.1, 0.1, 0.6, 0.9, 0.92], [0.5, 0.4, 0.95, 0.95, 0.71]
            rows["key"].append(f"{number:09d}")
            rows["jpg"].append(encode_jpeg(pixels))
            rows["caption"].append(f"{CAPTION}{number}")
            rows["noun_chunks"].append([[0, 11, *dog], [19, 29, *ball]])
            rows["ref_exps"].append([[0, 42, *dog]])
        pq.write_table(pa.table(rows), folder / f"{shard:05d}.parquet")
