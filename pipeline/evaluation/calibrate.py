"""The threshold of a grounder for a wanted recall, precision or absent rate: chosen on images, measured on others.

A sample of a source is asked for the phrases of its captions and for absent ones (pipeline.mining.absence), in one
prompt. Where the source labels its phrases (`objects`) a box is right when it overlaps a labelled box of its phrase by
IoU 0.5; each labelled box counts once, and boxes of absent phrases are wrong. Without labels only the absent rate can
be wanted. Half of the images choose the threshold, the other half measures it.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from hyco.models.grounding.boxes import competed, iou, nms
from hyco.models.grounding.detector import Detection
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining.absence import Absence, AbsenceConfig
from hyco.pipeline.mining.known_detections import phrases_to_ask
from hyco.pipeline.mining.mine import MineConfig
from hyco.pipeline.mining.noun_phrases import NounExtractor
from hyco.pipeline.runtime.progress import Progress
from hyco.pipeline.sources.records import objects_of
from hyco.pipeline.sources.source import open_source
from hyco.storage.sample import Sample

Wanted = Literal["recall", "precision", "absent"]
_CHUNK = 64
_IOU = 0.5
_DIGITS = 10_000  # a threshold has four decimals


@dataclass(frozen=True, slots=True)
class Judged:
    """The boxes of some images, and what there was to find.

    Attributes:
        scores: of the boxes that remain after suppression, [N].
        right: whether a box is a labelled one, bool [N].
        labelled: number of labelled boxes; 0 without labels.
        absent: best score of each absent phrase, 0 without a box, [M].
    """

    scores: np.ndarray
    right: np.ndarray
    labelled: int
    absent: np.ndarray

    def at(self, threshold: float) -> dict[str, float | None]:
        """Return recall, precision and the fraction of absent phrases with a box at a threshold; None: unknown."""
        passed = self.scores >= threshold
        hits = int((self.right & passed).sum())
        return {
            "recall": hits / self.labelled if self.labelled else None,
            "precision": hits / int(passed.sum()) if self.labelled and passed.any() else None,
            "absent": float((self.absent >= threshold).mean()) if len(self.absent) else None,
        }

    def threshold(self, wanted: Wanted, value: float) -> float:
        """Return the threshold for a wanted value: the lowest that has it, for recall the highest.

        Raises:
            ValueError: no threshold has it, or the source has no labels.
        """
        if wanted == "absent":
            falling = np.sort(self.absent)[::-1]
            allowed = int(value * len(falling))
            return float(np.nextafter(falling[allowed], 2)) if allowed < len(falling) else 0.0
        if not self.labelled or not len(self.scores):
            raise ValueError(
                f"{wanted} needs a source that labels its phrases (objects): calibrate --absent-rate instead"
            )
        order = np.argsort(-self.scores, kind="stable")
        falling = self.scores[order]
        ends = np.append(falling[1:] != falling[:-1], True)  # equal scores pass together
        hits, passed = np.cumsum(self.right[order])[ends], np.flatnonzero(ends) + 1
        if wanted == "recall":
            reached = np.flatnonzero(hits / self.labelled >= value)
            best = (
                f"the highest recall of any threshold is {hits[-1] / self.labelled if len(hits) else 0:.3f}"
            )
        else:
            precision = hits / passed
            reached = np.flatnonzero(precision >= value)[::-1]
            best = f"the highest precision of any threshold is {precision.max(initial=0):.3f}"
        if not len(reached):
            raise ValueError(f"no threshold has a {wanted} of {value}: {best}")
        return float(falling[ends][reached[0]])


def calibrate(
    config: MineConfig,
    wanted: Wanted,
    value: float,
    images: int = 500,
    absent: AbsenceConfig | None = None,
    competition: float = 0.0,
    nms_iou: float | None = 0.6,
) -> dict[str, Any]:
    """Choose the threshold on half of the images, and measure it on the other half.

    Args:
        config: source, grounder and noun rules; `absent` of it is not used.
        wanted: what the value is of.
        value: recall or precision to reach, or fraction of absent phrases that may have a box.
        images: maximum number of images.
        absent: how many absent phrases, and WordNet.
        competition: see SelectionConfig.competition.
        nms_iou: see SelectionConfig.nms_iou.

    Returns:
        threshold, competition, wanted, value; chosen_on and measured_on: images, labelled, absent_phrases, recall,
        precision, absent.

    Raises:
        ValueError: as Judged.threshold, or fewer than 10 images.
    """
    halves: dict[bool, list[Judged]] = {False: [], True: []}
    drawing = Absence((absent or AbsenceConfig()).model_copy(update={"images": 1.0}))
    with Progress(images, "calibrate", "images") as progress:
        for key, judged in _judged(config, images, drawing, competition, nms_iou):
            progress.advance(1)
            halves[hashlib.sha256(f"calibrate {key}".encode()).digest()[0] < 128].append(judged)
    if min(map(len, halves.values())) < 5:
        raise ValueError(
            f"{sum(map(len, halves.values()))} images are too few to calibrate: give at least 10"
        )
    chosen, measured = _joined(halves[True]), _joined(halves[False])
    exact = chosen.threshold(wanted, value) * _DIGITS
    threshold = (math.ceil(exact) if wanted == "absent" else math.floor(exact)) / _DIGITS
    told = {
        name: {
            "images": len(halves[half]),
            "labelled": of.labelled,
            "absent_phrases": len(of.absent),
            **{key: None if v is None else round(v, 4) for key, v in of.at(threshold).items()},
        }
        for name, half, of in (("chosen_on", True, chosen), ("measured_on", False, measured))
    }
    return {
        "threshold": threshold,
        "competition": competition,
        "wanted": wanted,
        "value": value,
        **told,
    }


def _judged(
    config: MineConfig, images: int, drawing: Absence, competition: float, nms_iou: float | None
) -> Iterator[tuple[str, Judged]]:
    """Ask the detector for every image and judge what it finds: key and judgement."""
    extractor = NounExtractor(config.nouns)
    detector = ground.open_detector(
        config.grounder, config.device, config.dtype, config.per_phrase, config.batch_size
    )
    for chunk in _chunks(config, images):
        captions = [sample.captions[: config.max_captions] for sample, _ in chunk]
        phrases = iter(extractor([text for texts in captions for text in texts]))
        found = [[next(phrases) for _ in texts] for texts in captions]
        asked, firsts = [], []
        for place, (sample, _) in enumerate(chunk):
            pool = [p for other in found[:place] + found[place + 1 :] for own in other for p in own]
            own = phrases_to_ask(found[place])
            drawn = drawing.draw(sample, chain.from_iterable(found[place]), pool)
            firsts.append(len(own))
            asked.append([*own, *(text for text in drawn if text not in own)])
        detections = detector([pixels for _, pixels in chunk], asked)
        for (sample, _), texts, first, detection in zip(chunk, asked, firsts, detections, strict=True):
            yield sample.key, judge(objects_of(sample.meta), texts, first, detection, competition, nms_iou)


def judge(
    labels: list[dict[str, Any]] | None,
    texts: list[str],
    first: int,
    found: Detection,
    competition: float = 0.0,
    nms_iou: float | None = 0.6,
) -> Judged:
    """Compare the boxes of one image with its labels.

    Args:
        labels: as records.objects_of gives them.
        texts: the phrases that were asked, lower case.
        first: number of the first absent one.
        found: what the detector found.
        competition: see SelectionConfig.competition.
        nms_iou: IoU above which the worse of two boxes of a phrase is left out; None keeps both.
    """
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64)
    kept = np.ones(len(scores), bool) if nms_iou is None else nms(boxes, scores, nms_iou, found.phrases)
    counted = competed(boxes, scores, found.phrases, np.zeros(len(scores), np.int64), competition)
    true: dict[str, set[tuple[float, ...]]] = {}
    for label in labels or ():
        true.setdefault(label["phrase"].lower(), set()).add(tuple(map(float, label["box"])))
    right = np.zeros(len(scores), bool)
    for number, text in enumerate(texts[:first]):
        free = np.array(sorted(true.get(text, ()))).reshape(-1, 4)
        mine = np.flatnonzero(kept & (found.phrases == number))
        for row in mine[np.argsort(-counted[mine], kind="stable")]:
            if not len(free):
                break
            overlap = iou(boxes[row], free)
            if overlap.max() >= _IOU:
                right[row] = True
                free = np.delete(free, int(overlap.argmax()), axis=0)
    best = [
        float(counted[found.phrases == number].max(initial=0.0))
        for number in range(first, len(texts))
        if number not in found.unknown
    ]
    return Judged(counted[kept], right[kept], sum(map(len, true.values())), np.array(best))


def _joined(rows: list[Judged]) -> Judged:
    return Judged(
        np.concatenate([row.scores for row in rows]),
        np.concatenate([row.right for row in rows]),
        sum(row.labelled for row in rows),
        np.concatenate([row.absent for row in rows]),
    )


def _chunks(config: MineConfig, images: int) -> Iterator[list[tuple[Sample, np.ndarray]]]:
    """Samples with their pixels, in the order of the source; images that cannot be decoded are passed over."""
    source = open_source(config.source, config.limits, config.columns)
    chunk: list[tuple[Sample, np.ndarray]] = []
    left = images
    for unit in source.units():
        for sample in source.samples(unit, lambda failure: None):
            try:
                pixels = decode(sample.image, config.limits.max_pixels, config.limits.max_bytes)
            except ImageError:
                continue
            chunk.append((sample, pixels))
            left -= 1
            if len(chunk) == _CHUNK or not left:
                yield chunk
                chunk = []
            if not left:
                return
    if chunk:
        yield chunk
