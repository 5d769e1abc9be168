"""Recall and precision of mined boxes against a source that labels its phrases."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from hyco.models.grounding.boxes import iou
from hyco.pipeline.mining.mine import MineConfig, results
from hyco.pipeline.packing.select_parts import AcceptedPart, SelectionConfig, select_parts
from hyco.pipeline.sources.records import objects_of
from hyco.pipeline.sources.source import UnitGoneError, open_source
from hyco.storage.detections import read_detections
from hyco.storage.home import Home
from hyco.storage.objects import open_object


def phrase_quality(
    config: MineConfig,
    home: Home,
    threshold: float = 0.35,
    nms_iou: float | None = 0.6,
    iou: float = 0.5,
    most: int | None = None,
) -> dict[str, Any]:
    """Compare mined boxes with the labels of a labelled source ("objects" in its json).

    A box is right when it overlaps a labelled box of a phrase of the same text by at least `iou`; each
    labelled box can be found once. Boxes of phrases without labels count as wrong, labelled phrases that were not found
    in the caption as missed. Nothing is compared where the labels are the boxes that were mined (columns.boxes).

    Args:
        config: of the mining.
        home: holds the detections.
        threshold: see pipeline.packing.select_parts.
        nms_iou: see pipeline.packing.select_parts.
        iou: overlap (intersection over union) from which a box counts as right.
        most: read only the first units, so many; all when None.

    Returns:
        recall, precision (None without labels or boxes), labelled, boxes, right, images; labelled_images, of which
        `images` have detections.
    """
    if config.columns.boxes:  # the labels are what is judged
        return BoxMatcher(threshold, nms_iou, iou).result()
    source = open_source(config.source, config.limits, config.columns, home.store)
    tally = BoxMatcher(threshold, nms_iou, iou)
    listed, records = home.shelf.without(source.units()), results(config, home).records()
    units = [unit for unit in listed if unit.name in records]  # the others were added after mining
    if not units:
        named = listed[0].path if listed else config.source
        raise ValueError(f"unit {named} is not mined: run mine with this config first")
    for unit in units[:most]:
        held = records[unit.name]["detections"]
        with open_object(home.store, held["path"], held.get("sha256", "")) as file:
            table = read_detections(file)
        try:
            samples = source.samples(unit, lambda failure: None)
            labels = {sample.key: objects_of(sample.meta) for sample in samples}
        except UnitGoneError:
            continue
        tally.add(table, labels)
    return tally.result()


class BoxMatcher:
    """Counts right, wrong and missed boxes over the units of a source; see `phrase_quality`."""

    def __init__(self, threshold: float, nms_iou: float | None, iou: float) -> None:
        self.iou = iou
        self.rules = SelectionConfig(
            threshold=threshold, nms_iou=nms_iou, nms_all_iou=None, min_area_px=None, max_parts=999
        )
        self.images = self.labelled_images = self.labelled = self.boxes = self.right = 0

    def add(self, table: pa.Table, labels: dict[str, list[dict[str, Any]] | None]) -> None:
        """Count one unit: its detections, and image key -> `records.objects_of` (those of None are left out).

        A labelled image that mining could not use has no detections: it is counted only in labelled_images.
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
            ]:  # a text that two captions share was searched once: its boxes count once
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
        """Number of boxes that can be matched with a label, in order of falling score."""
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
