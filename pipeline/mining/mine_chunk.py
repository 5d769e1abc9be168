"""A chunk of samples of a unit: decode, parse the captions, run the detector. A failure affects only its own sample."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from hyco.models.grounding.detector import Detection, Detector, Reader
from hyco.pipeline.imaging.decode import ImageError, decode, inspect
from hyco.pipeline.mining.absence import Absence, best_scores, histogram
from hyco.pipeline.mining.detections_table import Clock, Rows
from hyco.pipeline.mining.known_detections import KnownDetections
from hyco.pipeline.mining.noun_phrases import NounExtractor, Phrase
from hyco.pipeline.runtime.calls import WorkerDiedError
from hyco.pipeline.sources.language import FOREIGN, LANGUAGES, language_fraction
from hyco.pipeline.sources.records import Limits
from hyco.storage.sample import Failure, Sample

S = TypeVar("S")
R = TypeVar("R")

HARDLY = 0.2
"""Minimum fraction of a caption's words that the detector's tokenizer must know; else little in it can be found."""
_LONGEST_REASON = 300  # characters of a library's own message


def chunks(samples: Iterable[Sample], limits: Limits, most: int, most_pixels: int) -> Iterator[list[Sample]]:
    """Samples in order, at most `most` and `most_pixels` (width * height) at a time, by the sizes in their headers."""
    chunk: list[Sample] = []
    pixels = 0
    for sample in samples:
        size = _size(sample, limits)
        if chunk and (len(chunk) == most or pixels + size > most_pixels):
            yield chunk
            chunk, pixels = [], 0
        chunk.append(sample)
        pixels += size
    if chunk:
        yield chunk


def mine_chunk(
    chunk: list[Sample],
    limits: Limits,
    max_captions: int,
    extractor: NounExtractor,
    detector: Detector,
    known: KnownDetections,
    rows: Rows,
    failures: list[Failure],
    counts: Counter[str],
    clock: Clock,
    origin: str = "",
    absence: Absence | None = None,
) -> None:
    """Add the rows, failures and counts of one chunk, and the seconds they took.

    Images that are `known` with the same phrases are neither decoded nor shown to the detector. With an `origin` the
    boxes that the source has are added as well, under that name. With `absence` some images are asked a second time.
    """
    with clock("nouns"):
        read = _guarded(
            lambda captions: _read(captions, extractor, detector),
            [sample.captions[:max_captions] for sample in chunk],
        )
    work = []
    for sample, text in zip(chunk, read, strict=True):
        if isinstance(text, Exception):
            failures.append(Failure(sample.key, "nouns", "unreadable_caption", _told(text)))
        else:
            work.append(_Work(sample, text))
    with clock("known"):
        asked = [(hashlib.sha256(one.sample.image).hexdigest(), one.asked) for one in work]
        for one, found in zip(work, known.find(detector.digest, asked), strict=True):
            if found is not None:
                one.size, one.detection = (found.height, found.width), found.detection
                if isinstance(detector, Reader):
                    one.detection = _without_unknown(one.asked, found.detection, detector)
                counts["reused"] += 1
    with clock("decode"):
        new = [one for one in work if one.detection is None]
        pixels = [_pixels(one.sample, limits, failures) for one in new]
        shown = [(one, image) for one, image in zip(new, pixels, strict=True) if image is not None]
    with clock("ground"):
        detections = _guarded(
            lambda part: detector([image for _, image in part], [one.asked for one, _ in part]), shown
        )
    for (one, image), detection in zip(shown, detections, strict=True):
        if isinstance(detection, Exception):
            code = "out_of_memory" if isinstance(detection, MemoryError) else "detector"
            failures.append(Failure(one.sample.key, "ground", code, _told(detection), retryable=True))
            continue
        one.size, one.detection = image.shape[:2], detection
    for one in work:
        if one.detection is not None:
            _count(one, counts, extractor.config.model[:2])
            rows.add(one.sample, one.size, one.text.phrases, one.asked, one.detection, counts)
            if origin:
                rows.add_objects(one.sample, (one.size[1], one.size[0]), origin, counts)
    if absence is not None:
        with clock("absent"):
            counts.update(_absent(work, limits, detector, absence))


def _absent(work: list["_Work"], limits: Limits, detector: Detector, absence: Absence) -> Counter[str]:
    """Ask some images for their phrases and absent ones; return "absent", the number asked, and "absent:BIN" counts.

    An image that fails here is left out: it has been mined.
    """
    counts: Counter[str] = Counter()
    chosen = [one for one in work if one.detection is not None and absence.chooses(one.sample.key)]
    asked: list[tuple[np.ndarray, list[str], int]] = []
    for one in chosen:
        own = [phrase for caption in one.text.phrases for phrase in caption]
        pool = [
            phrase
            for other in work
            if other is not one
            for caption in other.text.phrases
            for phrase in caption
        ]
        drawn = [text for text in absence.draw(one.sample, own, pool) if text not in one.asked]
        pixels = _pixels(one.sample, limits, [])
        if drawn and pixels is not None:
            asked.append((pixels, [*one.asked, *drawn], len(one.asked)))
    found = _guarded(lambda part: detector([row[0] for row in part], [row[1] for row in part]), asked)
    for (_, texts, first), detection in zip(asked, found, strict=True):
        if not isinstance(detection, Exception):
            scores = best_scores(detection, first, len(texts) - first)
            counts["absent"] += len(scores)
            counts.update({f"absent:{place}": n for place, n in histogram(scores).items()})
    return counts


def take_boxes(
    samples: Iterable[Sample],
    limits: Limits,
    origin: str,
    rows: Rows,
    counts: Counter[str],
    report: Callable[[int], None],
) -> None:
    """Add the boxes that the source has, and nothing else: no image is decoded and no caption is parsed."""
    for sample in samples:
        size = inspect(sample.image, limits.max_pixels, limits.max_bytes)[:2]
        counts["images"] += 1
        counts["captions"] += len(sample.captions)
        if not rows.add_objects(sample, size, origin, counts):
            rows.add_nothing(sample, size)
        report(1)


@dataclass(frozen=True, slots=True)
class _Text:
    """The phrases in one image's captions, and the fraction of words that the detector knows (or [])."""

    phrases: list[list[Phrase]]
    known: list[float]


