"""A chunk of samples of a unit: decode, parse the captions, run the detector. A failure affects only its own sample."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from models.grounding.detector import Detector, Reader
from pipeline.imaging.decode import ImageError, decode, inspect
from pipeline.mining.detections_table import Clock, Rows
from pipeline.mining.noun_phrases import NounExtractor, Phrase
from pipeline.sources.records import Limits
from storage.sample import Failure, Sample

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
    rows: Rows,
    failures: list[Failure],
    counts: Counter[str],
    clock: Clock,
    origin: str = "",
) -> None:
    """Add the rows, failures and counts of one chunk, and the seconds they took.

    With an `origin` the boxes that the source has are added as well, under that name.
    """
    with clock("decode"):
        images = [_pixels(sample, limits, failures) for sample in chunk]
    good = [(sample, image) for sample, image in zip(chunk, images, strict=True) if image is not None]
    with clock("nouns"):
        read = _guarded(
            lambda captions: _read(captions, extractor, detector),
            [sample.captions[:max_captions] for sample, _ in good],
        )
    for (sample, _), text in zip(good, read, strict=True):
        if isinstance(text, Exception):
            failures.append(Failure(sample.key, "nouns", "unreadable_caption", _told(text)))
    ready = [(*pair, text) for pair, text in zip(good, read, strict=True) if not isinstance(text, Exception)]
    # A text that several captions share is searched once; no backend distinguishes case.
    asked = [
        list(dict.fromkeys(phrase.text.lower() for caption in text.phrases for phrase in caption))
        for _, _, text in ready
    ]
    with clock("ground"):
        detections = _guarded(
            lambda part: detector([image for image, _ in part], [texts for _, texts in part]),
            [(image, texts) for (_, image, _), texts in zip(ready, asked, strict=True)],
        )
    for (sample, image, text), texts, detection in zip(ready, asked, detections, strict=True):
        if isinstance(detection, Exception):
            code = "out_of_memory" if isinstance(detection, MemoryError) else "detector"
            failures.append(Failure(sample.key, "ground", code, _told(detection), retryable=True))
            continue
        unknown = {texts[index] for index in detection.unknown}
        counts["images"] += 1
        counts["captions"] += len(text.phrases)
        counts["captions_unknown"] += sum(fraction < HARDLY for fraction in text.known)
        counts["phrases_unknown"] += sum(
            phrase.text.lower() in unknown for caption in text.phrases for phrase in caption
        )
        rows.add(sample, image.shape[:2], text.phrases, texts, detection, counts)
        if origin:
            rows.add_objects(sample, (image.shape[1], image.shape[0]), origin, counts)


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
    except Exception:
        pass
    results: list[R | Exception] = []
    for item in items:
        try:
            results += work([item])
        except Exception as error:
            results.append(error)
    return results


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:_LONGEST_REASON]
