"""Noun chunks repaired where the tagger took a verb for a noun, or a noun for part of a verb (edition 3).

A small parser reads "a boy wearing a red shirt dumps water" as if "red shirt dumps" were things. Agreement tells: "a"
wants a singular noun. Other signs are an adverb or a plural noun before the word, and a few forms that are hardly ever
plural nouns in captions.
"""

from collections.abc import Container
from typing import Any

from hyco.pipeline.mining.chunks import Chunk, Chunks

SINGULAR = frozenset({"a", "an", "another", "one", "each", "every"})
_COUNTS = frozenset(
    {"few", "dozen", "couple", "lot", "hundred", "thousand", "number", "variety", "pair", "group"}
)
_VERBS = frozenset(
    {"lays", "sits", "wears", "looks", "holds", "sets", "gets", "tries", "eats", "throws", "catches", "rides"}
    | {
        "climbs",
        "dumps",
        "leaps",
        "poses",
        "chases",
        "carries",
        "swims",
        "digs",
        "reaches",
        "pulls",
        "watches",
    }
)
"""Forms of verbs that are hardly ever plural nouns in captions."""
PLURAL_MODIFIERS = frozenset({"sports", "clothes", "glasses", "arms", "goods", "savings"})
"""Plural nouns that stand before a noun."""
_NOUNS = ("NN", "NNS", "NNP", "NNPS")


def repair_verbs(of: Chunks, behind: bool = False) -> None:
    """Cut the chunks at mistaken verbs and add subjects read as part of their verb.

    With `behind` the noun right behind a mistaken verb is none itself ("wears [glasses]").
    """
    doc = of.doc
    kept: list[Chunk] = []
    for start, last, root in of.chunks:
        first = start
        while first < last and _is_object(first, doc):
            first += 1  # "man climbing [rock cliff]"
        while (mistaken := _verb_in(first, last, doc, of.verbs if behind else ())) is not None:
            of.verbs.add(mistaken)
            if mistaken > first and doc[mistaken - 1].tag_ != "RB":
                kept.append((first, mistaken - 1, doc[mistaken - 1]))
                of.sure.add(mistaken - 1)
            first = mistaken + 1
        if first <= last:
            kept.append((first, last, root if root.i >= first else doc[last]))
    taken = {place for first, last, _ in kept for place in range(first, last + 1)}
    for token in doc:
        if token.i not in taken and token.i not in of.verbs and _lost(token, doc):
            first = token.i
            while (
                first
                and first - 1 not in taken
                and doc[first - 1].tag_ in ("DT", "JJ", "CD", "PRP$", *_NOUNS)
            ):
                first -= 1
            kept.append((first, token.i, token))
            of.sure.add(token.i)
            taken.update(range(first, token.i + 1))
    of.replace(kept)


def _verb_in(first: int, last: int, doc: Any, verbs: Container[int]) -> int | None:
    """The first token of a chunk that is a verb in truth."""
    for place in range(first, last + 1):
        token = doc[place]
        if token.tag_ != "NNS":
            continue
        before = doc[place - 1] if place else None
        if before is None or before.tag_ in ("CD", "POS"):
            continue
        if place > first:
            singular = (
                doc[first].lower_ in SINGULAR and doc[first + 1].lower_ not in _COUNTS and place > first + 1
            )
            spoken = token.lower_ in _VERBS and doc[first].tag_ != "CD"
            adverb = before.tag_ == "RB" and before.lower_.endswith("ly")
            plural = before.tag_ == "NNS" and before.lower_ not in PLURAL_MODIFIERS
            if (singular and place == last) or spoken or adverb or plural:
                return place
        elif (
            before.tag_ in ("NNS", "NNPS", "NNP")
            and place == last
            and not before.is_punct
            and place - 1 not in verbs
        ):
            return place  # "wearing Rollerblades [slides]"
    return None


def _is_object(place: int, doc: Any) -> bool:
    """Whether an -ing form at the start of a chunk is a verb whose object the chunk is."""
    form = doc[place].tag_ == "VBG" or (doc[place].tag_ == "NN" and doc[place].lower_.endswith("ing"))
    return form and place > 0 and (doc[place - 1].tag_ in _NOUNS or doc[place - 1].pos_ in ("AUX", "PRON"))


def _lost(token: Any, doc: Any) -> bool:
    """Whether a token outside the chunks is a thing: a subject read as part of its verb, or a caption's first word."""
    if token.tag_ == "UH":
        return token.i == 0 and len(doc) > 1 and doc[1].pos_ in ("ADP", "VERB", "AUX", "DET")
    verb = token.head
    if token.tag_ not in _NOUNS or verb.i <= token.i:
        return False
    between = doc[token.i + 1 : verb.i]
    return token.dep_ in ("compound", "npadvmod") and verb.tag_[:2] == "VB" and not len(between)
