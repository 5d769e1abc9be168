"""Images per second of a GRIT-shaped source with its own boxes, from parquet to a published dataset version.

100,000 rows with GRIT's columns in shards of 5,000: photograph-like images of 256 x 192 pixels, 2 noun chunks, one of
them with a referring expression. Mining takes the boxes without a detector; packing cuts crops of 64 pixels. The
workers are those of `hyco mine`, one for each core of this machine.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.imaging.decode import encode_jpeg
from pipeline.mining.mine import MineConfig, mine_all
from pipeline.packing.pack import PackConfig, pack
from pipeline.runtime.executor import open_executor
from pipeline.sources.boxes import preset
from pipeline.sources.columns import Columns
from storage.home import Home
from tests.perf.runner import Case

ROWS = int(os.environ.get("HYCO_BENCH_ROWS", "100000"))
SHARD = 5000
WIDTH, HEIGHT, CROP = 256, 192, 64
CORES = len(os.sched_getaffinity(0))
CAPTION = "a brown dog beside a red ball on the grass, number "


def cases() -> Iterator[Case]:
    """Rates of mining, of packing and of both, against the goal of 1,000 images per second on two cores."""
    goal = 1000.0 * CORES / 2
    for name in ("mining", "packing", "both"):
        yield Case(
            f"GRIT-shaped, {name}",
            f"{goal:,.0f} images/s",
            "images/s",
            lambda name=name: rates()[name],
            lambda: goal,
            lambda: "n/a",
            floor=1.0 if name == "both" else 0.0,
        )
