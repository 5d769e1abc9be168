"""Combinations held out from training: colours of a thing, things on a background, relations between two things.

Everything is ranked or drawn by a hash of its name, so the decision is the same in every process and split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

from hyco.demo import backdrops
from hyco.demo.layout import Group
from hyco.demo.taxonomy import Leaf

RELATION_SHARE = 0.08


@cache
def _hash(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@cache
def colors(leaf: Leaf) -> tuple[str, ...]:
    """Colours in which a leaf is held out: a fifth of them, none when it has fewer than four."""
    if len(leaf.colors) < 4:
        return ()
    ranked = sorted(leaf.colors, key=lambda c: _hash(f"{leaf.id}|{c}"))
    return tuple(ranked[: max(1, round(0.2 * len(ranked)))])


@cache
def backdrop(leaf: Leaf) -> str | None:
    """The kind of background on which a leaf without held-out colours is never shown in training."""
    if colors(leaf):
        return None
    return min(backdrops.KINDS, key=lambda kind: _hash(f"{leaf.id}|on {kind}"))


def relation(name: str, a: str, b: str) -> bool:
    """Whether "a NAME b" is held out; "b right of a" is the fact "a left of b", and near has no direction."""
    if name == "near":
        a, b = sorted((a, b))
    return _hash(f"{name}|{a}|{b}") < RELATION_SHARE


def broken(groups: Sequence[Group], kind: str, facts: Iterable[tuple[str, int, int]]) -> list[str]:
    """The held-out combinations that a scene contains, as text."""
    out = []
    for group in groups:
        if group.color in colors(group.leaf):
            out.append(f"{group.color} {group.leaf.id}")
        if backdrop(group.leaf) == kind:
            out.append(f"{group.leaf.id} on {kind}")
    for name, a, b in facts:
        if relation(name, groups[a].leaf.id, groups[b].leaf.id):
            out.append(f"{groups[a].leaf.id} {name} {groups[b].leaf.id}")
    return out
