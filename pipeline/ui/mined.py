"""The pages of what was mined, whether or not it was packed: every image of a folder of detections, with every box.

    /detections                 the mining configurations of the home
    /detections/DIGEST          the images of one of them, filtered, without any threshold

Units are read as a page needs them, by their recorded counts. The images come from the source: where a unit of it
cannot be read here, the page shows the boxes on a blank ground.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import Unit, open_unit
from hyco.pipeline.ui.review import MOST, SAMPLES, SIDE, Filter, links_of, page_of, shown
from hyco.storage.detections import read_detections
from hyco.storage.home import Home, UnitResults
from hyco.storage.objects import open_object
from hyco.storage.sample import Failure, Part, TrainingSample
from hyco.storage.sealed import unseal
from hyco.storage.summary import total
from hyco.storage.version_heads import readable

BOXES = 100  # boxes of an image that are shown, the best ones
_ASKED = ("phrase", "low", "high", "rule", "origin", "key", "marked")
_SIDES = ("x0", "y0", "x1", "y1")
_BLANK = 235  # grey of an image that is not at hand


class Mined:
    """The content of these pages of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._tables = lru_cache(maxsize=4)(self._table)

    def configurations(self) -> dict[str, Any]:
        """The content of the list: every mining configuration, with its counts and the versions made from it.

        A damaged record is named, under "lost", and not counted.
        """
        versions: dict[str, list[str]] = {}
        for head in readable(self.home.versions)[0]:
            versions.setdefault(head.version.digests.get("mine", ""), []).append(head.name)
        found = []
        for results in self.home.all_detections():
            records, damaged = results.readable_summary()
            counts = {name: total(records, name) for name in ("images", "boxes")}
            digest = _digest_of(results)
            config = self._config(results)
            told = {name: str(config.get(name, "")) for name in ("source", "grounder")}
            found.append(
                {
                    "digest": digest,
                    "units": records.num_rows,
                    **counts,
                    **told,
                    "versions": versions.get(digest, []),
                    "lost": [str(error) for error in damaged],
                }
            )
        return {"mined": found}

    def samples(self, digest: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """The content of a page of images; ValueError for an unknown digest or an unreadable query."""
        results, wanted = self._results(digest), Filter.of(asked)
        stones, names = self.home.deletions.tombstones(), self.home.marks.names()
        marks = names | {mark.partition("-")[0] for mark in names}
        records, damaged = results.readable_summary()
        rows = records.select(["unit", "path", "sha256", "images", "detections"]).to_pylist()
        blocks = [(row["images"], row) for row in sorted(rows, key=lambda row: (row["path"], row["unit"]))]

        def read(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], TrainingSample] | None]:
            for sample in self._samples(row["detections"]):
                yield None if stones.names(sample.meta, sample.key) else (row, sample)

        found = page_of(
            blocks, read, lambda item: item is not None and wanted.keeps(item[1], marks), asked, SAMPLES
        )
        items = [(position, *item) for position, item in found.items if item is not None]
        config = self._config(results)
        images = self._images(config, [(row, sample.key) for _, row, sample in items])
        here = f"/detections/{_digest_of(results)}"
        return {
            "title": f"Detections {_digest_of(results)}",
            "about": f"{config.get('source', '')} by {config.get('grounder', '')}, before any threshold",
            "lost": [str(error) for error in damaged],
            "here": here,
            "version": None,
            "split": "",
            "splits": {},
            "filter": wanted,
            "asked": asked,
            "page": found,
            "links": links_of(found, {name: asked[name] for name in _ASKED if asked.get(name)}),
            "samples": [
                shown(_pictured(sample, images.get(sample.key)), position, None, wanted, names, None)
                for position, _, sample in items
            ],
            "most": MOST,
            "packed": True,
        }

    def _results(self, digest: str) -> UnitResults:
        found = [results for results in self.home.all_detections() if _digest_of(results).startswith(digest)]
        if len(found) != 1:
            known = ", ".join(map(_digest_of, self.home.all_detections())) or "none"
            raise ValueError(f"{len(found)} detections begin with {digest!r}; there are {known}")
        return found[0]

    def _config(self, results: UnitResults) -> dict[str, Any]:
        try:
            return unseal(self.home.store.read_bytes(results.config))
        except (FileNotFoundError, ValueError):  # the boxes are there without it
            return {}

    def _samples(self, path: str) -> Iterator[TrainingSample]:
        """The images of a table in its order, without their bytes; `meta` has their size."""
        table = self._tables(path)
        keys = table["key"].to_numpy()
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, int)
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            yield _sample(table.slice(start, end - start).to_pylist())

    def _table(self, path: str) -> pa.Table:
        with open_object(self.home.store, path) as file:
            return read_detections(file).combine_chunks()

    def _images(self, config: dict[str, Any], wanted: list[tuple[dict[str, Any], str]]) -> dict[str, bytes]:
        """The bytes of images by key, of the units that can be read."""
        found: dict[str, bytes] = {}
        units = {row["unit"]: row for row, _ in wanted}
        for name, row in units.items():
            missing = {key for other, key in wanted if other["unit"] == name}
            unit = Unit(row["unit"], row["path"], row["sha256"])
            try:
                limits, columns = Limits(**config.get("limits", {})), Columns(**config.get("columns", {}))
                source = open_unit(config.get("source", ""), unit, limits, columns)
                for sample in source.samples(unit, _ignore):
                    if sample.key in missing:
                        found[sample.key] = sample.image
                        missing.discard(sample.key)
                    if not missing:
                        break
            except (OSError, ValueError):  # moved, replaced or not on this machine
                continue
        return found


def _digest_of(results: UnitResults) -> str:
    return results.folder.rpartition("/")[2]


def _ignore(failure: Failure) -> None:
    """Take no note: the failures of a unit were recorded when it was mined."""


def _sample(rows: list[dict[str, Any]]) -> TrainingSample:
    captions = {row["caption"]: row["text"] for row in rows}
    boxed = [row for row in rows if row["score"] is not None and row["x0"] is not None]
    boxed.sort(key=lambda row: -row["score"])
    parts: dict[tuple[Any, ...], Part] = {}
    for row in boxed:
        x0, y0, x1, y1 = (min(max(float(row[side]), 0.0), 1.0) for side in _SIDES)
        box = (x0, y0, x1, y1)
        if (row["phrase"], box) in parts or len(parts) == BOXES:  # one box of a phrase in several captions
            continue
        origin = row["detector"] if row["detector"].startswith("source:") else ""
        span = (row["span_start"] or 0, row["span_end"] or 0)
        rule = row["rule"] or ""
        parts[row["phrase"], box] = Part(
            b"", row["phrase"], box, row["score"], span, row["caption"], rule, origin
        )
    size = {"width": rows[0]["width"], "height": rows[0]["height"]}
    return TrainingSample(
        rows[0]["key"], b"", tuple(captions[n] for n in sorted(captions)), tuple(parts.values()), size
    )


def _pictured(sample: TrainingSample, image: bytes | None) -> TrainingSample:
    """The sample with its image, or with a blank one of its shape."""
    if image is None:
        long = max(sample.meta["width"], sample.meta["height"], 1)
        width, height = (max(1, SIDE * sample.meta[side] // long) for side in ("width", "height"))
        image = encode_jpeg(np.full((height, width, 3), _BLANK, np.uint8))
    return TrainingSample(sample.key, image, sample.captions, sample.parts, {})
