"""The noun chunks of a caption, as the repairs of the parser's mistakes pass them on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Chunk = tuple[int, int, Any]
"""First and last token of a noun chunk, and its head."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The noun chunks of a document.

    Attributes:
        doc: the spaCy document.
        chunks: its chunks, in order of position.
        verbs: places of tokens that were taken for verbs, whatever their tag.
        sure: places of heads that count as nouns, whatever their tag.
    """

    doc: Any
    chunks: list[Chunk]
    verbs: set[int] = field(default_factory=set)
    sure: set[int] = field(default_factory=set)

    def taken(self) -> set[int]:
        """Return the places of all tokens that are in a chunk or are verbs."""
        return self.verbs | {place for first, last, _ in self.chunks for place in range(first, last + 1)}

    def replace(self, chunks: Iterable[Chunk]) -> None:
        """Put other chunks in the place of these, in order of position."""
        self.chunks[:] = sorted(chunks, key=lambda chunk: chunk[:2])
