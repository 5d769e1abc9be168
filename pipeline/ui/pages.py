"""Content of the pages of a home, read from its records at each request, so that it is current."""

import itertools
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from hyco.pipeline.curation.compare import compare
from hyco.pipeline.curation.describe import brief, settings
from hyco.pipeline.curation.flags import flags
from hyco.pipeline.evaluation.answers import FILE
from hyco.pipeline.evaluation.report.examples import clip, mined_samples, picture
from hyco.pipeline.imaging.crop import shrink_to_short_side
from hyco.pipeline.imaging.decode import decode, encode_jpeg
from hyco.pipeline.packing.dataset_gate import SCORE_BINS, left_out_of, score_histogram, verdict
from hyco.pipeline.ui import run_pages, trend
from hyco.pipeline.ui.status import run_state
from hyco.pipeline.ui.version_card import card
from hyco.storage.detections import read_failures
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.layout import log_path
from hyco.storage.model_registry import Decision, champion_of
from hyco.storage.objects import open_object
from hyco.storage.sample import TrainingSample
from hyco.storage.version_heads import Head, erased_keys, readable
from hyco.storage.versions import Version, read_ref

SAMPLES = 24
SHARDS = 4  # shards for the samples
EXAMPLES = 24  # images and parts that came, and that went
THUMBNAIL = 96  # pixels of their shorter side
SIDE = 320  # pixels of the shorter side of the pictures in a page
LONGEST = 300  # characters of a reason
RUN_RECORDS = ("config.json", "train.json", "metrics.json")
# Errors of reading a record that is incomplete, of another form or missing.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)
T = TypeVar("T")


