"""Plain text of web captions: entities decoded, HTML tags removed, positions mapped.

Entities are decoded twice, as in OpenCLIP's tokenizer: alternative texts are often escaped twice ("&amp;quot;"). Only
whole tags of HTML elements are removed, so "a < b", "5 <3" and the "<PERSON>" of Conceptual Captions stay.
A caption without mark-up is returned unchanged.
"""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser

Edit = tuple[int, int, str]
"""Start and end of a piece of text, and its replacement."""

_UNESCAPES = 2
_ENTITY = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")  # as in html.unescape
_RAW = ("script", "style")  # their content is no text
_INLINE_NAMES = """a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q rp rt ruby s
    samp small span strike strong sub sup time tt u var wbr"""
_BLOCK_NAMES = """address area article aside audio base blockquote body br button canvas caption center col colgroup dd
    details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head
    header hgroup hr html iframe img input legend li link main map menu meta meter nav noscript object ol optgroup
    option output p param picture pre progress script search section select slot source style summary svg table tbody
    td template textarea tfoot th thead title tr track ul video"""
_INLINE = frozenset(_INLINE_NAMES.split())
_BLOCK = frozenset(_BLOCK_NAMES.split())


def plain_text(text: str) -> tuple[str, list[int] | None]:
    """Return the text without mark-up, and the new place of each of its positions.

    Args:
        text: a caption without line breaks.

    Returns:
        The plain text, and the position in it of each position 0 ... len(text); None when nothing changed.
    """
    if "&" not in text and "<" not in text:
        return text, None
    before, places = text, list(range(len(text) + 1))
    for _ in range(_UNESCAPES):
        text, places = _apply(text, _entities(text), places)
    text, places = _apply(text, _Tags(text).edits, places)
    if text == before:
        return before, None
    text, places = _apply(text, [(m.start(), m.end(), " ") for m in re.finditer(r"\s+", text)], places)
    return text, places


def _entities(text: str) -> list[Edit]:
    found = [(match.start(), match.end(), html.unescape(match.group())) for match in _ENTITY.finditer(text)]
    return [edit for edit in found if edit[2] != text[edit[0] : edit[1]]]


def _apply(text: str, edits: list[Edit], places: list[int]) -> tuple[str, list[int]]:
    """Apply edits that are in order and do not overlap; positions inside an edit move to its start."""
    if not edits:
        return text, places
    pieces: list[str] = []
    moved: list[int] = []
    length = 0
    for start, end, new in [*edits, (len(text), len(text), "")]:
        kept = text[len(moved) : start]
        moved += range(length, length + len(kept))
        length += len(kept)
        moved += [length] * (end - start)
        length += len(new)
        pieces += (kept, new)
    moved.append(length)
    return "".join(pieces), [moved[place] for place in places]


class _Tags(HTMLParser):
    """Finds the whole tags, comments and declarations of a text; incomplete and unknown ones are text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.text = text[: text.rfind(">") + 1].replace("\n", " ")  # one line, so that a column is a position
        self.edits: list[Edit] = []
        self.raw = -1
        try:
            self.feed(self.text)
            self.close()
        except AssertionError:  # html.parser gives up on "<![foo[": the rest is left unchanged
            pass
        self.edits = list(_apart(self.edits))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # "a <b and c> d" compares; a tag with attributes gives at least one of them a value.
        bare = attrs and all(value is None and name != "/" for name, value in attrs)
        source = self.get_starttag_text() or ""
        if source.endswith(">") and not bare and self._cut(tag, len(source)) and tag in _RAW:
            self.raw = self.getpos()[1]

    def handle_endtag(self, tag: str) -> None:
        start = self.getpos()[1]
        end = self.text.find(">", start) + 1
        if tag in _RAW and self.raw >= 0:
            self.edits.append((self.raw, end or len(self.text), " "))
            self.raw = -1
        elif end:
            self._cut(tag, end - start)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._cut(tag, len(self.get_starttag_text() or ""))

    def handle_comment(self, data: str) -> None:
        start = self.getpos()[1]
        if self.text.startswith("<!--", start) and (end := self.text.find("-->", start + 4)) >= 0:
            self.edits.append((start, end + 3, ""))

    def handle_decl(self, decl: str) -> None:
        start = self.getpos()[1]
        if decl.lower().startswith("doctype") and (end := self.text.find(">", start)) >= 0:
            self.edits.append((start, end + 1, " "))

    def _cut(self, tag: str, length: int) -> bool:
        start = self.getpos()[1]
        if tag in _INLINE or tag in _BLOCK:
            self.edits.append((start, start + length, "" if tag in _INLINE else " "))
            return True
        return False


def _apart(edits: list[Edit]) -> Iterator[Edit]:
    """Yield the edits in order, without those inside another one."""
    reached = 0
    for start, end, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start >= reached:
            yield start, end, new
            reached = end
