"""Results of mining one unit: the rows of its detections file, and the time by task."""

import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hyco.pipeline.mining.noun_phrases import Phrase
from hyco.pipeline.sources.records import NOT_DOWNLOADED, objects_of
from hyco.storage.deletions import OPTED_OUT
from hyco.storage.sample import Failure, Sample

if TYPE_CHECKING:
    from hyco.models.grounding.detector import Detection


@dataclass(slots=True)
class Rows:
    """Detections of one unit, column by column: a table of phrases, and boxes that point into it.

    `rule` is "expression" where the phrase's expression stands on its own, "chunk" where another one contains it.
    """

    phrases: list[tuple[Any, ...]] = field(default_factory=list)
    owners: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        sample: Sample,
        size: tuple[int, ...],
        found: list[list[Phrase]],
        asked: list[str],
        detection: "Detection",
        counts: Counter[str],
    ) -> None:
        """Add one image: its phrases by caption, the texts of the prompt and the detector's output."""
        height, width = size
        place = {text: index for index, text in enumerate(asked)}
        image = (sample.key, hashlib.sha256(sample.image).hexdigest(), width, height)
        if not asked:
            self._append((*image, 0, sample.captions[0], None, None, None, None, None, None), None)
            return
        for index, phrases in enumerate(found):
            for phrase in phrases:
                rule = "expression" if phrase.outermost else "chunk"
                mine = np.flatnonzero(detection.phrases == place[phrase.text.lower()])
                text = (phrase.text, phrase.start, phrase.end, rule, phrase.expression, None)
                counts["phrases"] += 1
                counts["phrases_with_boxes"] += bool(len(mine))
                counts["boxes"] += len(mine)
                chosen = (detection.boxes[mine], detection.scores[mine]) if len(mine) else None
                self._append((*image, index, sample.captions[index], *text), chosen)

    def add_objects(self, sample: Sample, size: tuple[int, int], origin: str, counts: Counter[str]) -> int:
        """Take in the boxes that the source has of one image, each with its own phrase; return their number.

        Args:
            sample: its meta holds them as "objects" (pipeline.sources.boxes).
            size: width and height of the image in pixels.
            origin: what stands for the detector in their rows.
            counts: gets phrases, boxes and phrases_with_boxes.
        """
        image = (sample.key, hashlib.sha256(sample.image).hexdigest(), *size)
        labels = objects_of(sample.meta) or []
        for label in labels:
            caption, span = label.get("caption", 0), label.get("span") or (-1, -1)
            if not isinstance(caption, int) or not 0 <= caption < len(sample.captions):
                caption, span = 0, (-1, -1)
            text, (start, end) = sample.captions[caption], (int(place) for place in span)
            phrase = text[start:end] if 0 <= start < end <= len(text) else label["phrase"]
            rule = "chunk" if label.get("rule") == "chunk" else "expression"
            row = (phrase, start, end, rule, label.get("expression") or phrase, origin)
            box = np.array([label["box"]], np.float32)
            score = np.array([label.get("score", 1.0)], np.float32)
            self._append((*image, caption, text, *row), (box, score))
        for name in ("phrases", "boxes", "phrases_with_boxes"):
            counts[name] += len(labels)
        return len(labels)

    def add_nothing(self, sample: Sample, size: tuple[int, int]) -> None:
        """Note an image without any phrase."""
        image = (sample.key, hashlib.sha256(sample.image).hexdigest(), *size)
        self._append((*image, 0, sample.captions[0], None, None, None, None, None, None), None)

    def _append(self, phrase: tuple[Any, ...], chosen: tuple[np.ndarray, np.ndarray] | None) -> None:
        nothing = (np.full((1, 4), np.nan, np.float32), np.full(1, np.nan, np.float32))
        boxes, scores = chosen or nothing
        self.owners.append(np.full(len(boxes), len(self.phrases)))
        self.phrases.append(phrase)
        self.boxes.append(boxes)
        self.scores.append(scores)

    def table(self, detector: str, rules: str) -> pa.Table:
        """Return the rows as storage.detections.SCHEMA has them; NaN means "no box" before this."""
        names = ("key", "image_sha256", "width", "height", "caption", "text")
        names += ("phrase", "span_start", "span_end", "rule", "expression", "detector")
        columns = zip(*self.phrases, strict=True) if self.phrases else ((),) * len(names)
        phrases = pa.table(
            {name: pa.array(list(column)) for name, column in zip(names, columns, strict=True)}
        )
        empty = np.zeros(0, np.float32)
        table = phrases.take(pa.array(np.concatenate([np.zeros(0, np.int64), *self.owners])))
        boxes = np.concatenate([empty.reshape(0, 4), *self.boxes])
        for column, name in enumerate(("x0", "y0", "x1", "y1")):
            table = table.append_column(name, pa.array(boxes[:, column], from_pandas=True))
        scores = np.concatenate([empty, *self.scores])
        table = table.append_column("score", pa.array(scores, from_pandas=True))
        origins = pc.fill_null(table["detector"].cast(pa.string()), detector)
        table = table.set_column(table.column_names.index("detector"), "detector", origins)
        return table.append_column("rules", pa.repeat(rules, table.num_rows))


def noting(failures: list[Failure], counts: Counter[str]) -> Callable[[Failure], None]:
    """Return a callback for the failures of a source: rows that were never downloaded, or deleted, are only counted."""

    def note(failure: Failure) -> None:
        if failure.code in (NOT_DOWNLOADED, OPTED_OUT):
            counts[failure.code] += 1
        else:
            failures.append(failure)

    return note


_LIMIT_NAMED = re.compile(r"\(limits\.(max_\w+)\)|more than \d+ (pixels|bytes) are refused")


def remedy(failures: list[Failure], good: int) -> str:
    """The remedy for failures beyond the error budget. Raising the budget does not help when all samples fail."""
    named = [found[1] or f"max_{found[2]}" for f in failures if (found := _LIMIT_NAMED.search(f.message))]
    ways = [f"raise limits.{name} (--set limits.{name}=N)" for name, _ in Counter(named).most_common(1)]
    ways.append("fix the shard")
    if good:
        needed = math.ceil(100 * len(failures) / (good + len(failures))) / 100
        ways.append(f"raise error_budget (--set error_budget={needed})")
    text = f"{', or '.join(ways)}; hyco journey calls these mine.limits and mine.error_budget"
    return text[0].upper() + text[1:]


class Clock:
    """Seconds by task."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._spent: Counter[str] = Counter()
        self._name = ""

    def __call__(self, name: str) -> Self:
        """Count the time of the following `with` block for a task."""
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._spent[self._name] += time.monotonic() - self._begun  # type: ignore[assignment]

    def iterate(self, name: str, items: Iterator[Any]) -> Iterator[Any]:
        """Yield the items, counting the time spent waiting for them."""
        while True:
            with self(name):
                item = next(items, None)
            if item is None:
                return
            yield item

    def move(self, name: str, other: str, seconds: float) -> None:
        """Count seconds for another task than the one they were counted for; at most as many as that one has."""
        if (some := min(seconds, self._spent[name])) > 0:
            self._spent[name] -= some  # type: ignore[assignment]
            self._spent[other] += some  # type: ignore[assignment]

    def seconds(self) -> dict[str, float]:
        """Return seconds by name, and "total"."""
        spent = {**self._spent, "total": time.monotonic() - self._start}
        return {name: round(value, 3) for name, value in spent.items()}
