"""Editions 3 and 4 of the noun rules: labelled captions of Flickr8k, web alt text, long captions, repairs."""

import json
import tarfile
import time
from functools import cache
from pathlib import Path

import pytest

from hyco.pipeline.config import digest
from hyco.pipeline.mining.alt_text import pieces, readable
from hyco.pipeline.mining.noun_phrases import ADDED, NounConfig, NounExtractor

DATA = Path(__file__).parents[2] / "data"
FLICKR = Path(__file__).parents[4] / "shared" / "data" / "flickr8k"
SETS = {
    "150": "flickr8k_phrases.json",
    "150 further": "flickr8k_phrases_2.json",
    "held out": "flickr8k_phrases_held_out.json",
}
LEAST = {
    "150": {1: (0.92, 0.90, 0.91), 2: (0.92, 0.90, 0.92), 3: (0.96, 0.95, 0.93), 4: (0.98, 0.97, 0.96)},
    "150 further": {
        1: (0.87, 0.91, 0.91),
        2: (0.92, 0.93, 0.92),
        3: (0.92, 0.94, 0.92),
        4: (0.95, 0.96, 0.93),
    },
    "held out": {1: (0.93, 0.96, 0.92), 2: (0.96, 0.97, 0.92), 3: (0.96, 0.98, 0.92), 4: (0.97, 0.98, 0.93)},
}
needs_flickr = pytest.mark.skipif(not FLICKR.is_dir(), reason="needs ../shared/data/flickr8k")


@pytest.fixture(scope="module")
def extract():
    return NounExtractor(NounConfig(edition=3))


@pytest.fixture(scope="module")
def extract_4():
    return NounExtractor(NounConfig(edition=4))


@cache
def labelled(name):
    """(caption, labels) of every labelled caption of a set."""
    rows, held = json.loads((DATA / SETS[name]).read_text()), {}
    for shard in {row[0] for row in rows}:
        with tarfile.open(FLICKR / f"{shard}.tar") as tar:
            for key in (row[1] for row in rows if row[0] == shard):
                file = tar.extractfile(f"{key}.json")
                assert file is not None
                held[shard, key] = json.load(file)["captions"]
    return [(held[shard, key][number], labels) for shard, key, number, labels in rows]


def measured(extractor, name):
    """Precision and recall of chunks, and the fraction of right expressions among the right chunks."""
    found = extractor([caption for caption, _ in labelled(name)])
    right = expressions = chunks = labels = 0
    for phrases, (_, told) in zip(found, labelled(name), strict=True):
        true = {(start, end): spans for start, end, spans in told}
        chunks, labels = chunks + len(phrases), labels + len(true)
        for phrase in phrases:
            spans = true.get((phrase.start, phrase.end))
            right += spans is not None
            expressions += spans is not None and [phrase.expression_start, phrase.expression_end] in spans
    return right / chunks, right / labels, expressions / right


@needs_flickr
@pytest.mark.parametrize(
    ("edition", "name"), [(1, "150"), (2, "150"), (3, "150"), *((4, name) for name in SETS)]
)
def test_figures_on_labelled_captions(edition, name):
    figures = measured(NounExtractor(NounConfig(edition=edition)), name)
    print(
        f"edition {edition}, {name}: chunks {figures[0]:.1%} / {figures[1]:.1%}, expressions {figures[2]:.1%}"
    )
    assert all(figure >= least for figure, least in zip(figures, LEAST[name][edition], strict=True))


@pytest.mark.slow
@needs_flickr
def test_figures_of_each_rule():
    """Print the table of docs/shards.md: what each rule adds to those before it."""
    extractor = NounExtractor(NounConfig(edition=4))
    rules = [rule for edition in ADDED.values() for rule in edition]
    assert extractor.rules == set(rules)
    ends = {0: 1, **{len([r for e in range(2, last + 1) for r in ADDED[e]]): last for last in ADDED}}
    for number in range(len(rules) + 1):
        extractor.rules = frozenset(rules[:number])
        found = {name: measured(extractor, name) for name in SETS}
        cells = [" / ".join(f"{100 * value:.1f}" for value in found[name]) for name in SETS]
        print("|", rules[number - 1] if number else "none (edition 1)", "|", " | ".join(cells), "|")
        if number in ends:
            for name in SETS:
                least = LEAST[name][ends[number]]
                assert all(figure >= bar for figure, bar in zip(found[name], least, strict=True))


