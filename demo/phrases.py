"""Noun phrases for the things of a scene.

They are built so that spaCy's noun chunks equal them: determiner or number, adjectives, noun, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyco.demo.layout import Group
from hyco.demo.taxonomy import Leaf, Taxonomy, category_plural

SMALL_WORDS, LARGE_WORDS = ("small", "little", "tiny"), ("large", "big", "huge")
NUMBERS = ("", "one", "two", "three")
# Categories whose name a person would use for one of its members, at times.
SAYABLE = frozenset({"bird", "insect", "flower", "tree", "ball", "bag", "musical_instrument"})


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def article(rest: str) -> str:
    """The indefinite article before `rest`."""
    return "an" if rest[0] in "aeio" or re.match(r"u(?!n[ia])", rest) else "a"


@dataclass(frozen=True)
class Saying:
    """A noun phrase in its pieces: determiner ("a" stands for a or an), size word, colour, name, number.

    `names` are singular and plural; `count` chooses between them.
    """

    determiner: str
    size: str | None
    color: str | None
    names: tuple[str, str]
    count: int

    @property
    def text(self) -> str:
        """ "two small red cars"."""
        rest = " ".join(filter(None, (self.size, self.color, self.names[self.count > 1])))
        word = article(rest) if self.determiner == "a" else self.determiner
        return f"{word} {rest}" if word else rest


def noun_phrase(
    names: tuple[str, str],
    count: int,
    color: str | None,
    size: str | None,
    rng: np.random.Generator,
    bare: bool = False,
) -> Saying:
    """ "two small red cars": a determiner or number (none when `bare`), size, colour, name."""
    word = pick(SMALL_WORDS if size == "small" else LARGE_WORDS, rng) if size else None
    if count > 1:
        determiner = "" if bare and rng.random() < 0.5 else NUMBERS[count]
    else:
        roll = rng.random()
        determiner = "" if bare else "the" if roll < 0.06 else "one" if roll < 0.1 else "a"
    return Saying(determiner, word, color, names, count)


def loose_phrase(leaf: Leaf, color: str | None, rng: np.random.Generator) -> str:
    """A phrase for a thing with random number, size word and article, as captions would have it."""
    names = leaf.names[0] if rng.random() < 0.8 else leaf.names[int(rng.integers(len(leaf.names)))]
    count = int(rng.choice((1, 2, 3), p=(0.65, 0.2, 0.15)))
    size = None if rng.random() < 0.7 else str(rng.choice(("small", "large")))
    return noun_phrase(names, count, color, size, rng, bare=rng.random() < 0.1).text


class Speaker:
    """Noun phrases for the groups of one scene, with the words needed to distinguish them."""

    def __init__(self, groups: Sequence[Group], taxonomy: Taxonomy, rng: np.random.Generator):
        self.groups, self.taxonomy, self.rng = groups, taxonomy, rng
        self.leaves = [g.leaf.id for g in groups]

    def say(self, number: int, bare: bool = False) -> Saying:
        """A noun phrase for a group."""
        group, rng = self.groups[number], self.rng
        twin = self.leaves.count(group.leaf.id) > 1
        color = group.color if twin or rng.random() < 0.8 else None
        size = group.size if rng.random() < 0.55 else None
        names = group.leaf.names[0]
        if len(group.leaf.names) > 1 and rng.random() < 0.25:
            names = group.leaf.names[1 + int(rng.integers(len(group.leaf.names) - 1))]
        parent = group.leaf.parent
        alone = sum(g.leaf.parent == parent for g in self.groups) == 1
        if parent in SAYABLE and alone and rng.random() < 0.1:
            word = parent.replace("_", " ")
            names = (word, category_plural(word))
        return noun_phrase(names, group.count, color, size, rng, bare)
