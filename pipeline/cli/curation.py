"""Verbs of what a person decides about the data: shelve."""

from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.cli.app import HomeUrl, app

# flows/__main__.py adds the function that emits an event for a shard that was set aside or returned.
announcers: list[Callable[[bool, str, str, str, str], None]] = []


@app.command()
def shelve(
    shard: Annotated[
        str | None,
        typer.Argument(
            help="The shard, as messages name it (00009.tar) or where it lies; without one, list."
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for status, pages and notifications.")] = "",
    source: Annotated[
        str | None, typer.Option(help="Its source, where the home does not know it or several hold it.")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Return a shard that was set aside.")] = False,
    home: HomeUrl = "var",
) -> None:
    """Set a bad shard aside, so that the others go on without it.

    The file is not touched. Mining, packing, evaluation and retraining leave it out until it is returned with --back,
    or until its file is replaced or removed. It is named in status, pages and notifications meanwhile.
    """
    from pipeline.curation import shelve as shelf
    from storage.home import Home

    opened = Home(home).require()
    if shard is None:
        for entry in opened.shelf.entries():
            typer.echo(str(entry))
        return
    entry = shelf.unshelve(opened, shard) if back else shelf.shelve(opened, shard, reason, source)
    typer.echo(f"{entry.path} of {entry.source} is returned" if back else str(entry))
    for announce in announcers:
        announce(back, entry.path, entry.source, entry.reason, home)
