"""Noun chunks repaired where a small parser lost, joined or cut them (edition 4), one function for each repair."""

from typing import Any

from hyco.pipeline.mining.chunks import Chunks
from hyco.pipeline.mining.mistaken_verbs import SINGULAR
from hyco.pipeline.mining.phrase_words import (
    ACTIONS,
    BEINGS,
    COLOURS,
    GERUND_THINGS,
    MATERIALS,
    PLACE_ADVERBS,
    RELATIVE,
    TRANSITIVE,
)

_NOUNS = ("NN", "NNS", "NNP", "NNPS")
_MODIFIERS = ("JJ", "JJR", "JJS", "CD", "VBN", *_NOUNS)
_DETERMINERS = ("DT", "PRP$")
_OBJECTS = ("pobj", "dobj", "nsubj", "nsubjpass", "attr")
_FOLLOW_A_VERB = ("DT", "PRP$", "IN", "TO", "RP", "RB", "PRP")


def recover(of: Chunks) -> None:
    """Add things outside the chunks: "a uniform" read as an adjective, "water" behind a mistaken verb."""
    doc, taken, found = of.doc, of.taken(), list(of.chunks)
    ends = {last: index for index, (_, last, _) in enumerate(found)}
    for token in doc:
        if token.i in taken or token.lower_ in PLACE_ADVERBS or not token.is_alpha:
            continue
        first, following = token.i, doc[token.i + 1].tag_ if token.i + 1 < len(doc) else ""
        while first and first - 1 not in taken and doc[first - 1].tag_ in _MODIFIERS:
            first -= 1
        determined = first > 0 and first - 1 not in taken and doc[first - 1].tag_ in _DETERMINERS
        if determined and token.tag_ == "NNS" and doc[first - 1].lower_ in SINGULAR:
            continue  # "another [watches]"
        if token.tag_ in _NOUNS:
            if following in _NOUNS and token.i + 1 not in taken:
                continue
            index = ends.get(token.i - 1)
            if index is not None and first == token.i and token.tag_ == "NN":
                before = doc[token.i - 1]
                compound = before.tag_ == "NN" and before.dep_ in ("compound", "pobj", "nmod", "amod")
                compound = compound and token.i in (before.head.i, before.head.head.i)
                if compound and token.dep_ in (*_OBJECTS, "appos", "conj", "npadvmod") and not _gerund(token):
                    found[index] = (found[index][0], token.i, token)  # "wire [fence]"
                    taken.add(token.i)
                continue
            behind = (first > 0 and first - 1 in of.verbs) or (first < token.i and doc[first].tag_ == "CD")
        else:
            behind = False
            adjective = token.tag_ in ("JJ", "VB", "RB", "VBP") and token.dep_ in _OBJECTS
            if (
                not adjective
                or token.lower_ in COLOURS | RELATIVE
                or following in (*_MODIFIERS, "CC", "HYPH")
            ):
                continue
        if determined or behind:
            found.append((first - determined, token.i, token))
            of.sure.add(token.i)
            taken.update(range(first - determined, token.i + 1))
    of.replace(found)


def cut_gerunds(of: Chunks) -> None:
    """Cut "a kid playing" behind the kid, and "boy touching wooden wall" into "boy" and "wooden wall"."""
    doc, kept = of.doc, []
    for first, last, root in of.chunks:
        cut = next((place for place in range(first + 1, last + 1) if _acts(first, place, last, doc)), None)
        if cut is None:
            kept.append((first, last, root))
            continue
        end = _being_before(first, cut, doc)
        end = cut - 1 if end is None or doc[cut].tag_ == "VBG" else end
        of.verbs.update(range(end + 1, cut + 1))
        of.sure.add(end)
        kept.append((first, end, doc[end]))
        if cut < last:
            kept.append((cut + 1, last, root if root.i > cut else doc[last]))
    of.replace(kept)


def _acts(first: int, place: int, last: int, doc: Any) -> bool:
    """Whether a word in -ing inside a chunk is what the noun before it does."""
    token, before = doc[place], doc[place - 1]
    if not _gerund(token) or not (before.tag_ in _NOUNS or before.lower_ in BEINGS):
        return False
    if _being_before(first, place, doc) is not None or token.lower_ in TRANSITIVE:
        return True
    if place == last:
        return doc[first].tag_ in ("DT", "CD", "PRP$")  # "a pelican diving", but not "rock climbing"
    return token.tag_ == "VBG" and doc[place + 1].tag_ in ("JJ", "DT", "PRP$")


