"""Filters of images, captions and boxes at packing: other values make another version without any detector.

Size and shape of images, shape of boxes, length and language of captions are in the detections. A condition on columns
of the source (`where`) is answered by a table of their values, read once (pipeline.packing.source_columns).
"""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import Field, field_validator

from hyco.pipeline.config import Config
from hyco.pipeline.packing.where import Where
from hyco.pipeline.sources.language import LANGUAGES, language_fraction

pc: Any = pyarrow.compute  # most of its functions are made when it is imported

FILTERED = "filtered"
"""Begins the names of the counts of images and captions that a filter left out."""


class FilterConfig(Config):
    """What is left out of a version whatever its boxes; null and "" keep everything."""

    min_side: int | None = Field(default=None, ge=1)
    """Minimum of width and height of an image, in pixels."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Maximum ratio of the longer to the shorter side of an image."""
    max_part_aspect: float | None = Field(default=None, ge=1)
    """Maximum ratio of the longer to the shorter side of a box, in pixels."""
    min_words: int | None = Field(default=None, ge=0)
    """Minimum number of words of a caption, separated by spaces. A shorter caption is left out with its parts, and an
    image without another caption too.
    """
    max_words: int | None = Field(default=None, ge=1)
    """Maximum number of words of a caption, likewise."""
    min_language: float | None = Field(default=None, ge=0, le=1)
    """Minimum fraction of a caption that is in the language, by script and function words (pipeline.sources.language);
    0.5 leaves out what is likely another language.
    """
    language: str = "en"
    """Language of min_language: en, de, fr, es, it, nl, pt ..."""
    where: str = ""
    """Condition on columns or json fields of the source, such as `aesthetic > 5 and punsafe < 0.1`; see --where."""

    @field_validator("where")
    @classmethod
    def _parsable(cls, given: str) -> str:
        if given.strip():
            Where(given)
        return given.strip()

    @field_validator("language")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in LANGUAGES:
            raise ValueError(f"language {given!r} is not known: {', '.join(LANGUAGES)}")
        return given


def image_filter(width: int, height: int, config: FilterConfig) -> str:
    """Return the name of the filter that leaves an image out, "" for none."""
    if config.min_side is not None and min(width, height) < config.min_side:
        return "size"
    if config.max_aspect is not None and max(width, height) > config.max_aspect * min(width, height):
        return "aspect"
    return ""


def caption_filter(caption: str, config: FilterConfig) -> str:
    """Return the name of the filter that leaves a caption out, "" for none."""
    words = len(caption.split())
    if config.min_words is not None and words < config.min_words:
        return "short"
    if config.max_words is not None and words > config.max_words:
        return "long"
    if config.min_language is not None and language_fraction(caption, config.language) < config.min_language:
        return "language"
    return ""


def image_counts(table: pa.Table, config: FilterConfig) -> dict[str, int]:
    """Return the number of images of a detections table that the filters of images leave out, by name of the count."""
    if config.min_side is None and config.max_aspect is None:
        return {}
    images = table.group_by(["key", "width", "height"]).aggregate([])
    reasons = [image_filter(*size, config) for size in zip(*_sizes(images), strict=True)]
    return {f"{FILTERED}_{reason}": number for reason, number in Counter(reasons).items() if reason}


def passing_images(table: pa.Table, config: FilterConfig) -> pa.Table:
    """Return the rows of a detections table whose image passes the filters of images."""
    if config.min_side is None and config.max_aspect is None:
        return table
    keep = [not image_filter(*size, config) for size in zip(*_sizes(table), strict=True)]
    return table.filter(pa.array(keep, pa.bool_()))


def passing_captions(table: pa.Table, config: FilterConfig) -> pa.Table:
    """Return the rows of a detections table whose caption passes the filters of captions."""
    if config.min_words is None and config.max_words is None and config.min_language is None:
        return table
    texts = pc.unique(table["text"])
    passing = [text for text in texts.to_pylist() if not caption_filter(text, config)]
    return table.filter(pc.is_in(table["text"], value_set=pa.array(passing, pa.string())))


def _sizes(table: pa.Table) -> tuple[list[int], list[int]]:
    return table["width"].to_pylist(), table["height"].to_pylist()


def slim(boxes: np.ndarray, width: np.ndarray, height: np.ndarray, config: FilterConfig) -> np.ndarray:
    """Return which boxes are too long and narrow, bool [N]; `boxes` are fractions [N, 4], sizes in pixels [N]."""
    if config.max_part_aspect is None:
        return np.zeros(len(boxes), bool)
    sides = (boxes[:, 2:] - boxes[:, :2]) * np.stack([width, height], axis=1)
    with np.errstate(invalid="ignore"):
        return sides.max(axis=1) > config.max_part_aspect * sides.min(axis=1) * (1 + 1e-6)
