"""The interface of every grounding backend, and the model-independent parts common to all backends.

Images are uint8 RGB arrays [H, W, 3]; boxes are (x0, y0, x1, y1) as fractions of the image's width and height.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class Detection:
    """The boxes of one image: one row for each (phrase, box), by phrase and then by falling score.

    Attributes:
        boxes: float32 [N, 4], corners in [0, 1].
        scores: float32 [N] in [0, 1], the backend's own confidence, before any threshold.
        phrases: int64 [N], index into the phrases of the request.
        unknown: indices of the phrases that were not given to the model, because its tokenizer knows no word of them.
    """

    boxes: np.ndarray
    scores: np.ndarray
    phrases: np.ndarray
    unknown: tuple[int, ...] = ()

    @staticmethod
    def empty() -> "Detection":
        """Return a detection without boxes."""
        return Detection(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


class Detector(Protocol):
    """A loaded grounding model.

    Attributes:
        digest: identifies the weights and their configuration (16 hex digits); equal digests, equal detections.
    """

    digest: str

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Detection]:
        """Search images[i] for phrases[i] and return one Detection per image.

        Any number of images of any size; the backend forms its own batches. Each phrase gets its best boxes, a fixed
        number of them and never by a threshold.

        Raises:
            MemoryError: a single image does not fit; the message names it.
        """
        ...


@runtime_checkable
class Reader(Detector, Protocol):
    """A detector that reads its phrases with a tokenizer; a detector with a closed vocabulary is not one."""

    def known_fractions(self, texts: Sequence[str]) -> list[float]:
        """Return for each text the fraction of its word tokens that the tokenizer knows; 0 without word tokens."""
        ...


def best_boxes(boxes: np.ndarray, scores: np.ndarray, phrases: Iterable[int], most: int) -> Detection:
    """Select the `most` best boxes of each phrase.

    Args:
        boxes: float32 [Q, 4], corners; clipped to the image here.
        scores: float32 [Q, P], one column per phrase; -inf or 0 where a box cannot belong to it.
        phrases: P indices to write into Detection.phrases, rising.
        most: maximum number of boxes per phrase.
    """
    columns = np.fromiter(phrases, np.int64)
    most = min(most, scores.shape[0])
    order = np.argsort(-scores, axis=0, kind="stable")[:most]  # [most, P]
    ranked = np.take_along_axis(scores, order, axis=0).T.reshape(-1)
    kept = boxes[order.T.reshape(-1)].clip(0.0, 1.0).astype(np.float32)
    owner = np.repeat(columns, most)
    real = (ranked > 0) & (kept[:, 2] > kept[:, 0]) & (kept[:, 3] > kept[:, 1])
    return Detection(kept[real], ranked[real].astype(np.float32), owner[real])


def join(parts: Sequence[Detection]) -> Detection:
    """Join the detections of one image from several prompts."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Detection.empty()
    phrases = np.concatenate([part.phrases for part in parts])
    order = np.argsort(phrases, kind="stable")
    boxes = np.concatenate([part.boxes for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    return Detection(boxes[order], scores[order], phrases[order])


def digest_of(files: Iterable[Path], salt: str = "") -> str:
    """Return 16 hex digits of the sha256 over a salt and the names and bytes of files, in order of name."""
    total = hashlib.sha256(salt.encode())
    for path in sorted(files, key=lambda path: path.name):
        stat = path.stat()
        total.update(f"{path.name} {_sha256(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return total.hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    """Hash of a file; computed once per process while size and modification time stay the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_asked(images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless there are as many phrase lists as images and every image is uint8 [H, W, 3]."""
    if len(images) != len(phrases):
        raise ValueError(
            f"{len(images)} images with {len(phrases)} lists of phrases: give one list per image"
        )
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image {index} is {image.dtype} {image.shape}: give uint8 RGB [H, W, 3]")
