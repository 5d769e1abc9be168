"""The pages on which a person looks at what was mined: all samples of a version, its failures, and the marks.

    /versions/NAME/samples      its samples, filtered, with their boxes before and after the thresholds
    /versions/NAME/failures     its failures, filtered by code
    /marks                      everything that is marked as bad

A page reads the shards and tables that it needs, by their recorded counts. With a filter it looks at MOST samples and
links to the next ones.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.compute

from hyco.pipeline.evaluation.report.examples import COLOURS, clip, picture
from hyco.pipeline.packing.pack import SPLITS
from hyco.pipeline.ui.pager import Block, Page, page_before, page_from
from hyco.storage.deletions import Tombstones
from hyco.storage.detections import read_detections, read_failures
from hyco.storage.home import Home, UnitResults
from hyco.storage.marks import box_name
from hyco.storage.objects import open_object
from hyco.storage.sample import Failure, Part, TrainingSample
from hyco.storage.versions import ShardRef, Version, read_ref

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

SAMPLES = 24  # samples of a page
FAILURES = 100  # failures of a page
MOST = 5_000  # samples or failures that a request with a filter looks at
SIDE = 320  # pixels of the shorter side of the pictures
CANDIDATES = 200  # boxes before the thresholds that are shown of one image
_SIDES = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a page of samples shows: every sample that fits, with at least one box that fits.

    Attributes:
        phrase: text within the phrase of a box, in any case.
        low: minimum score of a box.
        high: maximum score of a box.
        rule: how the phrase of a box was found: "chunk", "expression".
        origin: "detector", or the beginning of what the box came with ("source").
        key: beginning of the image's key, or its whole name in the source.
        marked: only images that are marked as bad or have such a box.
    """

    phrase: str = ""
    low: float = -math.inf
    high: float = math.inf
    rule: str = ""
    origin: str = ""
    key: str = ""
    marked: bool = False

    @classmethod
    def of(cls, asked: Mapping[str, str]) -> "Filter":
        """The filter that a query names; ValueError for a score that is no number."""

        def number(name: str, otherwise: float) -> float:
            if not (text := asked.get(name, "").strip()):
                return otherwise
            with contextlib.suppress(ValueError):
                if not math.isnan(found := float(text)):
                    return found
            raise ValueError(f"{name} {text!r} is no number: give a score from 0 to 1")

        texts = {name: asked.get(name, "").strip() for name in ("phrase", "rule", "origin", "key")}
        return cls(
            low=number("low", -math.inf),
            high=number("high", math.inf),
            marked=bool(asked.get("marked")),
            **texts,
        )

    @property
    def empty(self) -> bool:
        """Whether it lets every sample through."""
        return self == Filter()

    def fits(self, part: Part) -> bool:
        """Whether a box fits; a score that is unknown fits no range."""
        scored = self.low == -math.inf and self.high == math.inf
        return (
            self.phrase.casefold() in part.phrase.casefold()
            and (scored or self.low <= part.score <= self.high)
            and self.rule in ("", part.rule)
            and (not self.origin or (part.origin or "detector").startswith(self.origin))
        )

    def keeps(self, sample: TrainingSample, marks: set[str]) -> bool:
        """Whether a sample fits; `marks` are names of marks, of boxes also the keys of their images."""
        if self.key and not (
            sample.key.startswith(self.key) or sample.meta.get("source_key", sample.key) == self.key
        ):
            return False
        if self.marked and sample.key not in marks:
            return False
        of_boxes = Filter(self.phrase, self.low, self.high, self.rule, self.origin)
        return of_boxes.empty or any(map(self.fits, sample.parts))


