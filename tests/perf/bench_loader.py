"""Batches of 224-pixel crops from packed photographs, beside webdataset and PIL: processor time of one image.

The shard is mined and packed here from 500 photographs of Flickr8k (224 x 224 pixels), with a part per box of YOLOX.
Both sides read the shard from the file, draw a caption, a part of it and two random crops for each sample, and fill
a batch; both resize bicubically with antialiasing. Tokens are made on neither side.
"""

import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import webdataset
from PIL import Image

from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.training.augment import DataConfig, draw, random_box
from hyco.pipeline.training.batch import START
from hyco.pipeline.training.dataloader import SWITCH_SECONDS, Batches, ShardFile
from hyco.storage.home import Home
from hyco.storage.sample import TrainingSample
from hyco.storage.shard import read_shard
from tests.perf.runner import Case

SHARED = Path(__file__).parents[3] / "shared" / "data"
PHOTOGRAPHS, YOLOX = SHARED / "flickr8k" / "00000.tar", SHARED / "detectors" / "yolox_nano.onnx"
SIZE, BATCH, BATCHES, ROUNDS = 224, 64, 7, 7
CONFIG = DataConfig(prefetch=1, threads=1)


def cases() -> Iterator[Case]:
    """Microseconds of processor time per image, and seconds of wall time with one and two threads."""
    if not (PHOTOGRAPHS.is_file() and YOLOX.is_file()):
        return
    name = "loader 224 px"
    yield Case(name, "webdataset + PIL", "us", lambda: spent()[0], lambda: spent()[1], same_pixels, floor=3.0)
    yield Case(
        f"{name}, 2 threads",
        "1 thread",
        "us",
        lambda: by_the_clock()[1],
        lambda: by_the_clock()[0],
        lambda: "n/a",
    )


@cache
def shard() -> Path:
    """The packed shard, a file that stays until this program ends."""
    folder = Path(_FOLDER.name)
    home = Home(folder / "home")
    mine = MineConfig(source=str(PHOTOGRAPHS), grounder=f"onnx:{YOLOX}")
    mine_all(mine, home, InProcess())
    version = pack(mine, PackConfig(image_size=SIZE), home)
    (ref,) = version.shards["train"]
    with home.store.open(ref.path) as file:
        (folder / "packed.tar").write_bytes(file.read())
    return folder / "packed.tar"


@cache
def samples() -> list[TrainingSample]:
    """The samples of the shard."""
    with shard().open("rb") as file:
        return list(read_shard(file))


_FOLDER = tempfile.TemporaryDirectory()


class Untold:
    """Stands for a tokenizer and counts the images whose texts it got."""

    end = 0  # every text is this token alone

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.images += len(texts)  # one caption per whole image, one phrase per part
        return torch.zeros(len(texts), 1, dtype=torch.long)


def ours(threads: int = 1, prefetch: int = 1) -> int:
    """Make the batches of an epoch and return how many images were made: some more, ahead of their time."""
    counted = Untold()
    file = ShardFile("packed", len(samples()), lambda: shard().open("rb"))
    reader = Batches(
        [file],
        cast(Tokenizer, counted),
        CONFIG.replace(threads=threads, prefetch=prefetch),
        batch_size=BATCH,
        image_size=SIZE,
    )
    stream = reader.start(START)
    for _ in itertools.islice(stream, BATCHES):
        pass
    stream.close()
    return counted.images


def view(sample: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], str]:
    """What `draw` does, as one would write it with PIL."""
    record = json.loads(sample["meta.json"])
    caption = int(rng.integers(len(record["captions"])))
    everything = range(len(record["parts"]))
    own = [i for i in everything if record["parts"][i]["caption"] == caption] or list(everything)
    picked = [own[i] for i in rng.permutation(len(own))[: CONFIG.parts]]

    def crop(data: bytes, scale: tuple[float, float]) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = random_box(image.width, image.height, scale, CONFIG.crop_ratio, rng)
        pixels = np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        return pixels[:, ::-1] if rng.random() < CONFIG.flip else pixels

    image = crop(sample["child.jpg"], CONFIG.crop_scale)
    parts = [crop(sample[f"parent{i:03d}.jpg"], CONFIG.part_crop_scale) for i in picked]
    return image, parts, record["captions"][caption]


def theirs() -> int:
    """The same by webdataset and PIL; return how many images were made."""
    rng = np.random.default_rng(0)

    def together(views: list[tuple[np.ndarray, list[np.ndarray], str]]) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [part for _, some, _ in views for part in some]
        return torch.from_numpy(np.stack([image for image, *_ in views])), torch.from_numpy(np.stack(parts))

    data = webdataset.WebDataset([str(shard())], shardshuffle=False, empty_check=False)
    batches = data.shuffle(1000).map(lambda sample: view(sample, rng)).batched(BATCH, collation_fn=together)
    return sum(len(images) + len(parts) for images, parts in itertools.islice(batches, BATCHES))


@cache
def spent() -> tuple[float, float]:
    """Median microseconds of processor time per image, ours and theirs, of interleaved rounds."""
    return _rounds([ours, theirs], time.process_time)


@cache
def by_the_clock() -> tuple[float, float]:
    """Least microseconds of wall time per image with one and with two threads: other work only adds to it."""
    sys.setswitchinterval(SWITCH_SECONDS)  # as the trainer's process does
    return _rounds([lambda: ours(1, 2), lambda: ours(2, 2)], time.perf_counter, min)


def _rounds(
    calls: list[Callable[[], int]],
    clock: Callable[[], float],
    of: Callable[[list[float]], float] = statistics.median,
) -> tuple[float, float]:
    every: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 1):
        for call, times in zip(calls, every, strict=True):
            begin = clock()
            images = call()
            if number:  # the first round warms up
                times.append(1e6 * (clock() - begin) / images)
    first, second = map(of, every)
    return first, second


def same_pixels() -> str:
    """Assert that both sides make the same views of every sample from the same random numbers."""
    most, total, count = 0, 0.0, 0
    raw = webdataset.WebDataset([str(shard())], shardshuffle=False, empty_check=False)
    for number, (sample, members) in enumerate(zip(samples(), raw, strict=True)):
        assert sample.key == members["__key__"]
        drawn = draw(sample, CONFIG, SIZE, np.random.default_rng(number))
        assert drawn is not None
        image, parts, caption = view(members, np.random.default_rng(number))
        assert (caption, len(parts)) == (drawn.caption, len(drawn.parts))
        for a, b in zip([drawn.image, *(part for part, _ in drawn.parts)], [image, *parts], strict=True):
            off = np.abs(a.astype(int) - b)
            most, total, count = max(most, int(off.max())), total + float(off.mean()), count + 1
    assert most <= 2 and total / count < 0.01, (most, total / count)
    return f"max {most}, mean {total / count:.4f} of 255"
