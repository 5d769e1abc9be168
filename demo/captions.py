"""Captions of a scene, with the character span of every noun phrase.

Phrases are built so that spaCy's noun chunks equal them: determiner or number, adjectives, noun, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo import backdrops
from demo.layout import Group
from demo.taxonomy import Leaf, Taxonomy, category_plural

SMALL_WORDS, LARGE_WORDS = ("small", "little", "tiny"), ("large", "big", "huge")
NUMBERS = ("", "one", "two", "three")
# How a true fact (a, b) is said from a's side, and from b's side.
FORWARD = {
    "left": ("to the left of", "left of", "on the left of"),
    "above": ("above", "over"),
    "on": ("on top of", "on"),
    "front": ("in front of",),
    "near": ("next to", "beside", "near"),
}
BACKWARD = {
    "left": ("to the right of", "right of", "on the right of"),
    "above": ("below", "under", "beneath"),
    "on": ("under", "below"),
    "front": ("behind",),
    "near": ("next to", "beside", "near"),
}
# Categories whose name a person would use for one of its members, at times.
SAYABLE = frozenset({"bird", "insect", "flower", "tree", "ball", "bag", "musical_instrument"})


@dataclass(frozen=True)
class Sentence:
    """A caption and its noun phrases: (start, end, group number), None for a phrase of the background."""

    text: str
    spans: tuple[tuple[int, int, int | None], ...]


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _article(rest: str) -> str:
    return "an" if rest[0] in "aeio" or re.match(r"u(?!n[ia])", rest) else "a"


def noun_phrase(
    names: tuple[str, str], count: int, color: str | None, size: str | None, rng: np.random.Generator, bare: bool = False
) -> str:
    """ "two small red cars": a determiner or number (none when `bare`), size, colour, name."""
    adjectives = []
    if size:
        adjectives.append(_pick(SMALL_WORDS if size == "small" else LARGE_WORDS, rng))
    if color:
        adjectives.append(color)
    rest = " ".join([*adjectives, names[count > 1]])
    if count > 1:
        return rest if bare and rng.random() < 0.5 else f"{NUMBERS[count]} {rest}"
    roll = rng.random()
    if bare:
        return rest
    return f"the {rest}" if roll < 0.06 else f"one {rest}" if roll < 0.1 else f"{_article(rest)} {rest}"


def loose_phrase(leaf: Leaf, color: str | None, rng: np.random.Generator) -> str:
    """A phrase for a thing with random number, size word and article, as captions would have it."""
    names = leaf.names[0] if rng.random() < 0.8 else leaf.names[int(rng.integers(len(leaf.names)))]
    count = int(rng.choice((1, 2, 3), p=(0.65, 0.2, 0.15)))
    size = None if rng.random() < 0.7 else str(rng.choice(("small", "large")))
    return noun_phrase(names, count, color, size, rng, bare=rng.random() < 0.1)


class _Speaker:
    """Says the groups of one scene, keeping what is needed to tell them apart."""

    def __init__(self, groups: Sequence[Group], taxonomy: Taxonomy, rng: np.random.Generator):
        self.groups, self.taxonomy, self.rng = groups, taxonomy, rng
        self.leaves = [g.leaf.id for g in groups]

    def say(self, number: int, bare: bool = False) -> str:
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


def _fill(template: str, parts: dict[str, tuple[str, int | None]], rng: np.random.Generator) -> Sentence:
    """Put phrases into a template and keep their spans; some captions start with a capital and end with a stop."""
    text, spans = "", []
    for piece in re.split(r"(\{\w+\})", template):
        if piece.startswith("{"):
            phrase, number = parts[piece[1:-1]]
            spans.append((len(text), len(text) + len(phrase), number))
            text += phrase
        else:
            text += piece
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:] + "."
    return Sentence(text, tuple(spans))


def _place(backdrop: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """A mention of the background, split into its preposition and its noun phrase."""
    kind, tint = backdrop
    words, _, phrase = _pick(backdrops.WORDS[kind], rng).format(tint).partition(" ")
    if phrase.startswith("a "):
        phrase = f"{_article(phrase[2:])} {phrase[2:]}"
    return words, phrase


ONE = ("{A}", "{A}", "{A}", "there {is} {A}", "a picture of {A}", "a drawing of {A}", "{A} alone")
PAIR = ("{A} {rel} {B}", "{A} {rel} {B}", "{A} {rel} {B}", "{A} {is} {rel} {B}", "there {is} {A} {rel} {B}")
LISTS = {
    2: ("{A} and {B}", "{A} and {B}", "there {is} {A} and {B}", "a picture of {A} and {B}"),
    3: ("{A}, {B} and {C}", "{A}, {B} and {C}", "{A} with {B} and {C}"),
    4: ("{A}, {B}, {C} and {D}", "{A}, {B}, {C}, and {D}"),
}


def _sentence(
    speaker: _Speaker, order: Sequence[int], facts, backdrop, kind: str, rng: np.random.Generator
) -> Sentence:
    """One caption over the groups of `order`: "pair" says a relation, "list" only names them."""
    bare = kind == "list" and rng.random() < 0.12
    parts: dict[str, tuple[str, int | None]] = {}
    for letter, number in zip("ABCD", order, strict=False):
        parts[letter] = (speaker.say(number, bare), number)
    first = speaker.groups[order[0]]
    is_word = "are" if first.count > 1 else "is"
    template = _pick(ONE if len(order) == 1 else LISTS[len(order)], rng)
    if kind == "pair" and len(order) >= 2:
        a, b = order[0], order[1]
        said = [FORWARD[n] for n, x, y in facts if (x, y) == (a, b)] + [BACKWARD[n] for n, x, y in facts if (y, x) == (a, b)]
        if said:
            rel = _pick(said[int(rng.integers(len(said)))], rng)
            template = _pick(PAIR, rng).replace("{rel}", rel)
            if len(order) == 3:
                template += " and {C}" if template.startswith("there") else ", and {C}"
            elif len(order) == 4:
                template += ", {C} and {D}"
    template = template.replace("{is}", is_word)
    if rng.random() < (0.35 if len(order) == 1 else 0.15) and "alone" not in template:
        word, phrase = _place(backdrop, rng)
        # "on the left of X on the grass" reads badly; only plain lists and single things take a place.
        if kind != "pair":
            template += f" {word} {{P}}"
            parts["P"] = (phrase, None)
    return _fill(template, parts, rng)


def compose(
    groups: Sequence[Group], facts, backdrop: tuple[str, str], taxonomy: Taxonomy, rng: np.random.Generator
) -> list[Sentence]:
    """Two or three captions of a scene; the first names everything."""
    speaker = _Speaker(groups, taxonomy, rng)
    n = len(groups)
    out: list[Sentence] = []
    wanted = 2 + int(rng.random() < 0.5)
    for attempt in range(12):
        order = [int(i) for i in rng.permutation(n)]
        kind = "pair" if n > 1 and rng.random() < 0.7 else "list"
        if attempt > 0 and n > 2:
            order = order[: int(rng.integers(2, n + 1))]
        elif attempt > 1 and n == 2 and rng.random() < 0.4:
            order = order[:1]
        sentence = _sentence(speaker, order, facts, backdrop, kind, rng)
        if all(sentence.text.lower().rstrip(".") != s.text.lower().rstrip(".") for s in out):
            out.append(sentence)
        if len(out) == wanted:
            break
    return out
