"""Captions of the web: entities undone, tags out, labels follow; text that only looks like mark-up stays."""

import html
import json
import random
from pathlib import Path

import pytest

from hyco.pipeline.sources.markup import plain_text
from hyco.pipeline.sources.source import open_source
from tests.factories.files import noise, tarred
from tests.pipeline.sources.test_source import read

PLAIN = [
    "a < b",
    "5 <3",
    "I <3 you, a <- b, a <= b & c > d",
    "AT&T and R&D; Q & A",
    "<PERSON> walks a dog",
    "a <b and c> d",
    "if a<b then c>d",
    "1<2 and 3>2",
    "a <b",
    "a </b",
    "<br",
    "<!-- never closed",
    "<![foo[ dog ]]>",
    "  two  spaces ",
]
MARKED = {
    "<b>Photo</b> &copy; Shutterstock": "Photo © Shutterstock",
    "salt &amp; pepper": "salt & pepper",
    "salt &amp;amp; pepper": "salt & pepper",
    "&amp;quot;hello&amp;quot; &#39;x&#x27;": "\"hello\" 'x'",
    "&lt;b&gt;a dog&lt;/b&gt;": "a dog",
    "5 &lt; 6 &lt;3": "5 < 6 <3",
    "a dog<br>a cat<br/>a bird": "a dog a cat a bird",
    "<p>a dog</p><p>a cat</p>": "a dog a cat",
    "<a href='x > y' title=\"q\">a dog</a> runs": "a dog runs",
    "<i>a dog</i>'s <STRONG >bone</STRONG >": "a dog's bone",
    "a dog&nbsp;&nbsp;runs": "a dog runs",
    "<script>if (a<b) dog()</script>a cat<!-- a bird -->": "a cat",
    "<unknown>a <b>dog</b>": "<unknown>a dog",
}


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_markup_stays_to_the_character(text: str) -> None:
    assert plain_text(text) == (text, None)


@pytest.mark.parametrize("text", MARKED)
def test_markup_is_undone(text: str) -> None:
    plain, places = plain_text(text)
    assert plain.strip() == MARKED[text] and places is not None
    assert len(places) == len(text) + 1 and places == sorted(places) and places[-1] == len(plain)
    for word in ("dog", "cat", "bone", "hello", "pepper", "Shutterstock"):
        if (at := plain.find(word)) >= 0 and text.count(word) == 1:
            start = text.find(word)
            assert (places[start], places[start + len(word)]) == (at, at + len(word))


def test_entities_are_undone_as_openclip_undoes_them() -> None:
    random.seed(0)
    pieces = [
        "&",
        "amp",
        ";",
        "&lt",
        "&copy",
        "&#3",
        "9;",
        "&#x1F600;",
        "&notin",
        "it",
        " ",
        "dog",
        "&quot;",
        "&#0;",
        "&",
    ]
    for _ in range(3000):
        text = "".join(random.choices(pieces, k=8))
        expected = html.unescape(html.unescape(text))
        if "<" not in expected:
            plain, places = plain_text(text)
            assert " ".join(plain.split()) == " ".join(expected.split())
            assert places is not None or plain == text


def test_hostile_captions_take_no_time_worth_naming() -> None:
    """Whatever is repeated: the parser's work is bounded by the length that a caption may have."""
    for piece in ("<", "<a ", "<!--", "<a x='", "&", "</b", "<![CDATA[", "<script>", "<b x"):
        text = piece * (8000 // len(piece))
        assert plain_text(text)[0] == text or piece == "<script>"


def test_captions_and_labels_of_a_source(tmp_path: Path) -> None:
    said = "Tom &amp; a <b>dog</b> &quot;on&quot; a mat"
    objects = [
        {"phrase": "a <b>dog</b>", "caption": 0, "span": [10, 22], "box": [0, 0, 1, 1]},
        {"phrase": "a mat", "caption": 0, "span": [said.index("a mat"), len(said)], "box": [0, 0, 1, 1]},
        {"phrase": "a mat", "caption": 0, "span": [-5, 900], "box": [0, 0, 1, 1]},
    ]
    told = json.dumps({"captions": [said, "<br>", "a cat"], "objects": objects})
    path = tarred(
        tmp_path / "x.tar", {"0.jpg": noise(0), "0.json": told, "1.jpg": noise(1), "1.txt": "<b>a\ndog</b>\n"}
    )
    (first, second), failures = read(open_source(path))
    assert failures == [] and second.captions == ("a dog",)
    assert first.captions == ('Tom & a dog "on" a mat', "a cat"), (
        "a caption of nothing but tags holds no text"
    )
    for label, phrase in zip(first.meta["objects"], ("a dog", "a mat"), strict=False):
        start, end = label["span"]
        assert label["phrase"] == phrase == first.captions[0][start:end]
    assert first.meta["objects"][2]["span"] == [0, len(first.captions[0])]


def test_the_limit_is_of_the_text_and_not_of_its_markup(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", {"0.jpg": noise(0), "0.txt": f"<b class='{'x' * 2500}'>a dog</b>"})
    assert read(open_source(path))[0][0].captions == ("a dog",)
