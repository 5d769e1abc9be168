"""Pages of blocks: every item once, in both directions, whatever the filter; only the needed blocks are read."""

from collections.abc import Iterator

import pytest

from hyco.pipeline.ui.pager import Block, page_before, page_from


def blocks_of(sizes: list[int], read: list[int]) -> list[Block[int]]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]

    def reader(n: int) -> Iterator[int]:
        read.append(n)
        yield from range(starts[n], starts[n] + sizes[n])

    return [Block(size, lambda n=n: reader(n)) for n, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [[], [1], [7], [3, 4, 5, 1], [10, 0, 10, 3]])
@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize("most", [4, 1000])
def test_next_and_previous_show_every_item_once(sizes: list[int], step: int, most: int) -> None:
    blocks, wanted = blocks_of(sizes, []), [n for n in range(sum(sizes)) if n % step == 0]

    def keep(item: int) -> bool:
        return item % step == 0

    forward, at = [], 0
    while at is not None:
        page = page_from(blocks, keep, at, 3, most)
        assert len(page.items) <= 3 and page.total == sum(sizes) and page.first == at
        forward += page.items
        assert page.at is None or page.at > at
        at = page.at
    assert forward == [(n, n) for n in wanted]
    backward, before = [], sum(sizes)
    while before is not None:
        page = page_before(blocks, keep, before, 3, most)
        backward[:0] = page.items
        assert page.before is None or page.before < before
        assert page.last == before
        before = page.before
    assert backward == [(n, n) for n in wanted]


def test_a_page_reads_only_its_blocks() -> None:
    read: list[int] = []
    blocks = blocks_of([1000] * 100, read)
    assert [n for n, _ in page_from(blocks, lambda item: True, 55_990, 24, 5000).items] == list(
        range(55_990, 56_014)
    )
    assert read == [55, 56]
    read.clear()
    assert [n for n, _ in page_before(blocks, lambda item: True, 56_010, 24, 5000).items] == list(
        range(55_986, 56_010)
    )
    assert read == [56, 55]
    read.clear()
    page = page_from(blocks, lambda item: False, 10_500, 24, 2000)
    assert (page.items, page.at, read) == ([], 12_500, [10, 11, 12]), (
        "a filter that finds nothing stops and goes on"
    )


def test_positions_outside_are_the_ends() -> None:
    blocks = blocks_of([5], [])
    assert page_from(blocks, lambda item: True, 99, 3, 9).items == []
    assert page_from(blocks, lambda item: True, -4, 3, 9).first == 0
    assert page_before(blocks, lambda item: True, 99, 2, 9).items == [(3, 3), (4, 4)]


def test_a_block_that_yields_fewer_items_than_recorded_keeps_the_positions_of_the_next() -> None:
    blocks = [Block(5, lambda: iter([0, 1])), Block(2, lambda: iter([5, 6]))]
    page = page_from(blocks, lambda item: True, 0, 3, 100)
    assert (page.items, page.at) == ([(0, 0), (1, 1), (5, 5)], 6)