class Review:
    """The content of these pages of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._units = lru_cache(maxsize=4)(self._units_of_shards)
        self._tables = lru_cache(maxsize=4)(self._detections)

    def samples(self, name: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """The content of a page of samples; ValueError for an unknown version or an unreadable query."""
        version, wanted = self.home.versions.load(name), Filter.of(asked)
        split = asked.get("split") or "train"
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: there are {' and '.join(SPLITS)}")
        stones, names = self.home.deletions.tombstones(), self.home.marks.names()
        marks = names | {mark.partition("-")[0] for mark in names}
        refs = version.shards.get(split, [])
        found = _page(
            [Block(ref.samples, lambda ref=ref: self._read(ref, stones)) for ref in refs],
            lambda sample: sample is not None and wanted.keeps(sample, marks),
            asked,
            SAMPLES,
        )
        query = {
            key: asked[key]
            for key in ("split", "phrase", "low", "high", "rule", "origin", "key", "marked", "boxes")
            if asked.get(key)
        }
        samples = [(position, sample) for position, sample in found.items if sample is not None]
        boxes = self._before_thresholds(version, refs, samples)
        threshold = (version.config.get("pack") or {}).get("threshold")
        return {
            "title": f"Samples of {version.name}",
            "about": "",
            "lost": [],
            "here": f"/versions/{version.name}/samples",
            "version": version,
            "split": split,
            "splits": {split: sum(ref.samples for ref in version.shards.get(split, [])) for split in SPLITS},
            "filter": wanted,
            "asked": asked,
            "page": found,
            "links": links_of(found, query),
            "samples": [
                shown(sample, position, boxes.get(sample.key), wanted, names, threshold)
                for position, sample in samples
            ],
            "most": MOST,
            "packed": "mine" in version.digests and "pack" in version.digests and version.units,
        }

    def failures(self, name: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """The content of a page of failures; ValueError for an unknown version or an unreadable query."""
        version = self.home.versions.load(name)
        code = asked.get("code", "").strip()
        mined = self.home.detections(version.digests.get("mine"))
        packed = self.home.packs(version.digests.get("pack"))
        blocks = [
            Block(int(size), lambda path=path: self._failures(path))
            for results, count in ((mined, _mine_failures), (packed, _pack_failures))
            for path, size in _tables_of_failures(results, version, count)
        ]
        found = _page(blocks, lambda failure: code in ("", failure.code), asked, FAILURES)
        query = {"code": code} if code else {}
        return {
            "version": version,
            "code": code,
            "page": found,
            "links": links_of(found, query),
            "most": MOST,
        }

    def marks(self) -> dict[str, Any]:
        """The content of the page of marks, newest first."""
        entries = sorted(self.home.marks.entries(), key=lambda mark: (mark.since, mark.name), reverse=True)
        return {"marks": entries}

    def _read(self, ref: ShardRef, stones: Tombstones) -> Iterator[TrainingSample | None]:
        """The samples of a shard in their positions; None for one that was deleted."""
        for sample in read_ref(self.home.store, ref):
            yield None if stones.names(sample.meta, sample.key) else sample

    def _failures(self, path: str) -> Iterator[Failure]:
        with open_object(self.home.store, path) as file:
            yield from read_failures(file)

    def _before_thresholds(
        self, version: Version, refs: list[ShardRef], samples: list[tuple[int, TrainingSample]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Every box that the detector gave for these images, by key; an image without its detections is left out."""
        units = self._units(version.name, self.home.deletions.number())
        unknown = [unit for unit in version.units if unit not in set(units.values())]
        results = self.home.detections(version.digests.get("mine"))
        found: dict[str, list[dict[str, Any]]] = {}
        ends, end = [], 0
        for ref in refs:
            end += ref.samples
            ends.append((end, ref))
        wanted: dict[str, set[str]] = {}
        for position, sample in samples:
            ref = next(ref for end, ref in ends if position < end)
            # A unit that was packed again since does not name this shard any more: it is one of few.
            for unit in [units[ref.path]] if ref.path in units else unknown:
                wanted.setdefault(unit, set()).add(sample.key)
        for unit, keys in wanted.items():
            record = results.record(unit)
            if record is None:
                continue
            table = self._tables(record["detections"]["path"])
            rows = table.filter(pc.is_in(table["key"], value_set=pa.array(sorted(keys), pa.string())))
            for row in rows.to_pylist():
                boxes = found.setdefault(row["key"], [])
                if row["score"] is not None and row["x0"] is not None:
                    boxes.append(row)
        return found

    def _detections(self, path: str) -> pa.Table:
        with open_object(self.home.store, path) as file:
            return read_detections(file).select(["key", "phrase", "expression", *_SIDES, "score"])

    def _units_of_shards(self, name: str, deletions: int) -> dict[str, str]:
        """Unit name by path of the shard that was packed from it, of a version's shards that a pack record names."""
        version = self.home.versions.load(name)
        packs = self.home.packs(version.digests.get("pack"))
        owner = {
            ref["path"]: unit
            for unit, record in packs.records().items()
            for refs in record["shards"].values()
            for ref in refs
        }
        found = {}
        for ref in (ref for refs in version.shards.values() for ref in refs):
            heir = self.home.deletions.heir(ref.path)[0] if deletions else {"path": ref.path}
            unit = owner.get(ref.path) or owner.get(str((heir or {}).get("path")))
            if unit is not None:
                found[ref.path] = unit
        return found