class _Work:
    """One image of a chunk: what is asked of it and, later, its size (height, width) and what was found."""

    def __init__(self, sample: Sample, text: _Text) -> None:
        self.sample, self.text = sample, text
        # A text that several captions share is searched once; no backend distinguishes case.
        self.asked = list(
            dict.fromkeys(phrase.text.lower() for caption in text.phrases for phrase in caption)
        )
        self.size: tuple[int, ...] = ()
        self.detection: Detection | None = None


def _without_unknown(asked: list[str], found: Detection, detector: Reader) -> Detection:
    """Return what is known as the detector tells it: with no box of a phrase of which its tokenizer knows no word.

    Such a phrase was not asked, but by an earlier Hyco. Every phrase has a letter, so one without a known word has an
    unknown one.
    """
    fractions = detector.known_fractions(asked)
    unknown = tuple(index for index, fraction in enumerate(fractions) if fraction == 0)
    kept = ~np.isin(found.phrases, unknown)
    return Detection(found.boxes[kept], found.scores[kept], found.phrases[kept], unknown)


def _count(one: _Work, counts: Counter[str], language: str) -> None:
    assert one.detection is not None
    unknown = {one.asked[index] for index in one.detection.unknown}
    counts["images"] += 1
    counts["captions"] += len(one.text.phrases)
    counts["captions_unknown"] += sum(fraction < HARDLY for fraction in one.text.known)
    if language in LANGUAGES:
        captions = one.sample.captions[: len(one.text.phrases)]
        counts["captions_foreign"] += sum(language_fraction(text, language) < FOREIGN for text in captions)
    counts["phrases_unknown"] += sum(
        phrase.text.lower() in unknown for caption in one.text.phrases for phrase in caption
    )


def _read(captions: Sequence[tuple[str, ...]], extractor: NounExtractor, detector: Detector) -> list[_Text]:
    every = [caption for texts in captions for caption in texts]
    phrases = iter(extractor(every))
    known = iter(detector.known_fractions(every) if isinstance(detector, Reader) else ())
    return [_Text(list(islice(phrases, len(texts))), list(islice(known, len(texts)))) for texts in captions]


def _size(sample: Sample, limits: Limits) -> int:
    """Pixels of a sample's image; 0 for an image that will not be decoded."""
    try:
        width, height, _ = inspect(sample.image, limits.max_pixels, limits.max_bytes)
    except ImageError:
        return 0
    return width * height


def _pixels(sample: Sample, limits: Limits, failures: list[Failure]) -> np.ndarray | None:
    try:
        return decode(sample.image, limits.max_pixels, limits.max_bytes)
    except ImageError as error:
        retryable = error.code == "out_of_memory"
        failures.append(Failure(sample.key, "decode", error.code, str(error), retryable=retryable))
        return None


def _guarded(work: Callable[[list[S]], list[R]], items: list[S]) -> list[R | Exception]:
    """Results of work(items); after a failure item by item, so that only the items that cause it are lost.

    spaCy, tokenizers, torch and onnxruntime have no common class of exceptions: the exception takes the place of the
    item's result.
    """
    try:
        return [*work(items)]
    except WorkerDiedError:  # a server of the cluster: the unit is tried again
        raise
    except Exception:
        pass
    results: list[R | Exception] = []
    for item in items:
        try:
            results += work([item])
        except WorkerDiedError:
            raise
        except Exception as error:
            results.append(error)
    return results


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:_LONGEST_REASON]