class HomePages:
    """The content of the pages of a home; FileNotFoundError when there is no such home."""

    def __init__(self, home: Home) -> None:
        self.home = home.require()
        self.versions = home.versions
        # A version never changes, except by a deletion.
        self._samples_of = lru_cache(maxsize=8)(lambda name, deletions: self._samples(name))
        self._changed = lru_cache(maxsize=4)(self._read_changed)
        self._reading = Lock()  # a browser asks for the pictures of a page all at once
        self._compared = lru_cache(maxsize=4)(lambda a, b, deletions: compare(self.home, a, b, EXAMPLES))

    def samples(self, name: str) -> list[TrainingSample]:
        """The first samples of a version, without those that were deleted."""
        stones = self.home.deletions.tombstones()
        found = self._samples_of(name, stones.number)
        return [sample for sample in found if not stones.names(sample.meta, sample.key)]

    def decisions(self) -> tuple[list[Decision], Decision | None, list[dict[str, str]]]:
        """The registry's log, newest first; the champion; and the rows that cannot be read, each with the reason.

        The champion is None when a row after its promotion cannot be read.
        """
        rows, unreadable = self.home.registry.readable()
        champion = champion_of(rows)
        if champion and any(path > log_path(champion.number) for path in unreadable):
            champion = None
        return rows[::-1], champion, [_broken(path, why) for path, why in unreadable.items()][::-1]

    def overview(self) -> dict[str, Any]:
        """The content of the first page."""
        rows, champion, lost = self.decisions()
        latest, erased = self._latest(), erased_keys(self.home.deletions)
        known, damaged = readable(self.versions)
        versions = [self._entry(head, latest, erased) for head in reversed(known)]
        versions += [_broken(name, error) for name, error in damaged.items()]
        runs = [self._run(folder) for folder in self._newest_runs()]
        flagged = self.flags(rows)
        return {"rows": rows, "flags": flagged, "lost": lost, "champion": champion, "versions": versions, "runs": runs,
                "shelved": self._shelved()}  # fmt: skip

    def _entry(self, head: Head, latest: str | None, erased: pa.Array) -> dict[str, Any]:
        """A version in the list of the first page; with "unreadable", the reason, where its record cannot be read."""
        version = head.version
        try:
            counts = {key: int(version.counts.get(key, 0)) for key in ("failures", "images", "parts")}
            return {"name": version.name, "counts": counts, "created": str(version.created),
                    "configuration": brief(version), "parent": version.parent,
                    "state": self._state(version.name, latest, head.superseded(erased))}  # fmt: skip
        except _UNREADABLE as error:
            return _broken(version.name, error)

    def version(self, name: str) -> dict[str, Any]:
        """The content of the page of a version; ValueError when there is none of that name."""
        version = self.versions.load(name)
        lost: dict[str, str] = {}

        def part(name: str, look: Callable[[], T], empty: T) -> T:
            """The result, or `empty` with the reason under `lost`: one damaged record affects only its section."""
            try:
                return look()
            except _UNREADABLE as error:
                lost[name] = _reason(error)
                return empty

        histogram = part("scores", lambda: score_histogram(self.home, version), np.zeros(SCORE_BINS))
        top = max(histogram.max(), 1)
        bars = [
            {
                "low": n / SCORE_BINS,
                "high": (n + 1) / SCORE_BINS,
                "count": int(count),
                "share": float(count / top),
            }
            for n, count in enumerate(histogram)
        ]
        return {
            "version": version,
            "settings": settings(version),
            "state": self._state(version.name, self._latest(), self.versions.superseded(version)),
            "models": part(
                "models",
                lambda: run_pages.trained_on(version.name, self._newest_runs()),
                list[dict[str, Any]](),
            ),
            "samples": part(
                "samples",
                lambda: mined_samples(self.samples(version.name), SAMPLES, SIDE),
                list[dict[str, Any]](),
            ),
            "bars": bars if histogram.sum() else [],
            "checks": part(
                "verdict",
                lambda: verdict(self.versions.quarantined(version.name) or []),
                list[dict[str, str]](),
            ),
            "failures": part("failures", lambda: self._failures(version), dict[str, list[Any]]()),
            "copies": part(
                "copies", lambda: left_out_of(self.home, version, EXAMPLES), list[dict[str, Any]]()
            ),
            "lost": lost,
        }

    def picture(self, name: str, sample: int, picture: str) -> tuple[str, bytes]:
        """The version's full name, and the bytes of a sample's image ("whole") or of one of its parts, by number.

        IndexError after the last one.
        """
        version = self.versions.load(name).name
        found = self.samples(version)[sample]
        return version, found.image if picture == "whole" else found.parts[int(picture)].image

    def difference(self, a: str, b: str) -> dict[str, Any]:
        """The content of the page that compares two versions; ValueError when there is none of that name."""
        found = self._compared(
            self.versions.load(a).name, self.versions.load(b).name, self.home.deletions.number()
        )
        top = max(found.went.scores.max(), found.came.scores.max(), 1)
        bars = [
            {"low": n / SCORE_BINS, "high": (n + 1) / SCORE_BINS, "count": [int(x), int(y)],
             "share": [float(x / top), float(y / top)]}
            for n, (x, y) in enumerate(zip(found.went.scores, found.came.scores, strict=True))
        ]  # fmt: skip
        sides = {
            name: {
                "images": [
                    (sample.key, picture(sample.image, THUMBNAIL)[0], clip(sample.captions[0]))
                    for sample in side.images
                ],
                "crops": [
                    (key, picture(part.image, THUMBNAIL)[0], clip(part.phrase)) for key, part in side.crops
                ],
            }
            for name, side in (("came", found.came), ("went", found.went))
        }
        return {"found": found, "bars": bars if top > 1 else [], "sides": sides}

    def card(self, name: str) -> str:
        """The dataset card of a version; ValueError when there is none of that name."""
        return card(self.home, self.versions.load(name))

    def run(self, name: str) -> Folder:
        """The folder of a run; KeyError when there is none of that name."""
        for folder in self.home.run_folders():
            if folder.name == name:
                return folder
        raise KeyError(f"no run {name} in {self.home.store.url}")

    def flags(self, rows: list[Decision]) -> dict[int, str]:
        """Why models are flagged, by the number of their row."""
        try:
            return flags(self.home, rows)
        except _UNREADABLE as error:
            return {row.number: f"whether images were deleted is not known: {_reason(error)}" for row in rows}

    def run_page(self, name: str) -> dict[str, Any]:
        """The content of the page of a run; KeyError when there is none of that name."""
        others = [folder.name for folder in self._newest_runs()]
        return run_pages.run_page(self.run(name), self.decisions()[0], others)

    def comparison(self, a: str, b: str) -> dict[str, Any]:
        """The content of the page that compares two runs; KeyError when there is none of a name."""
        return run_pages.comparison(self.run(a), self.run(b))

    def changed(self, a: str, b: str, key: str) -> bytes:
        """The image with this key that two runs answered differently, as a small JPEG; KeyError without it."""
        folders = [self.run(name) for name in (a, b)]
        times = [folder.store.modified(name) for folder in folders for name in (FILE, "metrics.json")]
        with self._reading:
            return self._changed(a, b, tuple(times), self.home.deletions.number())[key]

    def _read_changed(
        self, a: str, b: str, times: tuple[float | None, ...], deletions: int
    ) -> dict[str, bytes]:
        found = run_pages.changed_pictures(self.run(a), self.run(b), self.home)
        return {
            key: encode_jpeg(shrink_to_short_side(decode(data), THUMBNAIL), 84) for key, data in found.items()
        }

    def decision(self, number: int) -> dict[str, Any]:
        """The content of the page of a decision; KeyError when there is none of that number."""
        rows = self.decisions()[0]
        for row in rows:
            if row.number == number:
                known = any(folder.name == Path(row.run).name for folder in self.home.run_folders())
                page = run_pages.decision_page(row, self.flags(rows).get(number))
                return page | {"run": Path(row.run).name if known else ""}
        raise KeyError(f"no decision {number} in {self.home.store.url}")

    def champions(self) -> bytes:
        """The metrics of the champions over time, as SVG."""

        def known(exam: str, model: str) -> str | None:
            folder = self.home.registry.assessment(f"{exam}-{model}")
            return folder.read("metrics.json").decode() if folder.exists("metrics.json") else None

        return trend.draw(self.decisions()[0][::-1], known)

    def report(self, number: int) -> bytes:
        """The report that was kept with a decision; KeyError when there is none."""
        report = self.decision(number)["row"].report
        if report is None or not self.home.store.exists(report):
            raise KeyError(f"decision {number} has no report any more")
        return self.home.store.read_bytes(report)

    def _shelved(self) -> list[dict[str, str]]:
        """The shards that are set aside; an entry with "unreadable" for each record that cannot be read."""
        found, damaged = self.home.shelf.readable()
        return [asdict(entry) for entry in found] + [_broken(error.path, error) for error in damaged]

    def _latest(self) -> str | None:
        try:
            return self.versions.latest()
        except _UNREADABLE:
            return None

    def _state(self, name: str, latest: str | None, superseded: bool) -> str:
        try:
            if self.versions.quarantined(name):
                return "quarantined"
        except ValueError:  # its reasons cannot be read; training refuses it anyway
            return "quarantined"
        marks = ["superseded"] if superseded else []
        if name == latest:
            return ", ".join(["latest", *marks])
        try:
            labels = [label for label, named in self.versions.labels().items() if named == name]
        except ValueError:  # a damaged name says nothing about this version
            labels = []
        kinds = ["experiment"] if name in self.versions.experiments() else []
        return ", ".join(marks + kinds + labels)

    def _newest_runs(self) -> list[Folder]:
        return sorted(self.home.run_folders(), key=lambda run: -(run.store.modified("config.json") or 0))

    def _run(self, folder: Folder) -> dict[str, Any]:
        """A run in the list of the first page; with "unreadable" where a record of it cannot be read."""
        entry: dict[str, Any] = {
            "name": folder.name,
            "state": "",
            "version": "",
            "report": folder.exists("report.html"),
            "scores": run_pages.scores(folder),
            "log": folder.exists("log.jsonl"),
        }
        for name in RUN_RECORDS:
            try:
                held = _object(folder, name)
            except _UNREADABLE as error:
                return entry | _broken(folder.name, f"{name}: {_reason(error)}")
            if name == "config.json":
                entry["version"] = str(held.get("version", ""))
        state = run_state(folder)
        return entry | (_broken(folder.name, state) if state.startswith("unreadable") else {"state": state})

    def _samples(self, name: str) -> list[TrainingSample]:
        """The first samples of a version's first shards; each of these is read whole, to compare its hash."""
        shards = self.versions.load(name).shards.get("train", [])[:SHARDS]
        each = -(-SAMPLES // max(1, len(shards)))
        found: list[TrainingSample] = []
        for ref in shards:
            found += itertools.islice(read_ref(self.home.store, ref), each)
        return found

    def _failures(self, version: Version) -> dict[str, list[Any]]:
        """Examples of failures, by stage and code."""
        found: dict[str, list[Any]] = {}
        mined, packed = (version.digests.get(stage) for stage in ("mine", "pack"))
        for results in (self.home.detections(mined), self.home.packs(packed)):
            for record in results.records().values():
                path = record.get("failures")
                path = path["path"] if isinstance(path, dict) else path
                if not path:
                    continue
                with open_object(self.home.store, path) as file:
                    for failure in read_failures(file):
                        found.setdefault(f"{failure.stage}: {failure.code}", []).append(failure)
        return found


def _object(folder: Folder, name: str) -> dict[str, Any]:
    """The object that a JSON file holds, {} without the file; ValueError for anything else."""
    held = folder.json(name)
    return {} if held is None else run_pages.checked(held)


def _broken(name: str, why: Exception | str) -> dict[str, str]:
    return {"name": name, "unreadable": _reason(why)}


def _reason(why: Exception | str) -> str:
    if isinstance(why, KeyError):
        return f"it has no {why}"
    text = " ".join(str(why).split()) or type(why).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
