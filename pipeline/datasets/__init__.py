"""Labelled image sets, read in place: `open_labelled("cifar10:data/cifar10", "test")`.

A set is named NAME:DIR. NAME picks the adapter, which knows the published layouts of the set; DIR is its folder, or its
tar, which is read without extraction. Prompts and readable names of a set are in sets/NAME.toml.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from hyco.pipeline.datasets.adapters import ADAPTERS, Adapter
from hyco.pipeline.datasets.files import Files, TarFiles, archives, open_places
from hyco.pipeline.datasets.layouts import Labelled
from hyco.pipeline.datasets.paper_splits import PAPER_READERS
from hyco.pipeline.datasets.parquet import LAYOUT, parquet_files, read_parquet
from hyco.pipeline.datasets.shards import LAYOUT as SHARDS
from hyco.pipeline.datasets.shards import read_shards, shard_files

SPLITS = ("train", "test", "all")


@runtime_checkable
class LabelledSet(Protocol):
    """Images with one label each.

    Attributes:
        name: of the set, such as "cifar10".
        classes: ids of the classes, in label order.
        names: readable names of each class, at least one.
        labels: int64 [N].
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def names(self) -> tuple[tuple[str, ...], ...]: ...  # noqa: D102
    @property
    def labels(self) -> np.ndarray: ...  # noqa: D102

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB; ValueError naming the file where it cannot be decoded."""
        ...


def open_labelled(spec: str, split: str = "test", *, paper: bool = False) -> LabelledSet:
    """Open the split of a set.

    Args:
        spec: NAME:DIR, such as "cifar10:data/cifar10"; NAME "folder" is any folder of class folders.
        split: "train", "test" or "all". Where a set publishes no labelled test part, its validation part is the test;
            where it publishes no parts, a fifth is the test, selected by the hash of the file name.
        paper: take the parts of the published evaluations (pipeline.datasets.paper_splits) where a set publishes none;
            they follow from the names of the files, so parquet and shards of such a set are not read.

    Raises:
        ValueError: not NAME:DIR, an unknown name or split, files that contradict the layout.
        FileNotFoundError: no such DIR, or a file of the layout is missing; the text names both.
    """
    name, colon, place = spec.partition(":")
    if not colon or not place:
        raise ValueError(f"'{spec}' is not NAME:DIR, such as cifar10:data/cifar10")
    adapter = ADAPTERS.get(name)
    if adapter is None:
        near = difflib.get_close_matches(name, ADAPTERS, 1)
        hint = f"nearest: {near[0]}" if near else f"there are {', '.join(sorted(ADAPTERS))}"
        raise ValueError(
            f"no labelled set is called {name!r} ({hint}); folder:DIR reads any folder of classes"
        )
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    root = Path(place)
    if paper and name in PAPER_READERS:
        chosen = Adapter(PAPER_READERS[name], adapter.layout)
        return _first(open_places(root), root, chosen, name, split, packed=False)
    return _first(open_places(root), root, adapter, name, split)


def _first(
    places: list[Files], root: Path, adapter: Adapter, name: str, split: str, packed: bool = True
) -> Labelled:
    """From shards or parquet files, the folder itself, or an archive in it when the folder has not the layout."""

    def of(place: Callable[[], Files]) -> Callable[[], Labelled]:
        return lambda: adapter.read(place(), split)

    trials = [of(lambda place=place: place) for place in places]
    if packed and root.is_dir() and parquet_files(root, split):
        trials.insert(0, lambda: read_parquet(name, root, split))
    if packed and root.is_dir() and shard_files(root, split):
        trials.insert(0, lambda: read_shards(name, root, split))
    trials += [of(lambda path=path: TarFiles(path)) for path in archives(root)]
    failed: FileNotFoundError | None = None  # the last error: that of an archive, where there is one
    for trial in trials:
        try:
            found = trial()
        except FileNotFoundError as error:
            failed = error
            continue
        except (KeyError, IndexError) as error:  # a list names an entry that another list does not have
            raise ValueError(f"{name}:{root}: its lists do not match ({error!r}): fetch it again") from error
        if not len(found):
            raise ValueError(f"{name}:{root} has no images in its {split} split")
        return found
    raise FileNotFoundError(
        f"{name}: {failed}; expected layout: {adapter.layout}; {LAYOUT}; or {SHARDS}"
    ) from failed
