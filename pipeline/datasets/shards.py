"""Sets in webdataset shards: SPLIT/*.tar with KEY.jpg and KEY.cls, and classnames.txt (CLIP_benchmark)."""

from pathlib import Path

import numpy as np

from hyco.pipeline.datasets.files import TarFiles
from hyco.pipeline.datasets.layouts import PARTS, Labelled, is_image
from hyco.pipeline.datasets.wordnet import read_wnids

LAYOUT = "classnames.txt and SPLIT/*.tar with KEY.jpg, KEY.cls"


def shard_files(root: Path, split: str) -> list[Path]:
    """Tars of a split; none without classnames.txt."""
    if not (root / "classnames.txt").is_file():
        return []
    found = []
    for part in ("train", "test") if split == "all" else (split,):
        own = (sorted((root / alias).glob("*.tar")) for alias in PARTS[part])
        found += next((tars for tars in own if tars), [])
    return found


def read_shards(name: str, root: Path, split: str) -> Labelled:
    """A split in shards; ValueError for an image without .cls or with an invalid class."""
    names = [
        line.strip()
        for line in (root / "classnames.txt").read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    members: list[tuple[TarFiles, str, int]] = []
    for path in shard_files(root, split):
        tar = TarFiles(path)
        for key in filter(is_image, tar.below("")):
            mark = key[: key.rindex(".")] + ".cls"
            text = tar.read(mark).decode("ascii", "replace").strip() if tar.has(mark) else "no .cls"
            if not text.isdigit() or int(text) >= len(names):
                raise ValueError(
                    f"{path}: {key} has the class {text!r}; classnames.txt has {len(names)} classes"
                )
            members.append((tar, key, int(text)))
    wnids = read_wnids()
    return Labelled(
        name,
        tuple(wnids if name == "imagenet" and len(names) == len(wnids) else names),
        tuple((own,) for own in names),
        np.array([label for _, _, label in members], np.int64),
        lambda index: members[index][0].read(members[index][1]),
        [f"{tar.path.name}:{key}" for tar, key, _ in members],
    )
