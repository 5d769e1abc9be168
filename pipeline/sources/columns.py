"""Names of the columns of a source, where they are not the usual ones, and of its boxes."""

from typing import ClassVar

from pydantic import Field

from hyco.pipeline.config import Config
from hyco.pipeline.sources.boxes import BoxFields


class Columns(Config):
    """Columns of parquet, arrow, csv and tsv files, and fields of json, that are read instead of the usual ones."""

    digest_if_set: ClassVar[frozenset[str]] = frozenset({"image", "caption", "boxes"})

    image: str | None = Field(default=None, min_length=1)
    """Column of the image: its bytes, or its file name relative to the file that holds the column. null finds it by
    name and type. In a csv without a header, the number of the column, from 0.
    """
    caption: str | None = Field(default=None, min_length=1)
    """Column of the caption, or several separated by commas: all of them are captions. null takes the usual names. In
    a csv without a header, the number of the column, from 0.
    """

    boxes: BoxFields | None = None
    """Boxes that the source has already, see --boxes; null leaves them alone."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption columns that are asked for; empty for the usual ones."""
        return tuple(name.strip() for name in (self.caption or "").split(",") if name.strip())


USUAL = Columns()
"""No column is named."""
