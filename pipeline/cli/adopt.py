"""The verb `adopt`: training shards that exist already become a dataset version."""

from typing import Annotated

import typer

from hyco.pipeline.cli.app import HomeUrl, app, show


@app.command()
def adopt(
    source: Annotated[str, typer.Argument(help="Training shards: a folder of tars, a pattern or a URL.")],
    home: HomeUrl = "var",
    holdout: Annotated[
        float, typer.Option(help="Fraction of the shards for evaluation, whole shards.", min=0, max=0.9)
    ] = 0.1,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the shards instead of linking them.")] = False,
) -> None:
    """Make a dataset version of shards in the published HyCoCLIP layout.

    Nothing is mined or packed: every shard is read, verified and hashed. On the filesystem of the home it gets a
    second name there (a hard link) and takes no further space: do not write to it afterwards.
    """
    from hyco.pipeline.packing.adopt import adopt as adopt_shards
    from hyco.storage.home import Home

    version = adopt_shards(source, Home(home), holdout, copy)
    show({"version": version.name, "counts": version.counts})
    if partless := version.counts["partless"]:
        typer.echo(
            f"{partless} images have no part: the published loader stops at the first of them", err=True
        )
