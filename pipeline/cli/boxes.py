"""The verb `boxes`: a dataset version as images and boxes for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hyco.pipeline.cli.app import HomeUrl, app, say, show


class Kind(StrEnum):
    """A format of boxes."""

    coco = "coco"
    fiftyone = "fiftyone"


@app.command()
def boxes(
    version: Annotated[
        str, typer.Argument(help="Dataset version: its name, the start of it, a given name, or latest.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    kind: Annotated[Kind, typer.Option("--format", help="Format of the boxes.")] = Kind.coco,
    home: HomeUrl = "var",
) -> None:
    """Export images and boxes of a version: COCO json or FiftyOne.

    Each split gets a folder with data/KEY.jpg and labels.json: fiftyone.types.COCODetectionDataset, or
    fiftyone.types.FiftyOneImageDetectionDataset. Interrupted, the same command finishes.
    """
    from hyco.pipeline.packing import export_boxes as exporting
    from hyco.storage.home import Home

    opened = Home(home).require()
    found = exporting.export_boxes(opened, opened.versions.load(version), kind.value, out)
    show(found)
    say(f"wrote {out}")
