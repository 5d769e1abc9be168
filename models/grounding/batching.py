"""Batches of items of equal size, halved when the device runs out of memory."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import torch

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


def buckets(keys: Sequence[K], lengths: Sequence[int]) -> Iterator[tuple[K, list[int]]]:
    """Yield (key, indices) for each distinct key, in order of first appearance, indices by falling length.

    Longest first: the batch that most likely does not fit comes before the others.
    """
    groups: dict[K, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for key, members in groups.items():
        yield key, sorted(members, key=lambda index: -lengths[index])


class Halving:
    """Runs work in batches, and in half batches when memory runs out.

    Stores for each kind of batch (its bucket) the size that last fitted, so that memory runs out once per kind only.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"batch_size is {most}: give at least 1")
        self.most = most
        self.limits: dict[Hashable, int] = {}

    def run(self, key: Hashable, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """Return work's results for all items, in order.

        Args:
            key: kind of the batch.
            items: input of the work.
            work: gets at most `most` items and returns as many results.

        Raises:
            MemoryError: a single item does not fit.
        """
        results: list[R] = []
        while len(results) < len(items):
            size = self.limits.get(key, self.most)
            part = items[len(results) : len(results) + size]
            done = _attempt(work, part)
            if done is not None:
                results.extend(done)
            elif len(part) == 1:
                raise MemoryError(f"one image of bucket {key} does not fit in the device's memory")
            else:
                self.limits[key] = len(part) // 2
        return results


def _attempt(work: Callable[[Sequence[T]], Sequence[R]], part: Sequence[T]) -> Sequence[R] | None:
    try:
        return work(part)
    except torch.OutOfMemoryError:
        pass  # leave the handler first: the traceback keeps the failed batch's tensors alive
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
