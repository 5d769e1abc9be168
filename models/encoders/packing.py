"""Texts without padding and without repeated beginnings, for a causal transformer.

In causal attention a token depends on the tokens before it alone, so texts that begin alike have equal vectors there,
up to the first token that differs. `pack` keeps one copy of every such token: the nodes of the tree of all beginnings.
Layers that work on single tokens run on the nodes; attention gathers the nodes of each text.
Legend: B texts, N tokens, T nodes, S places of attention, U distinct texts, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hyco.models.encoders.listed import Keys


@dataclass(frozen=True)
class Packing:
    """Where the tokens of B texts lie among T nodes. A text ends with its first end token.

    Attributes:
        tokens: token id of each node.
        positions: position of each node in its texts.
        groups: (texts, tokens) of each block in which attention runs; together they have S places.
        node: node of each place, text by text; any node where a shorter text is padded.
        place: a place of each node.
        by_node: the places in the order of their nodes.
        starts: first entry of each node in `by_node`.
        ends: node of the last token of each distinct text, in the order of the groups.
        seen: which places of each text are tokens of its own; None where all are.
        text: distinct text of each text.
    """

    tokens: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    groups: tuple[tuple[int, int], ...]
    node: Int[Tensor, " S"]
    place: Int[Tensor, " T"]
    by_node: Int[Tensor, " S"]
    starts: Int[Tensor, " T"]
    ends: Int[Tensor, " U"]
    seen: Bool[Tensor, "U N"] | None
    text: Int[Tensor, " B"]

    def to(self, device: torch.device) -> "Packing":
        """The same packing on a device; to a GPU without waiting for it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        indices = {name: index for name, index in values.items() if isinstance(index, Tensor)}
        if device.type == "cuda":  # only from pinned memory is a copy asynchronous
            indices = {name: index.pin_memory() for name, index in indices.items()}
        return replace(self, **{name: i.to(device, non_blocking=True) for name, i in indices.items()})

    def keys(self, at: Int[Tensor, " Q"] | None = None) -> Keys:
        """The nodes that each node attends to, or each of the nodes `at`: those from the beginning up to itself."""
        last, count = self.place, self.positions + 1
        if at is not None:
            last, count = last.index_select(0, at), count.index_select(0, at)
        return Keys(self.node, last, count)

    def spread(self, x: Float[Tensor, "T D"]) -> list[Float[Tensor, "_ D"]]:
        """Vectors of the nodes at the places of each group: [T, D] -> [texts * tokens, D] each."""
        places: Tensor = _Spread.apply(x, self.node, self.by_node, self.starts)  # pyright: ignore[reportAssignmentType]
        return list(places.split([texts * tokens for texts, tokens in self.groups]))


class _Spread(torch.autograd.Function):
    """x[node], whose gradient is summed in the order of the places: in float32 inside, and always in the same order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, node: Tensor, by_node: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(by_node, starts)
        return x.index_select(0, node)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        by_node, starts = ctx.saved_tensors
        return F.embedding_bag(by_node, gradient.contiguous(), starts, mode="sum"), None, None, None


def together(texts: Sequence[Tensor], end_token: int) -> Int[Tensor, "B N"]:
    """Rows of several batches in one, padded with end tokens to the longest: [B, N], [C, M] -> [B + C, max(N, M)]."""
    longest = max(tokens.shape[1] for tokens in texts)
    return torch.cat([F.pad(tokens, (0, longest - tokens.shape[1]), value=end_token) for tokens in texts])


def pack(tokens: Int[Tensor, "B N"], end_token: int, *, equal_lengths: bool = True) -> Packing:
    """Packing of the rows of `tokens`, each up to its first end token (its first token alone without one).

    Args:
        tokens: token ids, at least one row. Those on a GPU are copied to the CPU first, which waits for them.
        end_token: id of the end token.
        equal_lengths: whether attention runs in one block for each length, where nothing is padded; otherwise in one
            block for all texts, padded to the longest: fewer calls, for a GPU.
    """
    rows = tokens.cpu().numpy()
    length = (rows == end_token).argmax(1) + 1
    column = np.arange(rows.shape[1])
    real = column < length[:, None]
    rows = np.where(real, rows, -1)
    order = np.lexsort(rows.T[::-1])
    rows, real, length = rows[order], real[order], length[order]
    # In this order texts that begin alike are neighbours: a token is new unless all up to it is as in the row before.
    new = real.copy()
    new[1:] &= ~np.logical_and.accumulate(rows[1:] == rows[:-1], axis=1)
    number = np.cumsum(new).reshape(new.shape) - 1
    node = np.maximum.accumulate(np.where(new, number, -1), axis=0)
    first = new.any(1)
    distinct = np.empty(len(rows), np.int64)
    distinct[order] = np.cumsum(first) - 1
    rows, real, length, new, node = rows[first], real[first], length[first], new[first], node[first]

    by_length = np.argsort(length, kind="stable") if equal_lengths else np.arange(len(length))
    room = length if equal_lengths else np.full_like(length, length.max())
    sizes, counts = np.unique(room, return_counts=True)
    begin, rank = np.empty_like(length), np.empty_like(length)
    begin[by_length] = np.cumsum(room[by_length]) - room[by_length]
    rank[by_length] = np.arange(len(length))
    places = begin[:, None] + column
    node_of = np.zeros(room.sum(), np.int64)
    node_of[places[real]] = node[real]
    by_node = np.argsort(node_of, kind="stable")
    last = node[np.arange(len(length)), length - 1]
    arrays = {
        "tokens": rows[new],
        "positions": np.broadcast_to(column, rows.shape)[new],
        "node": node_of,
        "place": places[new],
        "by_node": by_node,
        "starts": np.searchsorted(node_of[by_node], np.arange(new.sum())),
        "ends": last[by_length],
        "text": rank[distinct],
    }
    groups = tuple(zip(counts.tolist(), sizes.tolist(), strict=True))
    seen = None if equal_lengths else torch.from_numpy(real[:, : room.max()])
    return Packing(groups=groups, seen=seen, **{name: torch.from_numpy(a) for name, a in arrays.items()})
