"""The verb `calibrate`: the threshold of a grounder."""

from typing import Annotated

import typer

from hyco.pipeline.cli.app import (
    Assignments,
    CaptionColumn,
    Grounder,
    ImageColumn,
    Source,
    app,
    mining_of,
    show,
)


@app.command()
def calibrate(
    source: Source,
    grounder: Grounder,
    recall: Annotated[float | None, typer.Option(help="Recall to reach.", min=0, max=1)] = None,
    precision: Annotated[float | None, typer.Option(help="Precision to reach.", min=0, max=1)] = None,
    absent_rate: Annotated[
        float | None, typer.Option(help="Fraction of absent phrases that may get a box.", min=0, max=1)
    ] = None,
    images: Annotated[int, typer.Option(help="Maximum number of images.", min=10)] = 500,
    absent: Annotated[int, typer.Option(help="Absent phrases for each image.", min=1, max=64)] = 6,
    competition: Annotated[float, typer.Option(help="Value of pack.competition.", min=0, max=10)] = 0.0,
    wordnet: Annotated[str, typer.Option(help="WordNet's data.noun, to leave out synonyms and kinds.")] = "",
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    assignments: Assignments = None,
) -> None:
    """Find a grounder's threshold for a wanted recall or precision.

    Or for a wanted rate of absent phrases that get a box.

    Asks the grounder for the phrases of the captions and for absent phrases. Recall and precision need a source that
    labels its phrases (`objects`). Half of the images choose the threshold, the other half measures it. Writes nothing.

    --set takes fields of MineConfig: per_phrase=32, nouns.edition=2 ...
    """
    from hyco.pipeline.config import override
    from hyco.pipeline.evaluation.calibrate import Wanted, calibrate
    from hyco.pipeline.mining.absence import AbsenceConfig
    from hyco.pipeline.mining.mine import MineConfig

    given: list[tuple[Wanted, float | None]] = [
        ("recall", recall), ("precision", precision), ("absent", absent_rate)
    ]  # fmt: skip
    wanted: list[tuple[Wanted, float]] = [(name, value) for name, value in given if value is not None]
    if len(wanted) != 1:
        raise ValueError("give one of --recall, --precision and --absent-rate")
    grounder, columns = mining_of(grounder, image_column, caption_column, None)
    config = override(MineConfig(source=source, grounder=grounder, columns=columns), assignments or [])
    drawing = AbsenceConfig(phrases=absent, wordnet=wordnet)
    found = calibrate(config, *wanted[0], images, drawing, competition)
    show(found)
    options = f"--set pack.threshold={found['threshold']}"
    typer.echo(options + (f" --set pack.competition={competition}" if competition else ""), err=True)
