"""What the pages tell of a home: read from its records each time, so that they are always those of now."""

import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.assess.exhibits import mined_samples
from pipeline.quality_gate import SCORE_BINS, score_histogram, verdict
from pipeline.status import run_state
from storage.detections import read_failures
from storage.manifest import Manifest
from storage.objects import open_object
from storage.registry import Registry, Row, champion_of
from storage.sample import TrainingSample
from storage.store import Store
from storage.versions import Version, Versions, read_ref

SAMPLES = 24
SHARDS = 4  # that they are taken from
SIDE = 320  # pixels of the shorter side of the pictures in a page


class Home:
    """A home as it is read by the pages."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.folder = Path(url.removeprefix("file://")) if self.store.local else None
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"{url} does not exist: name the home of an earlier command with --home")
        self.versions = Versions(self.store)
        self.samples = lru_cache(maxsize=8)(self._samples)  # a version never changes

    def decisions(self) -> list[Row]:
        """The registry's log, newest first."""
        return Registry(self.store.url).rows()[::-1] if self.store.local else []

    def overview(self) -> dict[str, Any]:
        """What the first page shows."""
        rows = self.decisions()
        latest = self._latest()
        versions = [
            {"name": version.name, "counts": version.counts, "created": version.created, "parent": version.parent,
             "state": self._state(version.name, latest)}
            for version in reversed(self.versions.list())
        ]  # fmt: skip
        return {"rows": rows, "champion": champion_of(rows[::-1]), "versions": versions, "runs": self._runs()}

    def version(self, name: str) -> dict[str, Any]:
        """What the page of a version shows; ValueError when there is none of that name."""
        version = self.versions.load(name)
        histogram = score_histogram(self.store, version)
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
            "state": self._state(version.name, self._latest()),
            "samples": mined_samples(self.samples(version.name), SAMPLES, SIDE),
            "bars": bars if histogram.sum() else [],
            "checks": verdict(self.versions.quarantined(version.name) or []),
            "failures": self._failures(version),
        }

    def picture(self, name: str, sample: int, picture: str) -> bytes:
        """The bytes of a sample's image ("whole") or of one of its parts, by number; IndexError beyond the last."""
        found = self.samples(self.versions.load(name).name)[sample]
        return found.image if picture == "whole" else found.parts[int(picture)].image

    def run(self, name: str) -> Path:
        """Directory of a run; KeyError when there is none of that name."""
        for folder in self._run_folders():
            if folder.name == name:
                return folder
        raise KeyError(f"no run {name} in {self.store.url}")

    def _latest(self) -> str | None:
        try:
            return self.versions.load("latest").name
        except ValueError:
            return None

    def _state(self, name: str, latest: str | None) -> str:
        if self.versions.quarantined(name):
            return "quarantined"
        return "latest" if name == latest else ""

    def _run_folders(self) -> list[Path]:
        runs = self.folder / "runs" if self.folder else None
        if runs is None or not runs.is_dir():
            return []
        found = [folder for folder in runs.iterdir() if (folder / "config.json").is_file()]
        return sorted(found, key=lambda folder: -(folder / "config.json").stat().st_mtime)

    def _runs(self) -> list[dict[str, Any]]:
        return [
            {
                "name": folder.name,
                "state": run_state(folder),
                "version": json.loads((folder / "config.json").read_text()).get("version", ""),
                "report": (folder / "report.html").is_file(),
                "log": (folder / "log.jsonl").is_file(),
            }
            for folder in self._run_folders()
        ]

    def _samples(self, name: str) -> list[TrainingSample]:
        """The first samples of a version's first shards; each of these is read whole, to compare its hash."""
        shards = self.versions.load(name).shards.get("train", [])[:SHARDS]
        each = -(-SAMPLES // max(1, len(shards)))
        found: list[TrainingSample] = []
        for ref in shards:
            found += itertools.islice(read_ref(self.store, ref), each)
        return found

    def _failures(self, version: Version) -> dict[str, list[Any]]:
        """Examples of what could not be used, by stage and code."""
        found: dict[str, list[Any]] = {}
        for folder in (f"detections/{version.digests.get('mine')}", f"packs/{version.digests.get('pack')}"):
            for record in Manifest(self.store, f"{folder}/records").records().values():
                path = record.get("failures")
                path = path["path"] if isinstance(path, dict) else path
                if not path:
                    continue
                with open_object(self.store, path) as file:
                    for failure in read_failures(file):
                        found.setdefault(f"{failure.stage}: {failure.code}", []).append(failure)
        return found
