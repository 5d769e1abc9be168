"""What a detector has found already: an image that was asked for the same phrases is not shown to it again.

The key of the work is a hash of the image's bytes, the detector's digest and the phrases that are asked of the image,
in order. The phrases are what the captions and the rules for nouns come to: a caption in other words with the same
phrases, or other rules that find the same ones, ask for nothing new. All phrases of an image are in the key since a
detector reads them in one prompt, in which they influence each other: what is taken over is what would be found.

The results themselves lie in the detections files. An index (storage.derived) has, for each file, the keys in it; it is
made of the files again wherever it lacks one. An index entry is never believed: the file is opened by its hash, and
image, detector and phrases are compared.
"""

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining.grounder import SOURCE
from hyco.pipeline.mining.noun_phrases import Phrase
from hyco.pipeline.runtime.progress import Progress
from hyco.storage.derived import Derived
from hyco.storage.detections import read_detections
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import open_object
from hyco.storage.sealed import unseal
from hyco.storage.store import Store

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("keys", pa.list_(pa.int64()))])
_SAME = ("per_phrase", "dtype")  # options that decide, beside the detector, what it returns for a prompt
_READS = 8
_TABLES = 8  # detections files held in memory
_INDEXED = 256  # files read between two additions to an index


@dataclass(frozen=True, slots=True)
class Known:
    """What was found in one image: the size in pixels, and the boxes."""

    height: int
    width: int
    detection: Detection


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A segment of an index: keys int64 [N] in order, and for each the number of its file in `paths`."""

    keys: np.ndarray
    files: np.ndarray
    paths: list[str]


class KnownDetections:
    """The results of a detector in all detections of a home that were made with equal options.

    Args:
        home: the home.
        mined: where the present results go.
        options: the resolved configuration, as `config.json` has it.
    """

    def __init__(self, home: Home, mined: UnitResults, options: dict[str, Any]) -> None:
        self.home, self.mined, self.options = home, mined, options
        self._segments: dict[tuple[str, str], _Sorted] = {}

    def folders(self) -> list[UnitResults]:
        """Return the present results, and those of other configurations that serve as well."""
        others = [one for one in self.home.all_detections() if one.folder != self.mined.folder]
        wanted = [self.options.get(name) for name in _SAME]
        return [self.mined, *(one for one in others if _options(one.store.url, one.config) == wanted)]

    def detector(self, weights: str) -> str:
        """Return the digest of the detector that a configuration calls so: a name on the hub says nothing of it."""
        if weights.startswith("hub:"):
            for folder in self.folders():
                for unit in folder.units()[:1]:
                    return (folder.record(unit) or {}).get("detector", weights)
        return weights

    def refresh(self) -> None:
        """Index the detections files that no worker has indexed: of an older Hyco, or of a killed worker."""
        for folder in self.folders():
            index = _index(folder)
            files = set(folder.summary()["detections"].to_pylist()) - {None}
            missing = sorted(files - set(index.rows()["id"].to_pylist()))
            with (
                Progress(len(missing), "index", "files")
                if len(missing) > _INDEXED
                else nullcontext() as progress
            ):
                for first in range(0, len(missing), _INDEXED):
                    part = missing[first : first + _INDEXED]
                    with ThreadPoolExecutor(_READS) as pool:
                        index.add([row for row in pool.map(self._row, part) if row])
                    if progress:
                        progress.advance(len(part))

    def add(self, path: str, table: pa.Table) -> None:
        """Index a detections file that was just recorded."""
        _index(self.mined).add([{"id": path, "keys": work_keys(table)}])

    def look(self) -> None:
        """Learn what other workers have indexed since the last time."""
        held: dict[tuple[str, str], _Sorted] = {}
        for folder in self.folders():
            index = _index(folder)
            names = index.names()
            known = {name for where, name in self._segments if where == folder.folder}
            for name in known.intersection(names):
                held[folder.folder, name] = self._segments[folder.folder, name]
            for name, rows in index.segments(known).items():
                held[folder.folder, name] = _sorted(rows)
        self._segments = held

    def find(self, detector: str, asked: Sequence[tuple[str, list[str]]]) -> list[Known | None]:
        """Return what is known of each image.

        Args:
            detector: its digest.
            asked: sha256 of the image's bytes, and the phrases to ask for.
        """
        keys = _keys(detector, asked)
        places: dict[str, list[int]] = {}  # detections file -> images
        left = np.ones(len(keys), bool)
        for one in self._segments.values():
            at = np.searchsorted(one.keys, keys)
            hit = left & (one.keys.take(at, mode="clip") == keys) if len(one.keys) else np.zeros_like(left)
            left &= ~hit
            for number in np.flatnonzero(hit):
                places.setdefault(one.paths[one.files[at[number]]], []).append(int(number))
        found: list[Known | None] = [None] * len(asked)
        for path, numbers in places.items():
            rows = _rows(self.home.store.url, path, detector, [asked[number][0] for number in numbers])
            for number in numbers:
                found[number] = _known(rows.get(asked[number][0], []), asked[number][1])
        return found

    def among(self, detector: str, asked: Sequence[tuple[str, list[str]]]) -> list[tuple[int, bool]]:
        """Return the key of each image and whether the index has it, which is what `find` will find of intact files."""
        keys = _keys(detector, asked)
        there = np.zeros(len(keys), bool)
        for one in self._segments.values():
            there |= np.isin(keys, one.keys)
        return list(zip(keys.tolist(), there.tolist(), strict=True))

    def _row(self, path: str) -> dict[str, Any] | None:
        try:
            with open_object(self.home.store, path) as file:
                return {"id": path, "keys": work_keys(read_detections(file))}
        except ValueError:
            return None  # nothing of it is taken over; `hyco verify` names it


def work_keys(table: pa.Table) -> list[int]:
    """Return the keys of the images in a detections table."""
    names = ("image_sha256", "detector", "phrase")
    codes = [table[name].combine_chunks().dictionary_encode().indices for name in names]
    numbers = np.stack([pc.fill_null(code, -1).to_numpy(zero_copy_only=False) for code in codes])
    begins = np.ones(table.num_rows, bool)  # the boxes of a phrase are rows that follow each other
    begins[1:] = (numbers[:, 1:] != numbers[:, :-1]).any(0)
    first = table.select(names).filter(pa.array(begins))
    asked: dict[tuple[str, str], dict[str, None]] = {}
    for image, detector, phrase in zip(*(first[name].to_pylist() for name in names), strict=True):
        phrases = asked.setdefault((image, detector), {})
        if phrase is not None:
            phrases.setdefault(phrase.lower())
    return [_key(image, detector, list(phrases)) for (image, detector), phrases in asked.items()]


def phrases_to_ask(captions: Sequence[Sequence[Phrase]]) -> list[str]:
    """Return the texts that are asked of an image: one that several captions share once; no backend knows case."""
    return list(dict.fromkeys(phrase.text.lower() for phrases in captions for phrase in phrases))


def _keys(detector: str, asked: Sequence[tuple[str, list[str]]]) -> np.ndarray:
    return np.array([_key(image, detector, phrases) for image, phrases in asked], np.int64)


def _key(image: str, detector: str, phrases: list[str]) -> int:
    text = "\0".join((image, detector, *phrases)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


_Rows = list[tuple[Any, ...]]
_COLUMNS = ("caption", "phrase", "span_start", "x0", "y0", "x1", "y1", "score", "height", "width")


def _rows(url: str, path: str, detector: str, images: list[str]) -> dict[str, _Rows]:
    """Return a detector's rows of some images in a detections file, by the images' sha256 and in order."""
    table = _table(url, path)
    if table is None:
        return {}
    own = table.filter((pc.field("detector") == detector) & pc.field("image_sha256").isin(images))
    found: dict[str, _Rows] = {}
    for image, *row in zip(*(own[name].to_pylist() for name in ("image_sha256", *_COLUMNS)), strict=True):
        found.setdefault(image, []).append(tuple(row))
    return found


@functools.lru_cache(maxsize=_TABLES)
def _table(url: str, path: str) -> pa.Table | None:
    """Return a detections file; None for one that is gone or damaged."""
    try:
        with open_object(Store(url), path) as file:
            return read_detections(file)
    except ValueError:
        return None


def _known(rows: _Rows, phrases: list[str]) -> Known | None:
    """Return the detection that the rows of one image were written from; None when other phrases were asked."""
    if not rows or list(dict.fromkeys(row[1].lower() for row in rows if row[1] is not None)) != phrases:
        return None
    place = {text: number for number, text in enumerate(phrases)}
    first: dict[
        str, tuple[int, int]
    ] = {}  # a text that comes again, in any caption, has equal rows each time
    boxes: list[tuple[float, ...]] = []
    owners: list[int] = []
    for caption, phrase, start, *numbers, _, _ in rows:
        if phrase is None or numbers[0] is None:
            continue
        if first.setdefault(phrase.lower(), (caption, start)) == (caption, start):
            boxes.append(tuple(numbers))
            owners.append(place[phrase.lower()])
    numbers = np.array(boxes, np.float32).reshape(-1, 5)
    height, width = rows[0][-2:]
    return Known(height, width, Detection(numbers[:, :4], numbers[:, 4], np.array(owners, np.int64)))


def _sorted(rows: pa.Table) -> _Sorted:
    held = rows["keys"].combine_chunks()
    keys = pc.list_flatten(held).to_numpy(zero_copy_only=False).astype(np.int64)
    files = pc.list_parent_indices(held).to_numpy(zero_copy_only=False).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    return _Sorted(keys[order], files[order], rows["id"].to_pylist())


def _index(mined: UnitResults) -> Derived:
    return Derived(mined.store, f"images-1/{mined.folder.rpartition('/')[2]}", _SCHEMA)


@functools.lru_cache(maxsize=1 << 10)
def _options(url: str, path: str) -> list[Any] | None:
    """Return the options that decide what a detector returns; None without a readable configuration or a detector."""
    try:
        made = unseal(Store(url).read_bytes(path))
    except (FileNotFoundError, ValueError):
        return None
    return None if made.get("grounder") == SOURCE else [made.get(name) for name in _SAME]
