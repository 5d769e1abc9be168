"""The verb `look`: what a source holds, before anything is mined."""

from typing import Annotated

import typer

from hyco.pipeline.cli.app import Boxes, CaptionColumn, ImageColumn, app


@app.command()
def look(
    source: Annotated[str, typer.Argument(help="Captioned images: a folder, a file, a pattern or a URL.")],
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    boxes: Boxes = None,
) -> None:
    """Show a source's kind, fields and samples, and what would fail.

    Reads the first rows only, for about a second. Exit code 1 when none of them can be mined.
    """
    from hyco.pipeline.sources.boxes import preset
    from hyco.pipeline.sources.columns import Columns
    from hyco.pipeline.sources.look import lines
    from hyco.pipeline.sources.look import look as look_at
    from hyco.pipeline.sources.source import open_source

    columns = Columns(image=image_column, caption=caption_column, boxes=preset(boxes) if boxes else None)
    found = look_at(open_source(source, columns=columns))
    for line in lines(found, source):
        typer.echo(line)
    if not found.good:
        raise typer.Exit(1)
