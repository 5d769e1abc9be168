"""A large run priced from the unit costs of a home: hours, memory, bytes per second, objects, requests, database rows.

CPU costs and sizes are those of the home's records. What a GPU does is given by the caller, measured or assumed.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hyco.models.encoders.vit import VisionConfig
from hyco.pipeline.runtime.markdown import table
from hyco.pipeline.training.recipes import Recipe, hycoclip_vit_b
from hyco.storage.home import Home

REQUESTS = {"mine": 20, "pack": 66}
"""Requests to an S3 home per unit of 12 images in four or five shards, see tests/pipeline/experiments/test_scale.py."""

CORES_PER_GPU = 12  # of a host
TASKS, ROWS, ROW_BYTES = (
    500,
    8,
    30_000,
)  # of a flow run: task runs at most; per task run: rows and bytes in the database
TEXT_TOKENS = 20  # of a caption or phrase
RECORD_BYTES = 1_500  # of a unit
WORKER_GB = 1.5  # docs/performance.md, the bound of a worker


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Per image, of the records of a home: core-seconds of mining without the detector and of packing, and bytes."""

    images: int
    mine_s: dict[str, float]
    pack_s: float
    detection_bytes: float
    shard_bytes: float


def unit_costs(home: Home) -> UnitCosts:
    """Return the costs per image in a home; ValueError when nothing was mined and packed in it."""
    seconds: Counter[str] = Counter()
    images = packed = 0
    detections = shards = packing = 0.0
    for results in home.all_detections():
        for record in results.records().values():
            images += record["images"]
            seconds.update(record["seconds"])
            detections += home.store.size(record["detections"]["path"])
    for results in home.all_packs():
        for record in results.records().values():
            packing += record["seconds"]
            packed += record["counts"].get("images", 0)
            shards += sum(shard["size"] for split in record["shards"].values() for shard in split)
    if not images or not packed:
        raise ValueError(f"{home.url} has no mined and packed images: run hyco mine and hyco pack first")
    parts = {name: seconds[name] / images for name in ("source", "nouns", "decode", "ground", "write")}
    return UnitCosts(images, parts, packing / packed, detections / images, shards / packed)


def training_flops(recipe: Recipe) -> float:
    """Return the floating-point operations of a training: 6 per parameter and token, of image, part and two texts."""
    vision, text = recipe.model.vision, recipe.model.text
    assert isinstance(vision, VisionConfig)
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    image = 12 * vision.depth * vision.width**2 * tokens + 2 * vision.depth * vision.width * tokens**2
    words = 12 * text.depth * text.width**2 * TEXT_TOKENS
    return 6.0 * recipe.steps * recipe.batch_size * 2 * (image + words)


def estimate(
    home: Home,
    images: int,
    shard: int,
    gpus: Sequence[int],
    gpu_rate: float,
    gpu_tflops: float,
    image_bytes: float,
) -> str:
    """Return the unit costs of a home and a Markdown table of a run on these numbers of GPUs.

    Args:
        home: with mined and packed units.
        images: of the large run.
        shard: images per shard.
        gpus: numbers of GPUs, a column each; a worker of mining has one.
        gpu_rate: images per second that one GPU grounds.
        gpu_tflops: what a training reaches on one GPU.
        image_bytes: of a source image.
    """
    cost, units = unit_costs(home), math.ceil(images / shard)
    cpu_s = sum(spent for name, spent in cost.mine_s.items() if name != "ground")
    worker_s = cpu_s + 1 / gpu_rate  # one after the other in a worker
    flops = training_flops(hycoclip_vit_b())
    rows: dict[str, list[str]] = {
        "mining, hours": [],
        "GPU busy while mining, %": [],
        "packing, hours": [],
        "training HyCoCLIP ViT-B/16, hours": [],
        "source read while mining, MB/s": [],
        "home written while packing, MB/s": [],
        "requests to the home while mining, 1/s": [],
        "memory of the mining workers, GB": [],
    }
    columns = list(rows.values())
    for count in gpus:
        busy = min(count, units)  # a unit has one worker
        mining = math.ceil(units / busy) * shard * worker_s
        packing = images * cost.pack_s / (count * CORES_PER_GPU)
        values = [
            mining / 3600,
            100 / gpu_rate / worker_s,
            packing / 3600,
            flops / (count * gpu_tflops * 1e12) / 3600,
            images * image_bytes / mining / 1e6,
            images * cost.shard_bytes / packing / 1e6,
            units * REQUESTS["mine"] / mining,
            busy * WORKER_GB,
        ]
        for row, value in zip(columns, values, strict=True):
            row.append(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    per = ", ".join(f"{name} {1e3 * spent:.2f} ms" for name, spent in cost.mine_s.items())
    tasks = min(TASKS, units)
    once = {
        "shards, units": f"{units:,}",
        "objects in the home": f"{units * 2 + units + units * 2:,}",  # 2 objects and a record; a shard and a record
        "detections": f"{images * cost.detection_bytes / 1e9:,.0f} GB",
        "training shards": f"{images * cost.shard_bytes / 1e9:,.0f} GB",
        "records": f"{2 * units * RECORD_BYTES / 1e6:,.0f} MB",
        "requests, mining and packing": f"{units * sum(REQUESTS.values()):,}",
        "Prefect: task runs, rows": f"{2 * tasks:,}, {2 * tasks * ROWS:,}",
        "Prefect's database": f"{2 * tasks * ROW_BYTES / 1e6:,.0f} MB",
    }
    lines = [f"Of {cost.images:,} images: {per}, packing {1e3 * cost.pack_s:.2f} ms, detections "
             f"{cost.detection_bytes:,.0f} bytes, shards {cost.shard_bytes:,.0f} bytes an image.", "",
             *table([f"{images:,} images", *(f"{count} GPUs" for count in gpus)],
                    ([name, *row] for name, row in rows.items())), "",
             *table(("once", ""), once.items())]  # fmt: skip
    return "\n".join(lines)
