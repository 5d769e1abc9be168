"""Noun chunks extended to their referring expressions along the dependency tree."""

from typing import Any

from hyco.pipeline.mining.chunks import Chunk, Chunks
from hyco.pipeline.mining.phrase_words import BEINGS, CLAUSES, NEAR, SAME_FORM

_JOINTS = {"-", "/", "'"}  # punctuation within words: "t-shirt"
_LINKS = ("ADP", "VERB", "AUX", "SCONJ", "PART", "CCONJ", "DET", "ADV")
"""An expression does not end with one of them where it was cut."""
_REDUCED = ("VBG", "VBN")


def grow(root: Any, first: int, last: int, found: Chunks, rules: frozenset[str]) -> tuple[int, int]:
    """Token range [low, high] of the chunk [first, last] and its head's dependents, without conjuncts or gaps.

    With the rule "chunk ends" it ends inside none of the chunks found: one whose head is a dependent is taken whole,
    before another one the range ends. It stops before mistaken verbs; with "conjuncts" conjuncts of dependents belong
    to it, not its own.
    """
    doc, inner = root.doc, "conjuncts" in rules
    whole: list[Chunk] = found.chunks if "chunk ends" in rules else []
    verbs = found.verbs if "conjuncts" in rules or "verbs" in rules else set[int]()
    below = {root.i, *range(first, last + 1)}
    cut: set[int] = set()  # mistaken verbs below the head: the chunk before one belongs to the expression
    waiting = [doc[place] for place in below] if whole else [root]
    for token in _further(root, last, found, rules):
        below.add(token.i)
        waiting.append(token)
    while waiting:
        parent = waiting.pop()
        for child in parent.children:
            own = not inner or parent.i == root.i or first <= parent.i <= last
            if child.i in verbs:
                cut.add(child.i)
                continue
            if (
                (own and child.dep_ in ("conj", "cc", "preconj"))
                or (child.is_punct and child.text not in _JOINTS)
                or (inner and child.is_space)
                or ("clauses" in rules and _is_clause(child))
            ):
                continue
            if child.i not in below:
                below.add(child.i)
                waiting.append(child)
    for start, end, head in whole:
        if head.i in below or (end + 1 in cut and start > last):
            below.update(range(start, end + 1))
    low, high = first, last
    while "starts" not in rules and low - 1 in below:
        low -= 1
    while high + 1 in below:
        high += 1
    while inner and high > last and (doc[high].pos_ == "CCONJ" or doc[high].is_space):
        high -= 1
    while low < first and doc[low].is_space:
        low += 1
    for start, end, _ in whole:
        if last < start <= high < end:
            high = start - 1
            while high > last and (doc[high].pos_ in _LINKS or is_margin(doc[high])):
                high -= 1
    return low, high


def is_margin(token: Any) -> bool:
    """Whether a token at the end of a chunk or expression does not belong to it."""
    return token.is_punct or token.is_space or token.is_quote


def _is_clause(token: Any) -> bool:
    """Whether a token is the verb of a clause of its own: "while people sit on a bench", "and his skateboard falls"."""
    if token.dep_ == "conj" and token.head.pos_ in ("VERB", "AUX"):
        return any(child.dep_ in ("nsubj", "nsubjpass") for child in token.children)
    return (
        token.dep_ == "advcl"
        and token.head.lower_ != "dressed"
        and any(
            child.dep_ in ("mark", "advmod") and child.i < token.i and child.lower_ in CLAUSES
            for child in token.children
        )
    )


def _further(root: Any, last: int, found: Chunks, rules: frozenset[str]) -> list[Any]:
    """Tokens behind the chunk that the parser hung elsewhere and that belong to its expression."""
    doc, tokens = root.doc, []
    if last + 1 >= len(doc):
        return tokens
    follows, verb = doc[last + 1], root.head
    if (
        "fragments" in rules
        and verb.i == last + 1
        and verb.i not in found.verbs
        and verb.tag_ in _REDUCED
        and verb.lower_ not in SAME_FORM
    ):
        # "two dogs jumping to catch a ball ." is no sentence: the verb that the parser took for its root is reduced
        finite = any(child.dep_ in ("aux", "auxpass") and child.tag_ != "TO" for child in verb.children)
        if root.dep_ in ("nsubj", "nsubjpass", "npadvmod") and not finite:
            tokens.append(verb)
    if "nearest" in rules and follows.dep_ == "prep" and follows.head.i < root.i:
        near = root.dep_ == "pobj" and root.head.lower_ in NEAR
        person = root.dep_ == "pobj" and root.lower_ in BEINGS and follows.lower_ in ("with", "in")
        if (near and follows.lower_ == "with") or person:
            tokens.append(follows)
    return tokens