def page_of(
    sized: Iterable[tuple[int, Any]],
    read: Callable[[Any], Iterator[Any]],
    keep: Callable[[Any], bool],
    asked: Mapping[str, str],
    size: int,
) -> Page[Any]:
    """The page that a query names by `at` or `before`, of blocks given by their sizes and what `read` reads."""
    return _page([Block(count, lambda of=of: read(of)) for count, of in sized], keep, asked, size)


def _page(blocks: list[Block[Any]], keep: Any, asked: Mapping[str, str], size: int) -> Page[Any]:
    """The page that a query names by `at` or `before`."""
    try:
        if asked.get("before"):
            return page_before(blocks, keep, int(asked["before"]), size, MOST)
        return page_from(blocks, keep, int(asked.get("at") or 0), size, MOST)
    except ValueError as error:
        if "invalid literal" not in str(error):
            raise
        raise ValueError("at and before are numbers of samples, such as at=1000") from None


def links_of(found: Page[Any], query: dict[str, str]) -> dict[str, str]:
    """Queries of the previous, the next and this page."""
    links = {"this": urlencode({**query, "at": found.first})}
    if found.before is not None:
        links["previous"] = urlencode({**query, "before": found.before})
    if found.at is not None:
        links["next"] = urlencode({**query, "at": found.at})
    return links


def _mine_failures(record: dict[str, Any]) -> tuple[Any, int]:
    path = record.get("failures")
    return (path["path"] if isinstance(path, dict) else path), record.get("failed", 0)


def _pack_failures(record: dict[str, Any]) -> tuple[Any, int]:
    return record.get("failures"), record["counts"].get("pack_failures", 0)


def _tables_of_failures(results: UnitResults, version: Version, count: Any) -> Iterable[tuple[str, int]]:
    """Paths of a version's tables of failures and their numbers of rows, by unit."""
    units = set(version.units)
    for unit, record in results.records().items():
        path, size = count(record)
        if path and (not units or unit in units):
            yield path, size


def shown(
    sample: TrainingSample,
    position: int,
    candidates: list[dict[str, Any]] | None,
    wanted: Filter,
    marks: set[str],
    threshold: float | None,
) -> dict[str, Any]:
    """A sample for the page."""
    parts, accepted = [], set[str]()
    for number, part in enumerate(sample.parts):
        known = all(map(math.isfinite, part.box))
        name = box_name(sample.key, part.phrase, part.box) if known else ""
        accepted.add(name)
        parts.append(
            {
                "phrase": clip(part.phrase),
                "told": _told(part),
                "group": number % COLOURS,
                "fits": wanted.fits(part),
                "name": name,
                "marked": name in marks,
                "value": " ".join([*map(repr, part.box), part.phrase]) if known else "",
                **(_drawn(part.box) if known else {}),
            }
        )
    others = []
    for row in sorted(candidates or [], key=lambda row: -row["score"]):
        box = tuple(min(max(row[side], 0.0), 1.0) for side in _SIDES)
        texts = {text for text in (row["phrase"], row["expression"]) if text}
        if accepted.isdisjoint(box_name(sample.key, text, box) for text in texts):
            below = threshold is not None and row["score"] < threshold
            why = "below the threshold" if below else "overlap, size, number or filter"
            told = {"phrase": clip(row["phrase"]), "score": f"{row['score']:.2f}", "why": why}
            others.append({**told, "faint": below, **_drawn(box)})
    image, width, height = picture(sample.image, SIDE)
    return {
        "key": sample.key,
        "name": clip(str(sample.meta.get("source_key", sample.key))),
        "position": position,
        "image": image,
        "width": width,
        "height": height,
        "captions": [clip(caption) for caption in sample.captions[:3]],
        "parts": parts,
        "others": others[:CANDIDATES],
        "more": max(0, len(others) - CANDIDATES),
        "known": candidates is not None,
        "marked": sample.key in marks,
    }


def _told(part: Part) -> str:
    score = "" if math.isnan(part.score) else f"{part.score:.2f}"
    return ", ".join(text for text in (score, part.rule, part.origin) if text)


def _drawn(box: Iterable[float]) -> dict[str, float]:
    x0, y0, x1, y1 = (round(100 * min(max(value, 0.0), 1.0), 2) for value in box)
    return {"x": x0, "y": y0, "w": round(x1 - x0, 2), "h": round(y1 - y0, 2)}