def cut_verbs(of: Chunks) -> None:
    """Cut "young girl kneels" and "three girls tug" before the verb."""
    doc, kept = of.doc, []
    for first, last, root in of.chunks:
        before = doc[last - 1] if last > first else None
        following = doc[last + 1].tag_ if last + 1 < len(doc) else ""
        if before is not None and before.lower_ in BEINGS and _is_their_verb(before, doc[last], following):
            of.verbs.add(last)
            of.sure.add(last - 1)
            kept.append((first, last - 1, before))
        else:
            kept.append((first, last, root))
    of.replace(kept)


def _is_their_verb(being: Any, token: Any, following: str) -> bool:
    """Whether a token read as a noun is the verb of the being before it, by its number and what follows."""
    if being.tag_ == "NN":
        return token.lower_ in ACTIONS
    plain = being.tag_ == "NNS" and token.tag_ in ("NN", "NNP") and not _gerund(token)
    return plain and following in _FOLLOW_A_VERB


def split_pairs(of: Chunks) -> None:
    """Split "a yellow helmet and red jacket" and "a lake and picnic table" at the "and"."""
    doc, kept = of.doc, []
    for first, last, root in of.chunks:
        at = next((place for place in range(first + 1, last) if _joins_two(first, place, last, doc)), None)
        if at is None:
            kept.append((first, last, root))
        else:
            of.sure.add(at - 1)
            kept += [(first, at - 1, doc[at - 1]), (at + 1, last, root if root.i > at else doc[last])]
    of.replace(kept)


def _joins_two(first: int, place: int, last: int, doc: Any) -> bool:
    """Whether a conjunction inside a chunk joins two things, and not two words about one ("a glass and steel door")."""
    if doc[place].tag_ != "CC" or any(doc[inner].tag_ == "CC" for inner in range(place + 1, last)):
        return False
    left, right = doc[place - 1], doc[place + 1]
    if left.tag_ not in _NOUNS or left.lower_ in COLOURS | MATERIALS or doc[last].tag_ not in _NOUNS:
        return False
    described = place - 2 >= first and doc[place - 2].tag_ in ("JJ", "NN") and right.tag_ == "JJ"
    return described or (doc[first].tag_ in ("DT", "CD", "PRP$") and right.lower_ not in COLOURS | MATERIALS)


def join_colours(of: Chunks) -> None:
    """Join "a large grey" and "white bird" of "a large grey and white bird" to one chunk."""
    doc, kept = of.doc, []
    for first, last, root in of.chunks:
        start = first
        if (
            first > 1
            and doc[first - 1].lower_ in ("and", ",")
            and doc[first].tag_ not in ("DT", "CD", "PRP$")
        ):
            start = first - 2
            colour = doc[start].lower_ in COLOURS
            while start and doc[start - 1].tag_ in ("JJ", "RB"):
                start -= 1
            determined = start > 0 and doc[start - 1].tag_ in ("DT", "CD", "PRP$")
            start = start - determined if colour and (determined or start == 0) else first
        if start < first:
            kept = [chunk for chunk in kept if chunk[1] < start]
        kept.append((start, last, root))
    of.replace(kept)


def strip_adverbs(of: Chunks) -> None:
    """Take adverbs of place off the end of chunks: "a trashcan [outdoors]"."""
    doc, kept = of.doc, []
    for first, last, root in of.chunks:
        end = last
        while end >= first and doc[end].lower_ in PLACE_ADVERBS:
            end -= 1
        if end < first or (end == first and doc[end].tag_ in _DETERMINERS):
            continue
        if end < last:
            root = root if root.i <= end else doc[end]
            if root.tag_ not in _NOUNS:
                continue
            of.sure.add(root.i)
        kept.append((first, end, root))
    of.replace(kept)


def _gerund(token: Any) -> bool:
    """Whether a word in -ing names an action."""
    return (
        token.lower_.endswith("ing")
        and token.tag_ in ("NN", "NNP", "VBG")
        and token.lower_ not in GERUND_THINGS
    )


def names_an_action(root: Any) -> bool:
    """Whether the head of a chunk is a word in -ing that names what somebody does."""
    return _gerund(root)


def _being_before(first: int, place: int, doc: Any) -> int | None:
    """The last person or animal of a chunk before a place, at most two words before it."""
    near = range(place - 1, max(first, place - 2) - 1, -1)
    return next((index for index in near if doc[index].lower_ in BEINGS), None)
