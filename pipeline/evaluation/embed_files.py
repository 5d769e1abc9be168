"""Image files of a data set -> points; threads read ahead, and images are not kept in memory."""

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

from hyco.pipeline.embedder import Embedder, whole
from hyco.pipeline.evaluation.coverage import Coverage, absent
from hyco.pipeline.imaging.decode import ImageError, decode
from hyco.pipeline.runtime.progress import Progress

READERS = 4
AHEAD = 64  # images decoded and waiting
S = TypeVar("S")
T = TypeVar("T")


def ahead(load: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield load(item) in order, loading some items ahead on threads."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def load_image(path: Path) -> np.ndarray | None:
    """uint8 [H, W, 3]; None where it is missing or cannot be decoded; the caller counts these."""
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
    square: Callable[[np.ndarray, int], np.ndarray] = whole,
) -> tuple[Float[Tensor, "m D"], Int[np.ndarray, " m"], Coverage]:
    """Points of the decodable whole images, their indices, and the coverage.

    `listed` is the number of images in the set, where `paths` were drawn from it; `square` makes an image a square of
    the model's size.

    Raises:
        FileNotFoundError: none can be read.
        ValueError: the readable fraction is below `least`; missing files are found before any work.
    """
    kept: list[int] = []
    lost = files_there(paths, least, listed)

    def load(path: Path) -> np.ndarray | None:
        image = load_image(path)
        return None if image is None else square(image, embedder.size)

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
    """Number of existing files; FileNotFoundError for none, ValueError for a fraction below `least`."""
    lost = absent(paths)
    if len(lost) == len(paths):
        raise FileNotFoundError(f"none of {len(paths)} images can be read; the first should be {paths[0]}")
    found = Coverage("images", len(paths), len(lost), 0, listed, str(lost[0]) if lost else "")
    found.require(least)
    return found


def decoded(there: Coverage, kept: int, least: float) -> Coverage:
    """The coverage when `kept` of the existing files could be decoded; ValueError below `least`."""
    found = replace(there, unusable=there.used - kept)
    found.require(least)
    return found


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, ended by newlines alone: a caption may hold other separators (U+2028).

    ValueError naming a file that is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): fetch it again") from None


def read_json(path: Path) -> Any:
    """Parsed JSON; ValueError naming a file that is incomplete or of another format."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from None
