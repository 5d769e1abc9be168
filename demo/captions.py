"""Captions of a scene, with the character span of every noun phrase."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyco.demo import backdrops
from hyco.demo.layout import Group
from hyco.demo.phrases import Saying, Speaker, article, pick
from hyco.demo.taxonomy import Leaf, Taxonomy

Facts = Sequence[tuple[str, int, int]]
# Wordings of a true relation (a, b), from a's side and from b's side.
FORWARD = {
    "left": ("to the left of", "on the left of"),
    "above": ("above",),
    "on": ("on top of", "on"),
    "front": ("in front of",),
    "near": ("next to", "beside", "near"),
}
BACKWARD = {
    "left": ("to the right of", "on the right of"),
    "above": ("below", "under", "beneath"),
    "on": ("under", "below"),
    "front": ("behind",),
    "near": ("next to", "beside", "near"),
}


Parts = Mapping[str, tuple[Saying | str, int | None]]


@dataclass(frozen=True)
class Sentence:
    """A caption and its noun phrases: (start, end, group number), None for a phrase of the background.

    It can be said again with other words in it: `template` has {is} and a {letter} for each of `parts` (what
    is said, group number), the first of which is A; `relation` is what is said of A and B ("between": of A, B
    and C); a `proper` one has a capital and a full stop.
    """

    text: str
    spans: tuple[tuple[int, int, int | None], ...]
    template: str
    parts: Parts
    relation: str | None
    proper: bool


def render(template: str, parts: Parts, proper: bool) -> tuple[str, tuple[tuple[int, int, int | None], ...]]:
    """Text and spans of a sentence: phrases put into a template, the verb agreeing with the first."""
    first = parts["A"][0]
    assert isinstance(first, Saying), "A is a thing of the scene"
    text, spans = "", []
    for piece in re.split(r"(\{\w+\})", template.replace("{is}", "are" if first.count > 1 else "is")):
        if piece.startswith("{"):
            said, number = parts[piece[1:-1]]
            phrase = said.text if isinstance(said, Saying) else said
            spans.append((len(text), len(text) + len(phrase), number))
            text += phrase
        else:
            text += piece
    return text[0].upper() + text[1:] + "." if proper else text, tuple(spans)


def _place(backdrop: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
    """A mention of the background, split into its preposition and its noun phrase."""
    kind, tint = backdrop
    words, _, phrase = pick(backdrops.WORDS[kind], rng).format(tint).partition(" ")
    if phrase.startswith("a "):
        phrase = f"{article(phrase[2:])} {phrase[2:]}"
    return words, phrase


ONE = (
    "{A}",
    "{A}",
    "{A}",
    "there {is} {A}",
    "there {is} {A}",
    "{A} can be seen",
    "a picture of {A}",
    "a drawing of {A}",
)
ONE_PLACED = (
    "{A} {at}",
    "{A} {at}",
    "there {is} {A} {at}",
    "{A} {is} {at}",
    "{A} {pose} {at}",
    "{A} {pose} {at}",
)
PAIR = (
    "{A} {rel} {B}",
    "{A} {rel} {B}",
    "{A} {rel} {B}",
    "{A} {is} {rel} {B}",
    "there {is} {A} {rel} {B}",
    "{A} can be seen {rel} {B}",
)
LISTS = {
    2: (
        "{A} and {B}",
        "{A} and {B}",
        "{A} and {B}",
        "{A} with {B}",
        "there {is} {A} and {B}",
        "a picture of {A} and {B}",
    ),
    3: ("{A}, {B} and {C}", "{A}, {B} and {C}", "{A} with {B} and {C}", "{A} and {B} with {C}"),
    4: ("{A}, {B}, {C} and {D}", "{A}, {B}, {C}, and {D}", "{A} and {B} with {C} and {D}"),
}
BETWEEN = ("{A} between {B} and {C}", "{A} {is} between {B} and {C}", "there {is} {A} between {B} and {C}")
BARE = {2: "{A} and {B}", 3: "{A}, {B} and {C}", 4: "{A}, {B}, {C} and {D}"}
GROUND = frozenset({"grass", "sand", "snow"})


def _pose(leaf: Leaf, kind: str, taxonomy: Taxonomy, rng: np.random.Generator) -> str:
    """What a thing does on the background: a duck stands in the grass, a car is parked there."""
    above = taxonomy.ancestors(leaf.id)
    if kind == "sea":
        return "floating"
    if kind in GROUND and "animal" in above and leaf.parent not in ("sea_animal", "insect"):
        return pick(("standing", "resting"), rng)
    if kind in GROUND and leaf.parent == "road_vehicle":
        return "parked"
    return "shown" if kind not in GROUND else "placed"


def sayable(facts: Facts, a: int, b: int) -> list[tuple[str, ...]]:
    """For each true relation of a to b the words that say it."""
    words = [FORWARD[n] for n, x, y in facts if (x, y) == (a, b)]
    return words + [BACKWARD[n] for n, x, y in facts if (y, x) == (a, b)]


def _said(facts: Facts, a: int, b: int, rng: np.random.Generator) -> str | None:
    """Words for a true relation of a to b, None when there is none."""
    words = sayable(facts, a, b)
    return pick(words[int(rng.integers(len(words)))], rng) if words else None


def between(facts: Facts, order: Sequence[int]) -> bool:
    """Whether the first of three stands between the two others, in a row or a column."""
    a, b, c = order
    known = set(facts)
    return any({(n, b, a), (n, a, c)} <= known or {(n, c, a), (n, a, b)} <= known for n in ("left", "above"))


def _template(
    order: Sequence[int], facts: Facts, kind: str, rng: np.random.Generator
) -> tuple[str, str | None]:
    """A template over the groups of `order`, and its relation; "pair" says one where one is true."""
    if kind == "bare":
        return BARE[len(order)], None
    if kind == "placed" and len(order) == 1:
        return pick(ONE_PLACED, rng), None
    if kind == "pair" and len(order) == 3 and between(facts, order) and rng.random() < 0.6:
        return pick(BETWEEN, rng), "between"
    rel = _said(facts, order[0], order[1], rng) if kind == "pair" and len(order) > 1 else None
    if rel is None:
        template = pick(ONE if len(order) == 1 else LISTS[len(order)], rng)
        return template + " {at}" if kind == "placed" else template, None
    template = pick(PAIR, rng).replace("{rel}", rel)
    if len(order) == 3:
        return template + pick((", and {C}", " and {C}"), rng), rel
    if len(order) == 4:
        more = _said(facts, order[2], order[3], rng)
        tail = f", and {{C}} {more} {{D}}" if more and rng.random() < 0.6 else ", {C} and {D}"
        return template + tail, rel
    return template, rel


def _sentence(
    speaker: Speaker, order: Sequence[int], facts: Facts, backdrop: tuple[str, str], rng: np.random.Generator
) -> Sentence:
    """One caption over the groups of `order`."""
    share = (0.5, 0.5, 0) if len(order) == 1 else (0.5, 0.4, 0.1)
    kind = str(rng.choice(("list", "placed", "bare"), p=share))
    if len(order) > 1 and rng.random() < 0.72:
        kind = "pair"
    template, relation = _template(order, facts, kind, rng)
    parts: dict[str, tuple[Saying | str, int | None]] = {}
    for letter, number in zip("ABCD", order, strict=False):
        parts[letter] = (speaker.say(number, bare=kind == "bare"), number)
    first = speaker.groups[order[0]]
    if "{at}" in template:
        word, phrase = _place(backdrop, rng)
        template = template.replace("{at}", f"{word} {{P}}")
        template = template.replace("{pose}", _pose(first.leaf, backdrop[0], speaker.taxonomy, rng))
        parts["P"] = (phrase, None)
    proper = bool(rng.random() < 0.35)
    return Sentence(*render(template, parts, proper), template, parts, relation, proper)


def compose(
    groups: Sequence[Group],
    facts: Facts,
    backdrop: tuple[str, str],
    taxonomy: Taxonomy,
    rng: np.random.Generator,
) -> list[Sentence]:
    """Two or three captions of a scene; the first names everything."""
    speaker = Speaker(groups, taxonomy, rng)
    n = len(groups)
    out: list[Sentence] = []
    wanted = 2 + int(rng.random() < 0.5)
    for attempt in range(40):
        order = [int(i) for i in rng.permutation(n)]
        if out and n > 1 and rng.random() < 0.45:
            order = order[: int(rng.integers(1, n))]
        sentence = _sentence(speaker, order, facts, backdrop, rng)
        if all(_plain(sentence) != _plain(other) for other in out):
            out.append(sentence)
        if len(out) == wanted or (len(out) == 2 and attempt > 12):
            break
    return out


def _plain(sentence: Sentence) -> str:
    return sentence.text.lower().rstrip(".")
