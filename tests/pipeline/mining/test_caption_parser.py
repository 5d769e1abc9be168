"""The parser of captions gives what spaCy's own pipeline gives, token for token."""

import pytest
import spacy

from hyco.pipeline.mining.caption_parser import CachedRuler, load_parser
from hyco.pipeline.mining.noun_phrases import NounConfig

MODEL = NounConfig().model
CAPTIONS = [
    "A brown dog, which is running, catches a red ball beside that tree .",
    "There are two dogs; there's a cat.",  # a rule of two tokens: an expletive and its verb
    "Don't you have anything? I'm gonna let's go, ain't it so!",
    "  A   man \n with his\thands  ",
    "Close-up of a t-shirt that was worn by somebody who does what they've done",
    "Un gato negro — 3.5 % of a café's “menu” (no. 7)",
    "!!!",
    "",
    "the",
]


@pytest.fixture(scope="module")
def plain() -> spacy.Language:
    return spacy.load(MODEL, exclude=["ner", "lemmatizer", "senter", "textcat"])


@pytest.fixture(scope="module")
def parser() -> spacy.Language:
    return load_parser(MODEL)


def told(doc: spacy.tokens.Doc) -> list[tuple]:
    return [(t.text, t.pos_, t.tag_, t.dep_, t.head.i, str(t.morph), t.lemma_, t.is_sent_start) for t in doc]


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_documents_are_those_of_spacy(plain, parser, batch_size):
    captions = [
        *CAPTIONS,
        *(f"{caption} and a {word} thing" for caption in CAPTIONS for word in ("red", "big")),
    ]
    ours, theirs = parser.pipe(captions, batch_size=batch_size), plain.pipe(captions, batch_size=batch_size)
    for mine, other in zip(ours, theirs, strict=True):
        assert told(mine) == told(other)


def test_the_rules_of_one_token_are_cached_and_the_others_are_not_lost(parser):
    ruler = parser.get_pipe("attribute_ruler")
    assert isinstance(ruler, CachedRuler)
    assert len(ruler.single) > 150 and len(ruler.others) > 3
    verb = parser("There are two dogs")[1]
    assert (verb.text, verb.pos_) == ("are", "VERB")


def test_a_new_rule_replaces_what_was_remembered(parser):
    ruler = load_parser(MODEL).get_pipe("attribute_ruler")
    doc = spacy.tokens.Doc(ruler.vocab, ["zyx"], tags=["NN"], deps=["ROOT"], heads=[0])
    assert ruler(doc)[0].pos_ == "NOUN"
    ruler.add([[{"LOWER": "zyx"}]], {"POS": "PROPN"})
    assert ruler(doc)[0].pos_ == "PROPN"
