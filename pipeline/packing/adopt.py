"""Training shards that exist already become a dataset version: read, verified, hashed and listed, not packed.

They must have the published HyCoCLIP layout (docs/shards.md), as processed GRIT and Hyco's own shards have. On one
local filesystem a shard gets a second name in the home (a hard link); elsewhere it is copied.
"""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from hyco.pipeline.config import digest
from hyco.pipeline.imaging.decode import ImageError, inspect
from hyco.pipeline.packing.dataset_gate import QualityConfig, gate
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.pipeline.sources.listing import Listing, absolute_source, list_source
from hyco.storage.home import Home
from hyco.storage.layout import SHARDS
from hyco.storage.shard import read_shard
from hyco.storage.store import Object, Store
from hyco.storage.versions import ShardRef, Version, shard_ref

_READERS = 4


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    sha256: str
    counts: Counter[str]


def adopt(
    source: str,
    home: Home,
    holdout: float = 0.1,
    copy: bool = False,
    config: QualityConfig | None = None,
    listener: Listener | None = None,
) -> Version:
    """Make a dataset version of training shards, and make it `latest` if it is fit.

    Args:
        source: the shards: a folder of tars, a pattern, a range or a list, see pipeline.sources.listing.
        home: where the version is listed.
        holdout: fraction of the shards in the split "val", whole shards, the last ones; at least one of several shards
            where it is above 0.
        copy: copy the shards, also where a hard link would do.
        config: what the version must satisfy. The shards are not read once more for it.
        listener: gets the progress, see pipeline.runtime.progress.

    Returns:
        The version. Its counts have images, captions, parts, and `partless` images, which the published loader refuses.

    Raises:
        ValueError: naming the shard that is torn, has another layout, or holds an image with an unreadable header.
        QualityError: the version was quarantined, see pipeline.packing.dataset_gate.
    """
    listed = list_source(source)
    if listed.kind != ".tar" or any(
        not path.lower().partition("?")[0].endswith(".tar") for path in listed.files
    ):
        raise ValueError(
            f"{source} holds {listed.files[0]}: training shards are plain .tar files (gunzip them first)"
        )
    with (
        Progress(len(listed.files), "adopt", "shards", listener) as progress,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        found: list[_Found] = []
        for one in pool.map(lambda path: _read(listed.store, path), listed.files):
            found.append(one)
            progress.advance(1)
    unique = list({one.sha256: one for one in found}.values())
    held = max(1, round(len(unique) * holdout)) if holdout > 0 and len(unique) > 1 else 0
    shards: dict[str, list[ShardRef]] = {"train": [], "val": []}
    counts: Counter[str] = Counter(
        dict.fromkeys(("images", "captions", "parts", "train_images", "val_images"), 0)
    )
    for number, one in enumerate(unique):
        split = "val" if number >= len(unique) - held else "train"
        made = _commit(home.store, listed, one, copy)
        shards[split].append(shard_ref(made, one.counts["images"], one.counts["parts"]))
        counts.update({**one.counts, f"{split}_images": one.counts["images"]})
    described = {"source": absolute_source(source, Path.cwd()), "holdout": holdout}
    version = home.versions.publish(
        {"adopt": described}, {"adopt": digest(described)}, shards, dict(counts), latest=False
    )
    gate(home, version, (config or QualityConfig()).replace(verify=False))
    return version


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hasher = file, hashlib.sha256()

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        self.hasher.update(data)
        return data


def _read(store: Store, path: str) -> _Found:
    """Read a shard to its end, look at every header, and count."""
    counts: Counter[str] = Counter(partless=0)
    with store.open(path) as opened:
        file = _Hashed(opened)
        for sample in read_shard(cast(BinaryIO, file), path):
            for name, image in (("child.jpg", sample.image), *((p.phrase, p.image) for p in sample.parts)):
                try:
                    inspect(image)
                except ImageError as error:
                    raise ValueError(
                        f"{path}: sample {sample.key}: {name}: {error}: make the shard again"
                    ) from None
            counts.update(
                images=1, captions=len(sample.captions), parts=len(sample.parts), partless=not sample.parts
            )
    if not counts["images"]:
        raise ValueError(f"{path} holds no sample: leave it out")
    return _Found(path, file.hasher.hexdigest(), counts)


def _commit(store: Store, listed: Listing, one: _Found, copy: bool) -> Object:
    if listed.store.local and store.local and not copy:
        made = store.link(SHARDS, ".tar", listed.store.path(one.path), one.sha256)
        if made is not None:
            return made

    def write(file: BinaryIO) -> None:
        with listed.store.open(one.path) as source:
            while block := source.read(1 << 20):
                file.write(block)

    made = store.commit(SHARDS, ".tar", write)
    if made.sha256 != one.sha256:
        raise ValueError(f"{one.path} changed while it was read: start again when nothing writes to it")
    return made
