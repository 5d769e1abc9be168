"""Softmax attention where each query has a short list of keys: packed texts, and the one query of a last block.

A text's token attends to the tokens that begin its text, and there are about ten; a product of matrices for each length
of text costs more in calls than in arithmetic. On a CPU one C++ function does all of them, on the nodes where they lie,
without gathering or converting them first (kernels.cpp). models/encoders/block.py has the plain form, `attend`.
Legend: Q queries, T rows of keys and values, A heads, d dimensions of a head, D = A d, S entries of the lists.
"""

import functools
from ctypes import CDLL, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyco.models.hyperbolic.nn.native.library import address, concrete, load

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
SIGNATURES = {
    f"{kind}_{name}": (None, [c_void_p] * pointers + [c_int64] * 5)
    for name in NAMES.values()
    for kind, pointers in (("attention", 7), ("attention_slopes", 11))
}


@dataclass(frozen=True)
class Keys:
    """The keys of query i: rows[last[i] - count[i] + 1] to rows[last[i]].

    Attributes:
        rows: numbers of rows of keys and values.
        last: last entry of each query in `rows`.
        count: number of keys of each query, at least 1.
        once: whether each row is a key of exactly one query.
    """

    rows: Int[Tensor, " S"]
    last: Int[Tensor, " Q"]
    count: Int[Tensor, " Q"]
    once: bool = False


@functools.cache
def kernels() -> CDLL | None:
    """The C++ functions; None where they cannot be had."""
    return load(Path(__file__).with_name("kernels.cpp"), SIGNATURES)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these tensors."""
    return concrete(*tensors, dtypes=tuple(NAMES)) and kernels() is not None


def attend_listed(
    query: Float[Tensor, "Q D"] | None, rest: Float[Tensor, "T _"], heads: int, keys: Keys
) -> Float[Tensor, "Q D"]:
    """Attention of `heads` heads; `usable` has said that the kernels can do it.

    Args:
        query: the queries; None where row i of `rest` begins with query i.
        rest: (queries,) keys and values side by side, [T, 3 D] or [T, 2 D].
        heads: number of heads A.
        keys: the keys of each query.
    """
    return _Listed.apply(query, rest, heads, keys)  # pyright: ignore[reportReturnType]


class _Listed(torch.autograd.Function):
    """Stores its inputs alone; the backward pass computes the weights again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor | None, rest: Tensor, heads: int, keys: Keys) -> Tensor:
        query, rest = None if query is None else query.contiguous(), rest.contiguous()
        ctx.save_for_backward(query, rest)
        ctx.heads, ctx.keys = heads, keys
        q, k, v = _parts(query, rest)
        out = q.new_empty(len(keys.last), q.shape[1])
        _function("attention", rest)(*_addresses(q, k, v, out), *_lists(keys), *_sizes(q, rest, heads))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, rest = ctx.saved_tensors
        q, k, v = _parts(query, rest)
        by_query, by_rest = None if query is None else torch.empty_like(query), torch.empty_like(rest)
        by_q, by_k, by_v = _parts(by_query, by_rest)
        width = 2 * q.shape[1]
        sums = None if ctx.keys.once else rest.new_zeros(len(rest), width, dtype=torch.float32)
        pointers = _addresses(grad.contiguous(), q, k, v, by_q, by_k, by_v, sums)
        _function("attention_slopes", rest)(*pointers, *_lists(ctx.keys), *_sizes(q, rest, ctx.heads))
        if sums is not None:
            by_rest[:, -width:] = sums
        return by_query, by_rest, None, None


def _parts(query: Tensor | None, rest: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values as views."""
    return tuple(rest.chunk(3, 1)) if query is None else (query, *rest.chunk(2, 1))


def _function(kind: str, like: Tensor) -> Any:
    return getattr(kernels(), f"{kind}_{NAMES[like.dtype]}")


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [address(tensor) for tensor in tensors]


def _lists(keys: Keys) -> list[int | None]:
    return _addresses(keys.rows, keys.last, keys.count)


def _sizes(q: Tensor, rest: Tensor, heads: int) -> tuple[int, ...]:
    """Number of queries, heads, dimensions of a head, and the strides of queries, keys and values."""
    return len(q), heads, q.shape[1] // heads, q.stride(0), rest.stride(0)
