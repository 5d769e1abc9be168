"""spaCy's pipeline for captions: its own tokens, tags and trees, in less than half the processor time.

Components whose results no noun rule reads are left out, matrix products are NumPy's instead of those of the `blis`
package (2 to 3 times slower), and the rules that turn tags into parts of speech run once for each kind of token.
None of this changes a result beyond the rounding of a sum. Importing this module imports spaCy.
"""

from collections.abc import Iterable
from typing import Any, cast

import spacy
from spacy.language import Language
from spacy.matcher import Matcher
from spacy.pipeline import AttributeRuler
from spacy.tokens import Doc
from spacy.tokens._retokenize import set_token_attrs

_UNREAD = ("ner", "lemmatizer", "senter", "textcat")
_RULER, _CACHED = "attribute_ruler", "cached_attribute_ruler"
_MOST_KINDS = 1 << 20  # kinds of token to remember, some 200 bytes each
# What a pattern may ask of a token so that its form, tag and dependency label decide whether it matches.
_OF_THE_KIND = frozenset({"TAG", "DEP", "ORTH", "TEXT", "LOWER", "SHAPE", "LENGTH"}) | {
    f"IS_{name}" for name in ("SPACE", "PUNCT", "DIGIT", "ALPHA", "LOWER", "UPPER", "TITLE", "QUOTE")
}


def load_parser(model: str) -> Language:
    """Return an installed spaCy pipeline as the module says.

    Its `pipe` gives the documents that `spacy.load(model, exclude=...)` gives.
    """
    nlp = spacy.load(model, exclude=list(_UNREAD))
    for _, component in nlp.pipeline:
        network: Any = getattr(component, "model", None)
        for node in network.walk() if hasattr(network, "walk") else ():
            if getattr(node.ops, "use_blis", False):  # thinc's NumpyOps
                node.ops = type(node.ops)(use_blis=False)
    if _RULER in nlp.pipe_names and type(nlp.get_pipe(_RULER)) is AttributeRuler:
        place = nlp.pipe_names.index(_RULER)
        patterns = cast(AttributeRuler, nlp.remove_pipe(_RULER)[1]).patterns
        before = nlp.pipe_names[place] if place < len(nlp.pipe_names) else None
        ruler: Any = nlp.add_pipe(_CACHED, name=_RULER, before=before)
        ruler.add_patterns(patterns)
    return nlp


class CachedRuler(AttributeRuler):
    """spaCy's AttributeRuler, which remembers what its rules of one token do to each kind of token.

    A kind is a form, a tag and a dependency label. A document in which another rule matches (of several tokens, or of
    other properties) gets all rules as spaCy applies them; that is rare in English.
    """

    def __init__(self, vocab: Any, name: str = _RULER) -> None:
        super().__init__(vocab, name)
        self.kinds: dict[tuple[int, int, int], dict[int, Any]] = {}
        self.others = Matcher(vocab)
        self.single: set[int] = set()

    def add(self, patterns: Iterable[Any], attrs: dict[Any, Any], index: int = 0) -> None:
        """Add a rule, see AttributeRuler.add."""
        patterns = list(patterns)
        number = len(self.attrs)
        super().add(patterns, attrs, index)
        if all(len(pattern) == 1 and pattern[0].keys() <= _OF_THE_KIND for pattern in patterns):
            self.single.add(number)
        else:
            self.others.add(str(number), patterns)
        self.kinds.clear()

    def __call__(self, doc: Doc) -> Doc:
        """Apply the rules to a document and return it."""
        if len(self.others) and self.others(doc, allow_missing=True):
            return super().__call__(doc)
        if len(self.kinds) > _MOST_KINDS:
            self.kinds.clear()
        kinds = self.kinds
        for token in doc:
            kind = (token.orth, token.tag, token.dep)
            changes = kinds.get(kind)
            if changes is None:
                changes = kinds[kind] = self._changes(*kind)
            if changes:
                set_token_attrs(token, changes)
        return doc

    def _changes(self, orth: int, tag: int, dep: int) -> dict[int, Any]:
        """Return the attributes that the rules of one token set, those of later rules before those of earlier ones."""
        text = self.vocab.strings
        alone = Doc(self.vocab, [text[orth]], tags=[text[tag]], deps=[text[dep]], heads=[0])
        changes: dict[int, Any] = {}
        for number, *_ in self.match(alone):
            if number in self.single:
                changes.update(self.attrs[number])
        return changes


@Language.factory(_CACHED)
def _cached_ruler(nlp: Language, name: str) -> CachedRuler:
    return CachedRuler(nlp.vocab, name)
