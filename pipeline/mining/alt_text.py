"""Web alt text made readable for a parser, every character kept in its place; and long captions in pieces.

File names, addresses and the labels of picture agencies ("Stock Photo:") become spaces, titles in capitals become lower
case. The result has the length of the text, so that positions in it are positions in the caption.
"""

import re
from collections.abc import Iterator

# Tried from each of its characters, a long word or gap would take minutes: patterns begin where it begins.
_FILES = re.compile(
    r"(?<!\S)\S+\.(?:jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|svg|psd|eps|heic|mp4|mov)\b|https?://\S+|www\.\S+"
    r"|\b(?:IMG|DSC[NF]?|PICT|MG|PXL|VID)[-_]?\d{3,}[-_\w]*",
    re.IGNORECASE,
)
_WHAT = r"(?:photo(?:graph(?:y|ie)?|s)?|image|picture|pic|vector|illustration|clip ?art|footage|video)s?"
_GAP = r"(?:(?<!\s)\s+)?"
_LABEL = re.compile(
    rf"^\W*(?:(?:royalty[- ]free|free|hd|editorial|rf)\s+)*(?:stock\s+)?{_WHAT}\s*(?:\#?\d+\s*)?[:|\u2013\u2014]\s*"
    rf"|^\W*(?:(?:royalty[- ]free|free)\s+)*stock\s+{_WHAT}\s*(?:[:|\u2013\u2014-]|of\b)\s*"
    rf"|{_GAP}[-|\u2013\u2014,]\s*(?:(?:royalty[- ]free|free|editorial)\s+)*stock\s+{_WHAT}\s*$"
    rf"|{_GAP}[-|\u2013\u2014]\s*(?:shutterstock|getty images|alamy|istock|dreamstime|pinterest|etsy|ebay)"
    r"(?:\.com)?\s*$",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE = re.compile(r"[.!?;]\s+|\n")
_CAPITALS = 0.6
"""Minimum fraction of words that begin with a capital in a title."""


def readable(text: str) -> str:
    """Return a caption of equal length for the parser: no file names, addresses and labels, titles in lower case."""
    for pattern in (_FILES, _LABEL):
        text = pattern.sub(lambda found: " " * len(found[0]), text)
    words = _WORD.findall(text)
    shouted = sum(word.isupper() for word in words) > len(words) / 2
    titled = len(words) > 3 and sum(word[0].isupper() for word in words) >= _CAPITALS * len(words)
    if (shouted or titled) and len(low := text.lower()) == len(text):
        return low
    return text


def pieces(text: str, longest: int) -> Iterator[tuple[int, str]]:
    """Yield (start, piece) of a caption: pieces of at most `longest` characters, cut at ends of sentences or words."""
    start = 0
    while len(text) - start > longest:
        cut = text[start : start + longest]
        ends = [found.end() for found in _SENTENCE.finditer(cut)]
        end = ends[-1] if ends and ends[-1] > longest // 4 else cut.rfind(" ") + 1 or longest
        yield start, cut[:end]
        start += end
    yield start, text[start:]
