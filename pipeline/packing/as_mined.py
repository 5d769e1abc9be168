"""What packing finds in a source that is no longer as it was mined: every such image is a failure by name.

A jsonl's unit is named by the sizes of its images, so an image that was replaced by another of equal size leaves the
unit mined; and an older Hyco may have read other captions out of a file than are read now.
"""

from typing import Any

import pyarrow as pa

from pipeline.sources.source import Unit
from storage.detections import read_failures
from storage.objects import open_object
from storage.sample import Failure, Sample
from storage.store import Store

_NAMES = 3


class AsMined:
    """Compares the samples of a unit, as they are read again, with what was mined of them."""

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
        """Note a sample; the failure of one whose captions are other ones than were mined."""
        self.gone.pop(sample.key, None)
        if sample.key not in self.texts:
            name = str(sample.meta.get("source_key", sample.key))
            if not {sample.key, name} & self.failed:
                self.unknown.append(name)
            return None
        mined = self.texts[sample.key]
        if all(sample.captions[caption : caption + 1] == (text,) for caption, text in mined.items()):
            return None
        text = f"its captions are read otherwise than when {self.unit.path} was mined: run mine, then pack"
        return Failure(sample.key, "pack", "captions_changed", text)

    def rest(self) -> list[Failure]:
        """One failure for each mined image that is not there any more, or new image that was not mined."""
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
