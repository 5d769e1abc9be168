"""Foils: captions of a scene with one fact exchanged, so that they are false for it and true for a similar scene.

Words, numbers and grammar are the captions' own (the template is said again), so only the picture shows which of the
two is true. Each foil is checked against the scene and left out where it is not false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from hyco.demo.captions import Facts, Parts, Sentence, between, render, sayable
from hyco.demo.layout import Group
from hyco.demo.phrases import Saying
from hyco.demo.taxonomy import Taxonomy

KINDS = ("color", "count", "relation", "noun")


@dataclass(frozen=True)
class Foil:
    """A false sentence made from the caption of that number by a change of one of KINDS."""

    kind: str
    caption: int
    text: str


def foils(
    sentences: Sequence[Sentence],
    groups: Sequence[Group],
    facts: Facts,
    taxonomy: Taxonomy,
    rng: np.random.Generator,
) -> tuple[Foil, ...]:
    """At most one foil of each kind for each caption; the change is drawn among those that are false."""
    made = []
    for number, sentence in enumerate(sentences):
        for kind, changes in (
            ("color", _colors(sentence, groups)),
            ("count", _counts(sentence)),
            ("relation", _sides(sentence, facts)),
            ("noun", _siblings(sentence, groups, taxonomy)),
        ):
            options = list(changes)
            if options:
                change = options[int(rng.integers(len(options)))]
                text, _ = render(sentence.template, {**sentence.parts, **change}, sentence.proper)
                made.append(Foil(kind, number, text))
    return tuple(made)


def _things(sentence: Sentence) -> list[tuple[str, Saying, int]]:
    """Letter, saying and group of every thing named."""
    return [
        (letter, said, number)
        for letter, (said, number) in sentence.parts.items()
        if isinstance(said, Saying) and number is not None
    ]


def _colors(sentence: Sentence, groups: Sequence[Group]) -> Iterator[Parts]:
    """Two colours exchanged, each one that the other thing could have and none of its kind here has."""
    looks = {(group.leaf.id, group.color) for group in groups}
    for (x, one, a), (y, other, b) in combinations(_things(sentence), 2):
        mine, yours = groups[a].leaf, groups[b].leaf
        if not one.color or not other.color or mine is yours:
            continue
        likely = other.color in mine.colors and one.color in yours.colors
        if likely and not {(mine.id, other.color), (yours.id, one.color)} & looks:
            yield {x: (replace(one, color=other.color), a), y: (replace(other, color=one.color), b)}


def _counts(sentence: Sentence) -> Iterator[Parts]:
    """Two numbers exchanged, with their determiners: more of one thing are named than there are."""
    for (x, one, a), (y, other, b) in combinations(_things(sentence), 2):
        if one.count != other.count:
            yield {
                x: (replace(one, count=other.count, determiner=other.determiner), a),
                y: (replace(other, count=one.count, determiner=one.determiner), b),
            }


def _sides(sentence: Sentence, facts: Facts) -> Iterator[Parts]:
    """The two sides of the relation exchanged, where that is no longer true."""
    if sentence.relation is None:
        return
    a, b, *rest = (number for _, _, number in _things(sentence))
    if sentence.relation == "between":
        true = between(facts, (b, a, rest[0]))
    else:
        true = any(sentence.relation in words for words in sayable(facts, b, a))
    if not true:
        yield {"A": sentence.parts["B"], "B": sentence.parts["A"]}


def _siblings(sentence: Sentence, groups: Sequence[Group], taxonomy: Taxonomy) -> Iterator[Parts]:
    """A thing called by the name of a sibling that is not here and could have the colour that is said."""
    here = {group.leaf.id for group in groups}
    called = [one for group in groups for one, _ in group.leaf.names]
    for letter, said, number in _things(sentence):
        leaf = groups[number].leaf
        if said.names not in leaf.names:  # called by its category, which its siblings share
            continue
        for other in taxonomy.leaves.values():
            if other.parent != leaf.parent or other.id in here:
                continue
            wider = any(name.endswith(" " + other.name) for name in called)  # a fire truck is a truck
            if not wider and (said.color is None or said.color in other.colors):
                yield {letter: (replace(said, names=other.names[0]), number)}
