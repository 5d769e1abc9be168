"""Pages of a long sequence that lies in blocks (shards, tables), reading only the blocks that a page needs.

A page begins `at` a position or ends `before` one. Positions count the items of all blocks, so a link leads to the same
page for ever. With a filter a request looks at `most` items at most, and the page links to where it stopped.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Block(Generic[T]):
    """Items that are read together: their number, and a function that yields them in order, or fewer."""

    size: int
    read: Callable[[], Iterator[T]]


@dataclass(slots=True)
class Page(Generic[T]):
    """One page.

    Attributes:
        items: (position, item), in order.
        total: number of items of all blocks, whatever the filter.
        before: the previous page ends before this position; None on the first.
        at: the next page begins here; None on the last.
        first: first position that was looked at.
        last: end of the positions that were looked at, excluded.
    """

    items: list[tuple[int, T]] = field(default_factory=list)
    total: int = 0
    before: int | None = None
    at: int | None = None
    first: int = 0
    last: int = 0


def page_from(
    blocks: Sequence[Block[T]], keep: Callable[[T], bool], at: int, size: int, most: int
) -> Page[T]:
    """Return the page of the first `size` items that `keep` accepts from position `at` on; looks at `most` items."""
    total = sum(block.size for block in blocks)
    at = min(max(at, 0), total)
    limit = min(total, at + most)
    found: list[tuple[int, T]] = []
    end, start = limit, 0
    for block in blocks:
        stop = start + block.size
        if stop > at and start < limit and len(found) < size:
            skipped = max(0, at - start)
            items = itertools.islice(block.read(), skipped, limit - start)
            for position, item in enumerate(items, start + skipped):
                if keep(item):
                    found.append((position, item))
                    if len(found) == size:
                        end = position + 1
                        break
        start = stop
    return Page(found, total, at or None, end if end < total else None, at, end)


def page_before(
    blocks: Sequence[Block[T]], keep: Callable[[T], bool], before: int, size: int, most: int
) -> Page[T]:
    """Return the page of the last `size` items that `keep` accepts before a position; looks at `most` items."""
    total = stop = sum(block.size for block in blocks)
    before = min(max(before, 0), total)
    limit = max(0, before - most)
    found: list[tuple[int, T]] = []
    for block in reversed(blocks):
        start = stop - block.size
        if start < before and stop > limit and len(found) < size:
            skipped = max(0, limit - start)
            items = itertools.islice(block.read(), skipped, before - start)
            kept = ((position, item) for position, item in enumerate(items, start + skipped) if keep(item))
            found[:0] = deque(kept, maxlen=size - len(found))
        stop = start
    first = found[0][0] if len(found) == size else limit
    return Page(found, total, first or None, before if before < total else None, first, before)
