"""A detector that a server of the cluster holds, for workers that read, parse and decode without a GPU."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyco.models.grounding.detector import Detection, Detector, Reader
from hyco.pipeline.runtime import served

_LOADING = threading.Lock()  # of a server: its quick calls come on a thread of their own


class FarDetector:
    """A detector of a server, behind the interface of models.grounding.detector.Detector.

    Args:
        opener: an importable function that returns the detector, loaded once in each server.
        options: its arguments.
        digest: of the detector.
    """

    def __init__(self, opener: Callable[..., Detector], options: tuple[Any, ...], digest: str) -> None:
        self.digest, self._opener, self._options = digest, opener, options

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """Search images[i] for phrases[i], on the server, in its turn."""
        if not images:
            return []
        return served.call(_detect, self._opener, self._options, list(images), [list(p) for p in phrases])


class FarReader(FarDetector):
    """A detector of a server that reads its phrases with a tokenizer."""

    def known_fractions(self, texts: Sequence[str]) -> list[float]:
        """Return for each text the fraction of its words that the tokenizer knows, beside the server's work."""
        return served.quick_call(_known_fractions, self._opener, self._options, list(texts)) if texts else []


def open_far(opener: Callable[..., Detector], options: tuple[Any, ...]) -> FarDetector:
    """Return the detector that a server holds; the server loads it when it does not have it yet."""
    digest, reads = served.call(_about, opener, options)
    return (FarReader if reads else FarDetector)(opener, options, digest)


def _about(opener: Callable[..., Detector], options: tuple[Any, ...]) -> tuple[str, bool]:
    detector = _held(opener, options)
    return detector.digest, isinstance(detector, Reader)


def _detect(
    opener: Callable[..., Detector],
    options: tuple[Any, ...],
    images: list[np.ndarray],
    phrases: list[list[str]],
) -> list[Detection]:
    # copied, because an array that came through Ray's shared memory must not be written to
    return _held(opener, options)([np.array(image) for image in images], phrases)


def _known_fractions(
    opener: Callable[..., Detector], options: tuple[Any, ...], texts: list[str]
) -> list[float]:
    detector = _held(opener, options)
    assert isinstance(detector, Reader), "open_far returned a FarReader"
    return detector.known_fractions(texts)


def _held(opener: Callable[..., Detector], options: tuple[Any, ...]) -> Detector:
    with _LOADING:
        return opener(*options)
