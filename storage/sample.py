"""The schema: a captioned image before mining, after packing, and the record of a failure."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

KEY_PATTERN = r"[a-z0-9_]{1,64}"
_KEY = re.compile(KEY_PATTERN)
_NAN = float("nan")
UNKNOWN_BOX = (_NAN, _NAN, _NAN, _NAN)


def content_key(image: bytes) -> str:
    """Return the key of an image: the first 32 hex digits of the sha256 of its encoded bytes."""
    return hashlib.sha256(image).hexdigest()[:32]


def check_key(key: str) -> str:
    """Return `key` when it is a valid sample key, else raise ValueError.

    A dot in a webdataset key silently merges or splits samples, hence the narrow alphabet.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"sample key {key!r} does not match {KEY_PATTERN}: use content_key(image)")
    return key


def short(text: str, most: int = 200) -> str:
    """A name or message shortened for a person to read: a long one keeps both ends and states its length."""
    if len(text) <= most:
        return text
    half = most // 2 - 16
    return f"{text[:half]}... ({len(text)} characters) ...{text[-half:]}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One captioned image as the source gave it.

    Attributes:
        key: content key of the image.
        image: encoded bytes, as found.
        captions: at least one, in source order.
        meta: the source's own JSON (may hold "objects"), plus "source_key".
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A box cut out of an image, with the phrase that names it: the general side of (part, whole).

    Attributes:
        image: JPEG bytes of the letterboxed crop.
        phrase: the text grounded in the box.
        box: x0, y0, x1, y1 as fractions of the image's width and height; NaN when the shard has none.
        score: the detector's confidence in [0, 1]; NaN when the shard has none.
        span: start and end of the phrase in its caption, in characters; (-1, -1) when unknown.
        caption: index of that caption in TrainingSample.captions.
        rule: how the phrase was found ("chunk", "expression"); "" when unknown.
        origin: "source:FIELDS" where the box came with the source; "" where a detector found it, or when unknown.
    """

    image: bytes
    phrase: str
    box: tuple[float, float, float, float] = UNKNOWN_BOX
    score: float = _NAN
    span: tuple[int, int] = (-1, -1)
    caption: int = 0
    rule: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A whole image, its captions and its parts: one sample of a training shard."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    parts: tuple[Part, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample that could not be used; a row of the failures table.

    Attributes:
        key: the sample's content key, or its name in the source where no key could be made.
        stage: "source", "nouns", "ground", "pack" ...
        code: a stable word to group by, such as "undecodable".
        message: one line for a person.
        attempt: 1 for the first try.
        retryable: whether the same input may succeed later.
    """

    key: str
    stage: str
    code: str
    message: str
    attempt: int = 1
    retryable: bool = False
