"""Image files of a data set -> points, read ahead on threads and never held together."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.embedder import Embedder, whole
from pipeline.evaluation.coverage import Coverage, absent
from pipeline.imaging.decode import ImageError, decode
from pipeline.runtime.progress import Progress

READERS = 4
AHEAD = 64  # images decoded and waiting
S = TypeVar("S")
T = TypeVar("T")


def ahead(load: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """load(item) in order, some of them ahead on threads."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def load_image(path: Path) -> np.ndarray | None:
    """uint8 [H, W, 3]; None where it is not there or cannot be decoded, for the caller to count."""
    try:
        return decode(path.read_bytes())
    except (OSError, ImageError):
        return None


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    progress: Progress,
    least: float = 0.0,
    listed: int | None = None,
) -> tuple[Float[Tensor, "m D"], Int[np.ndarray, " m"], Coverage]:
    """Points of the whole images that can be decoded, which they are, and how many that is.

    `listed` is the number of images in the set, where `paths` were drawn from it.

    Raises:
        FileNotFoundError: none can be read.
        ValueError: the fraction of them that can be is below `least`; missing files are known before any work.
    """
    kept: list[int] = []
    lost = files_there(paths, least, listed)

    def load(path: Path) -> np.ndarray | None:
        image = load_image(path)
        return None if image is None else whole(image, embedder.size)

    def squares() -> Iterator[np.ndarray]:
        for index, square in enumerate(ahead(load, paths)):
            progress.advance(1)
            if square is not None:
                kept.append(index)
                yield square

    points = embedder.encode_pixels(squares())
    if not kept:
        raise FileNotFoundError(f"none of {len(paths)} images can be read; the first should be {paths[0]}")
    return points, np.array(kept, np.int64), decoded(lost, len(kept), least)


def files_there(paths: Sequence[Path], least: float, listed: int | None = None) -> Coverage:
    """How many of the files are there; FileNotFoundError for none, ValueError for a fraction below `least`."""
    lost = absent(paths)
    if len(lost) == len(paths):
        raise FileNotFoundError(f"none of {len(paths)} images can be read; the first should be {paths[0]}")
    found = Coverage("images", len(paths), len(lost), 0, listed, str(lost[0]) if lost else "")
    found.require(least)
    return found


def decoded(there: Coverage, kept: int, least: float) -> Coverage:
    """The same when `kept` of the files that are there could be decoded; ValueError below `least`."""
    found = replace(there, unusable=there.used - kept)
    found.require(least)
    return found


def read_json(path: Path) -> Any:
    """Parsed JSON; ValueError naming a file that is torn or of another format."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from None
