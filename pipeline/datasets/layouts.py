"""Adapters: from the published layout of a data set to images with labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hyco.pipeline.datasets.dataset_card import card
from hyco.pipeline.datasets.files import IMAGES, Files, missing
from hyco.pipeline.imaging.decode import ImageError, decode

PARTS = {
    "train": ("train", "training", "trainval"),
    "test": ("test", "val", "valid", "validation"),
}
HELD_OUT = 0.2  # of a set that is published in one piece


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A labelled set whose images are files or arrays; see pipeline.datasets.LabelledSet."""

    name: str
    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    fetch: Callable[[int], bytes | np.ndarray]
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB; ValueError naming the file where it cannot be decoded."""
        found = self.fetch(index)
        if isinstance(found, np.ndarray):
            return found
        try:
            return decode(found)
        except ImageError as error:
            raise ValueError(f"{self.name}: {self.keys[index]}: {error}") from error


def of_files(
    name: str,
    files: Files,
    classes: Sequence[str],
    members: Sequence[tuple[str, int]],
    names: Sequence[tuple[str, ...]] | None = None,
) -> Labelled:
    """From (file name, label) pairs; the readable names are the card's unless given."""
    known = card(name)
    keys = [key for key, _ in members]
    return Labelled(
        name,
        tuple(classes),
        tuple(names) if names is not None else tuple(known.readable(label) for label in classes),
        np.array([label for _, label in members], np.int64),
        lambda index: files.read(keys[index]),
        keys,
    )


def is_image(name: str) -> bool:
    """Whether a file name has an image's extension."""
    return name.lower().endswith(IMAGES)


def held_out(key: str) -> bool:
    """Whether a file of a set without parts is in the test part: by its name, so it never changes."""
    return hashed(key) < HELD_OUT


def hashed(key: str) -> float:
    """A number in [0, 1) by the hash of a file name."""
    return int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) / 2**32


def in_split(key: str, split: str) -> bool:
    """Whether a file of a set without parts is in a split."""
    return split == "all" or held_out(key) == (split == "test")


def class_folders(
    name: str,
    files: Files,
    prefix: str,
    keep: Callable[[str], bool] = lambda key: True,
) -> Labelled:
    """Images in folders named after their class, straight below a prefix."""
    classes = files.folders(prefix)
    members = [
        (key, label)
        for label, folder in enumerate(classes)
        for key in files.below(f"{prefix}{folder}/")
        if is_image(key) and keep(key[len(prefix) :])
    ]
    if not members:
        raise FileNotFoundError(f"{files.where} has no {prefix}CLASS/*.jpg")
    return of_files(name, files, classes, members)


def image_folder(name: str, files: Files, split: str) -> Labelled:
    """SPLIT/CLASS/*.jpg, at most two folders deep; or CLASS/*.jpg, of which a fifth is the test."""
    found = {part: _part(files, aliases) for part, aliases in PARTS.items()}
    prefixes = [prefix for part, prefix in found.items() if prefix is not None and split in (part, "all")]
    if prefixes:
        return joined([class_folders(name, files, prefix) for prefix in prefixes])
    if any(prefix is not None for prefix in found.values()):
        raise missing(files.where, PARTS[split])
    prefix = ""
    while len(only := files.folders(prefix)) == 1:
        prefix += only[0] + "/"
    if not only:
        raise FileNotFoundError(f"{files.where} has no CLASS/*.jpg")
    return class_folders(name, files, prefix, lambda key: in_split(key, split))


def joined(sets: Sequence[Labelled]) -> Labelled:
    """Several parts of one set with the same classes, as one."""
    first, *others = sets
    for other in others:
        if other.classes != first.classes:
            odd = sorted(set(first.classes) ^ set(other.classes))[:3]
            raise ValueError(f"{first.name}: the parts of the set differ in their classes: {', '.join(odd)}")
    starts = np.cumsum([0, *(len(part) for part in sets)])

    def fetch(index: int) -> bytes | np.ndarray:
        part = int(np.searchsorted(starts, index, "right")) - 1
        return sets[part].fetch(index - int(starts[part]))

    return Labelled(
        first.name,
        first.classes,
        first.names,
        np.concatenate([part.labels for part in sets]),
        fetch,
        [key for part in sets for key in part.keys],
    )


def _part(files: Files, aliases: Sequence[str]) -> str | None:
    """The prefix of the first folder with a part's name that holds class folders."""
    for alias in aliases:
        try:
            prefix = f"{files.anchor(alias + '/')}{alias}/"
        except FileNotFoundError:
            continue
        if files.folders(prefix):  # a class may be called "train"
            return prefix
    return None
