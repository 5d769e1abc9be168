"""Recall and precision of mined boxes against a source that labels its phrases."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from models.grounding.boxes import iou
from pipeline.packing.select_parts import AcceptedPart, SelectionConfig, select_parts


class BoxMatcher:
    """Counts right, wrong and missed boxes over the units of a source; see pipeline.mining.mine.phrase_quality."""

    def __init__(self, threshold: float, nms_iou: float | None, iou: float) -> None:
        self.iou = iou
        self.rules = SelectionConfig(
            threshold=threshold, nms_iou=nms_iou, nms_all_iou=None, min_area_px=None, max_parts=999
        )
        self.images = self.labelled_images = self.labelled = self.boxes = self.right = 0

    def add(self, table: pa.Table, labels: dict[str, list[dict[str, Any]] | None]) -> None:
        """Count one unit: its detections, and image key -> `records.objects_of` (those of None are left out).

        A labelled image that mining could not use has no detections: it is counted in labelled_images alone.
        """
        chosen = select_parts(table, self.rules)
        for key, objects in labels.items():
            if objects is None:
                continue
            self.labelled_images += 1
            if key not in chosen:
                continue
            truth: dict[str, set[tuple[float, ...]]] = defaultdict(set)
            for item in objects:
                truth[item["phrase"].lower()].add(tuple(map(float, item["box"])))
            found: dict[str, dict[tuple[float, ...], AcceptedPart]] = defaultdict(dict)
            for choice in chosen[
                key
            ]:  # a text that two captions share was looked for once: its boxes count once
                found[choice.phrase.lower()].setdefault(choice.box, choice)
            self.images += 1
            self.labelled += sum(map(len, truth.values()))
            self.boxes += sum(map(len, found.values()))
            self.right += sum(
                self._matches(found[text].values(), boxes) for text, boxes in truth.items() if text in found
            )

    def result(self) -> dict[str, Any]:
        """Return the counts and their ratios."""
        return {
            "recall": self.right / self.labelled if self.labelled else None,
            "precision": self.right / self.boxes if self.boxes else None,
            "labelled": self.labelled,
            "boxes": self.boxes,
            "right": self.right,
            "images": self.images,
            "labelled_images": self.labelled_images,
        }

    def _matches(self, found: Iterable[AcceptedPart], truth: set[tuple[float, ...]]) -> int:
        """Number of boxes that can be paired with a label, the best score choosing first."""
        left = np.array(sorted(truth))
        matched = 0
        for choice in sorted(found, key=lambda choice: -choice.score):
            if len(left) == 0:
                break
            overlap = iou(np.array(choice.box), left)
            best = int(overlap.argmax())
            if overlap[best] >= self.iou:
                matched += 1
                left = np.delete(left, best, axis=0)
        return matched
