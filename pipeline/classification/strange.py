"""Out-of-distribution sets of an evaluation: labelled sets, captioned sources, and OpenOOD's near and far sets.

A set is spelled NAME:DIR, `alias=NAME:DIR`, or with the group in front: `near/NAME:DIR`, `far/alias=captioned:DIR`.
`openood:DIR` is a whole benchmark (Zhang et al., OpenOOD v1.5): DIR holds benchmark_imglist/KNOWN/test_SET.txt with
lines "path label" and the images in images_classic/, where KNOWN is the set of the training.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyco.pipeline.classification.in_memory import Images, load_captioned, load_images
from hyco.pipeline.datasets import LabelledSet, open_labelled
from hyco.pipeline.datasets.files import FolderFiles
from hyco.pipeline.datasets.layouts import Labelled
from hyco.pipeline.evaluation.coverage import Coverage, absent
from hyco.pipeline.sources.source import Source, open_source

GROUPS = ("near", "far")
CAPTIONED, OPENOOD = "captioned", "openood"
SPELLING = re.compile(r"(?:(near|far)/)?(?:(\w+)=)?(\w+):(.+)")
LISTS, IMAGES = "benchmark_imglist", "images_classic"
_FAR = ("mnist", "svhn", "texture", "places365")
BENCHMARKS: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"near": ("cifar100", "tin"), "far": _FAR},
    "cifar100": {"near": ("cifar10", "tin"), "far": _FAR},
}
"""OpenOOD's sets by the set of the training."""


@dataclass(frozen=True)
class Strange:
    """An out-of-distribution set; `group` is near, far or None, `lost` the number of listed images that are missing."""

    name: str
    group: str | None
    found: LabelledSet | Source
    lost: int = 0


def open_strange(spec: str, known: str, least: float = 0.0) -> list[Strange]:
    """Open the sets of one spelling; reads no images.

    Args:
        spec: see the module.
        known: name of the set of the training.
        least: minimum fraction of the images of an OpenOOD list that must exist.

    Raises:
        FileNotFoundError: no such set.
        ValueError: another spelling, a training set that OpenOOD has no sets for, too few images of a list.
    """
    parts = SPELLING.fullmatch(spec)
    if not parts or (parts[2] in GROUPS):
        raise ValueError(
            f"out-of-distribution set '{spec}' is not NAME:DIR, such as tiny_imagenet:DIR, scenes=captioned:DIR, "
            "near/cifar100:DIR or openood:DIR; near and far are no names"
        )
    group, alias, name, place = parts.groups()
    if name == OPENOOD:
        if group or alias:
            raise ValueError(f"'{spec}': openood:DIR has near and far sets with names of their own")
        return _openood(Path(place), known, least)
    found = open_source(place) if name == CAPTIONED else open_labelled(f"{name}:{place}", "test")
    return [Strange(alias or name, group, found)]


def _openood(root: Path, known: str, least: float) -> list[Strange]:
    if known not in BENCHMARKS:
        raise ValueError(
            f"OpenOOD has near and far sets for {', '.join(BENCHMARKS)}, not for {known}: give sets one by one, "
            "such as near/NAME:DIR"
        )
    return [
        Strange(name, group, *_listed(root, known, name, least))
        for group, names in BENCHMARKS[known].items()
        for name in names
    ]


def _listed(root: Path, known: str, name: str, least: float) -> tuple[Labelled, int]:
    """The existing images of a list, and the number of missing ones."""
    path = root / LISTS / known / f"test_{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder that holds {LISTS}/ and {IMAGES}/")
    keys = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        key, space, label = line.strip().rpartition(" ")
        if not space or not re.fullmatch(r"-?\d+", label):
            raise ValueError(f"{path}, line {number}: {line!r} is not the path of an image and its label")
        keys.append(key)
    gone = absent([root / IMAGES / key for key in keys])
    Coverage(f"images of {path}", len(keys), len(gone), first=str(gone[0]) if gone else "").require(least)
    lost = set(gone)
    there = [key for key in keys if root / IMAGES / key not in lost]
    if not there:
        raise FileNotFoundError(f"{path} names no image that exists below {root / IMAGES}")
    files = FolderFiles(root / IMAGES)
    labels = np.zeros(len(there), np.int64)
    return Labelled(name, ("unknown",), (("unknown",),), labels, lambda n: files.read(there[n]), there), len(
        gone
    )


def load_strange(
    one: Strange, size: int, limit: int, seed: int, least: float
) -> tuple[Images, dict[str, int]]:
    """(images, counts) of a set, at most `limit` images, drawn by seed from a labelled set.

    The counts are "listed", the images of a labelled set, and "missing"; or "unusable", samples of a captioned source.
    ValueError when the usable fraction of a captioned source is below `least`.
    """
    if isinstance(one.found, Source):
        images, unusable = load_captioned(one.found, size, limit)
        Coverage(f"samples of {one.name}", len(images) + unusable, unusable=unusable).require(least)
        return images, {"unusable": unusable}
    index = np.random.default_rng(seed).permutation(len(one.found))[:limit]
    counts = {"listed": len(one.found) + one.lost} | ({"missing": one.lost} if one.lost else {})
    return load_images(one.found, size, np.sort(index)), counts
