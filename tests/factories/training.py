"""A dataset version of coloured squares for the tests of training."""

import functools
from pathlib import Path

import numpy as np

from hyco.models.clip import ClipConfig
from hyco.models.encoders.text import TextConfig
from hyco.models.encoders.vit import VisionConfig
from hyco.models.losses.objective import hycoclip_objective
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.training.augment import DataConfig
from hyco.pipeline.training.dataloader import ShardFile
from hyco.pipeline.training.recipes import OptimiserConfig, Recipe
from hyco.storage.sample import Part, TrainingSample, content_key
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref

COLORS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}


def sample(number: int, parts: int = 2, captions: int = 2, size: int = 24) -> TrainingSample:
    """A square of one colour on another; its key and first caption hold the number."""
    names = list(COLORS)
    front, back = names[number % 4], names[(number // 4 + number % 4 + 1) % 4]
    pixels = np.full((size, size, 3), COLORS[back], np.uint8)
    pixels[4:16, 4:16] = COLORS[front]
    pixels[0, 0] = number % 256
    pieces = [
        Part(encode_jpeg(pixels[4:16, 4:16]), f"a {front} square", caption=i % captions, span=(0, 3))
        for i in range(parts)
    ]
    image = encode_jpeg(pixels)
    texts = [f"a {front} square on {back} number {number}", f"{back} ground under a {front} square"]
    return TrainingSample(content_key(image) + f"_{number}", image, tuple(texts[:captions]), tuple(pieces))


def shard_files(folder: Path, counts: list[int], **options) -> list[ShardFile]:
    """Shards of these many samples, numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    files, at = [], 0
    for index, count in enumerate(counts):
        path = folder / f"{index:05d}.tar"
        with path.open("wb") as file:
            write_shard(file, [sample(at + i, **options) for i in range(count)])
        files.append(ShardFile(path.name, count, functools.partial(path.open, "rb")))
        at += count
    return files


def make_home(home: Path, counts: tuple[int, ...] = (20, 20, 24), **options) -> str:
    """A home with one published version; returns its name."""
    store, refs, at = Store(home), [], 0
    for count in counts:
        samples = [sample(at + i, **options) for i in range(count)]
        made = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
        refs.append(shard_ref(made, count, sum(len(s.parts) for s in samples)))
        at += count
    return Versions(store).publish({}, {}, {"train": refs, "val": []}, {"train_images": at}).name


def tiny_recipe(**changes) -> Recipe:
    """Twenty steps of sixteen samples."""
    model = ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=1, heads=2),
        text=TextConfig(vocab_size=560, context_length=16, width=32, depth=1, heads=2, end_token=0),
        dim=16,
    )
    base = Recipe(
        name="tiny",
        model=model,
        objective=hycoclip_objective(),
        data=DataConfig(threads=1, prefetch=2),
        optimiser=OptimiserConfig(lr=3e-3, warmup_steps=3),
        batch_size=16,
        steps=20,
        precision="float32",
        log_every=1,
        checkpoint_steps=10,
    )
    return base.replace(**changes)
