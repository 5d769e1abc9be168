"""Check that a source still is as it was mined: every changed image is a failure by name.

A jsonl's unit is named by the sizes of its images, so replacing an image by another of equal size leaves the unit
mined; and an older Hyco may have read other captions from a file than the present one.
"""

from typing import Any

import pyarrow as pa

from hyco.pipeline.sources.source import Unit
from hyco.storage.deletions import OPTED_OUT
from hyco.storage.detections import read_failures
from hyco.storage.objects import open_object
from hyco.storage.sample import Failure, Sample
from hyco.storage.store import Store

_NAMES = 3


class AsMined:
    """Compares the samples of a unit, read again, with its mining results."""

    def __init__(self, store: Store, unit: Unit, record: dict[str, Any], table: pa.Table) -> None:
        self.unit = unit
        self.texts: dict[str, dict[int, str]] = {}
        columns = (table[name].to_pylist() for name in ("key", "caption", "text"))
        for key, caption, text in zip(*columns, strict=True):
            self.texts.setdefault(key, {})[caption] = text
        self.failed: set[str] = set()
        if "path" in record.get("failures", {}):
            with open_object(store, record["failures"]["path"]) as file:
                self.failed = {failure.key for failure in read_failures(file)}
        self.gone = dict.fromkeys(self.texts)
        self.unknown: list[str] = []

    def check(self, sample: Sample) -> Failure | None:
        """Record a sample; returns a failure when its captions differ from the mined ones."""
        self.gone.pop(sample.key, None)
        if sample.key not in self.texts:
            name = str(sample.meta.get("source_key", sample.key))
            if not {sample.key, name} & self.failed:
                self.unknown.append(name)
            return None
        mined = self.texts[sample.key]
        if all(sample.captions[caption : caption + 1] == (text,) for caption, text in mined.items()):
            return None
        text = f"its captions are read differently than when {self.unit.path} was mined: run mine, then pack"
        return Failure(sample.key, "pack", "captions_changed", text)

    def note(self, failure: Failure) -> None:
        """Take note of a sample that the source does not yield: one that was deleted is not missing."""
        if failure.code == OPTED_OUT:
            self.gone.pop(failure.key, None)

    def rest(self) -> list[Failure]:
        """One failure for each mined image that is missing now, and for each new image that was not mined."""
        remedy = f"change {self.unit.path} (a blank line at the end of a jsonl will do) and mine again"
        if not self.gone:
            return [
                Failure(name, "pack", "not_mined", f"{name} holds an image that was not mined: {remedy}")
                for name in self.unknown
            ]
        now = f"; not mined: {', '.join(self.unknown[:_NAMES])}" if self.unknown else ""
        text = f"mined, but no longer in the source{now}: {remedy}"
        extra = self.unknown[len(self.gone) :]
        return [Failure(key, "pack", "image_replaced", text) for key in self.gone] + [
            Failure(name, "pack", "not_mined", f"{name} holds an image that was not mined: {remedy}")
            for name in extra
        ]
