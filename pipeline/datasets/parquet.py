"""Sets as Hugging Face stores them: SPLIT-*.parquet with an image and a label column, class names in the schema."""

import json
import re
import threading
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hyco.pipeline.datasets.dataset_card import card
from hyco.pipeline.datasets.layouts import PARTS, Labelled
from hyco.pipeline.datasets.wordnet import common_names, read_wnids

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "pixel_values")
LABEL_COLUMNS = ("fine_label", "label", "labels", "cls", "target", "class")
NUMBERED = re.compile(r"(?P<head>.+)-\d+-of-(?P<count>\d+)(-[0-9a-f]+)?\.parquet")
LAYOUT = "*/SPLIT-*.parquet with columns image and label"


def parquet_files(root: Path, split: str) -> list[Path]:
    """Files of a split, at most two folders deep: their name or their folder's begins with the split's.

    A part published without labels (ImageNet's test) is used for a split only where there is no other.
    """
    found = sorted(path for level in ("", "*/", "*/*/") for path in root.glob(level + "*.parquet"))
    parts = ("train", "test") if split == "all" else (split,)
    wanted = []
    for part in parts:
        named = [[path for path in found if alias in _marks(path, root)] for alias in PARTS[part]]
        named = [paths for paths in named if paths]
        wanted += next((paths for paths in named if not _withheld(paths)), named[0] if named else [])
    return wanted


def read_parquet(name: str, root: Path, split: str) -> Labelled:
    """A split of a set in parquet; FileNotFoundError without such files, ValueError for other columns."""
    paths = parquet_files(root, split)
    if not paths:
        raise FileNotFoundError(f"{root} has no {split} parquet files")
    _whole(paths)
    rows = _Rows(paths)
    names = _class_names(rows.schema, rows.label)
    column = rows.labels()
    if not names:
        if not pa.types.is_string(rows.schema.field(rows.label).type):
            raise ValueError(f"{paths[0]}: column {rows.label} has numbers and the schema no names for them")
        names = sorted(set(column) - {None})
        number = {label: index for index, label in enumerate(names)}
        column = [number.get(label) for label in column]
    keys = [f"{path.name}[{i}]" for path, n in zip(paths, rows.counts, strict=True) for i in range(n)]
    for key, label in zip(keys, column, strict=True):
        if label not in range(len(names)):
            raise ValueError(f"{root}: {key} has the label {label}; there are {len(names)} classes")
    labels = np.array(column, np.int64)
    wnids = read_wnids()
    if name == "imagenet" and len(names) == len(wnids):  # published in the order of the wnids
        told = [common_names([word.strip() for word in own.split(",")]) for own in names]
        classes: list[str] = wnids
    else:
        classes, told = list(names), [card(name).readable(label) for label in names]
    return Labelled(name, tuple(classes), tuple(told), labels, rows.image, keys)


def _whole(paths: list[Path]) -> None:
    """ValueError when files are missing by Hugging Face's numbering: 00000-of-00004."""
    groups: dict[tuple[Path, str, str], int] = {}
    for path in paths:
        if named := NUMBERED.fullmatch(path.name):
            group = path.parent, named["head"], named["count"]
            groups[group] = groups.get(group, 0) + 1
    for (folder, head, count), there in groups.items():
        if there < int(count):
            raise ValueError(
                f"{folder} has {there} of the {int(count)} files of {head}-*-of-{count}: fetch the rest, or rename "
                f"those that are there ({head}-a.parquet) to use only them"
            )


class _Rows:
    """Rows of several files; the last row group is cached, since images are read in order."""

    def __init__(self, paths: list[Path]) -> None:
        try:
            self.files = [pq.ParquetFile(path) for path in paths]
        except pa.ArrowInvalid as error:
            raise ValueError(f"{paths[0].parent}: {error}") from error
        self.schema = self.files[0].schema_arrow
        self.picture = self._column(IMAGE_COLUMNS, paths[0])
        self.label = self._column(LABEL_COLUMNS, paths[0])
        self.counts = [file.metadata.num_rows for file in self.files]
        groups = [
            (file, group, file.metadata.row_group(group).num_rows)
            for file in self.files
            for group in range(file.metadata.num_row_groups)
        ]
        self.groups = [(file, group) for file, group, _ in groups]
        self.starts = [0, *accumulate(count for _, _, count in groups)]
        self._held: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()

    def labels(self) -> list[Any]:
        return [label for file in self.files for label in file.read([self.label]).column(0).to_pylist()]

    def image(self, index: int) -> bytes:
        group = bisect_right(self.starts, index) - 1
        with self._lock:
            if self._held[0] != group:
                file, own = self.groups[group]
                self._held = (group, file.read_row_group(own, columns=[self.picture]).column(0))
            value = self._held[1][index - self.starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"row {index} holds no image bytes: embed the images when writing the parquet")
        return data

    def _column(self, wanted: tuple[str, ...], path: Path) -> str:
        found = next((name for name in wanted if name in self.schema.names), None)
        if found is None:
            raise ValueError(f"{path} has the columns {self.schema.names}, none of {', '.join(wanted)}")
        return found


def _withheld(paths: list[Path]) -> bool:
    """Whether no row of the files has a label: it is -1, or null."""
    return all(label in (-1, None) for path in paths for label in _Rows([path]).labels())


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    held = (schema.metadata or {}).get(b"huggingface")
    try:
        return list(json.loads(held)["info"]["features"][label]["names"]) if held else []
    except (ValueError, KeyError, TypeError):
        return []


def _marks(path: Path, root: Path) -> set[str]:
    """First words of the file's name and its folders' names: test-00000-of-00001.parquet is of "test"."""
    parts = path.relative_to(root).parts
    return {part.replace("_", "-").partition("-")[0].removesuffix(".parquet").lower() for part in parts}