@pytest.mark.parametrize(
    ("caption", "chunks", "expressions"),
    [
        ("A man in a uniform smiling .", ["A man", "a uniform"], ["A man in a uniform smiling", "a uniform"]),
        ("A kid playing in a pool .", ["A kid", "a pool"], ["A kid", "a pool"]),
        ("Boy touching wooden wall .", ["Boy", "wooden wall"], ["Boy", "wooden wall"]),
        ("three girls tug a rope .", ["three girls", "a rope"], ["three girls", "a rope"]),
        ("a t-shirt and baseball cap", ["a t-shirt", "baseball cap"], ["a t-shirt", "baseball cap"]),
        ("a glass and steel building", ["a glass and steel building"], ["a glass and steel building"]),
        ("A large grey and white bird .", ["A large grey and white bird"], ["A large grey and white bird"]),
        ("A small black brown and white dog", *[["A small black brown and white dog"]] * 2),
        ("A man on a chair indoors .", ["A man", "a chair"], ["A man on a chair", "a chair"]),
        ("A rider doing a wheelie .", ["A rider"], ["A rider doing a wheelie"]),
        ("A dog in a grassy area .", ["A dog", "a grassy area"], ["A dog in a grassy area", "a grassy area"]),
        ("A dog in the area .", ["A dog"], ["A dog in the area"]),
        ("A car in a parking lot .", ["A car", "a parking lot"], ["A car in a parking lot", "a parking lot"]),
        ("A man with no shirt .", ["A man"], ["A man with no shirt"]),
        ("a dog on someone 's hand", ["a dog", "someone 's hand"], ["a dog on someone 's hand", "someone 's hand"]),
        ("two dogs jumping to catch a ball .", ["two dogs", "a ball"], ["two dogs jumping to catch a ball", "a ball"]),
        (
            "A man sits next to a woman with a hat while a dog runs .",
            ["A man", "a woman", "a hat", "a dog"],
            ["A man", "a woman with a hat", "a hat", "a dog"],
        ),
    ],
)  # fmt: skip
def test_phrases_of_edition_4(extract_4, caption, chunks, expressions):
    [found] = extract_4([caption])
    assert [phrase.text for phrase in found] == chunks
    assert [phrase.expression for phrase in found] == expressions
    assert all(caption[phrase.start : phrase.end] == phrase.text for phrase in found)


@pytest.mark.parametrize(
    "caption", ["", " ", "playing", "no", "someone", "outdoors", "a", "and red", ", and blue dog", "1 2 3"]
)
def test_edition_4_reads_any_text(extract_4, caption):
    [found] = extract_4([caption])
    assert all(caption[phrase.start : phrase.end] == phrase.text for phrase in found)


@pytest.mark.parametrize(
    ("caption", "chunks", "expressions"),
    [
        ("Stock Photo: Woman in a red hat", ["Woman", "a red hat"], ["Woman in a red hat", "a red hat"]),
        ("IMG_2034.jpg a dog on a sofa", ["a dog", "a sofa"], ["a dog on a sofa", "a sofa"]),
        ("a dog on a sofa, see www.dogs.example/sofa", ["a dog", "a sofa"], ["a dog on a sofa", "a sofa"]),
        ("Vintage Wooden Table - Stock Photo", ["Vintage Wooden Table"], ["Vintage Wooden Table"]),
        ("WOMEN'S LEATHER HANDBAG", ["WOMEN'S LEATHER HANDBAG"], ["WOMEN'S LEATHER HANDBAG"]),
        (
            "A boy in a red shirt dumps water .",
            ["A boy", "a red shirt", "water"],
            ["A boy in a red shirt", "a red shirt", "water"],
        ),
        ("a woman carries two sports bags", ["a woman", "two sports bags"], ["a woman", "two sports bags"]),
        ("two bales of hay", ["two bales of hay"], ["two bales of hay"]),
    ],
)  # fmt: skip
def test_phrases_of_alt_text_and_captions(extract, caption, chunks, expressions):
    [found] = extract([caption])
    assert [phrase.text for phrase in found] == chunks
    assert [phrase.expression for phrase in found] == expressions
    assert all(caption[phrase.start : phrase.end] == phrase.text for phrase in found)


def test_long_captions_are_read_whole(extract):
    caption = "A man stands on the grass. " * 60 + "A zebra runs."
    [found] = extract([caption])
    assert len(found) == 121 and found[-1].text == "A zebra" and found[-1].start == caption.index("A zebra")
    [first] = NounExtractor(NounConfig(edition=2))([caption])
    assert len(first) == 32, "earlier editions read 500 characters and 32 phrases"


@pytest.mark.parametrize("text", ["", "a", "one two. three four", "x" * 25, "a b c d e f g h i j k"])
def test_pieces_are_the_text(text):
    cut = list(pieces(text, 10))
    assert "".join(piece for _, piece in cut) == text and all(len(piece) <= 10 for _, piece in cut)
    assert all(text[start : start + len(piece)] == piece for start, piece in cut)


@pytest.mark.parametrize("text", ["a photo of a dog", "Two Dogs", "image: no", "İSTANBUL İS A CITY"])
def test_readable_keeps_the_length(text):
    assert len(readable(text)) == len(text)


def test_the_edition_is_part_of_the_digest():
    assert len({digest(NounConfig(edition=edition)) for edition in (1, 2, 3, 4)}) == 4


@pytest.mark.parametrize("caption", [20_000 * ".", 20_000 * " ", "a" + 20_000 * "\t" + "b", 6_000 * "a.b"])
def test_long_words_and_gaps_are_read_at_once(caption):
    """In a time that grows with their length alone; its square would be half a minute."""
    began = time.process_time()
    assert len(readable(caption)) == len(caption)
    assert time.process_time() - began < 1
