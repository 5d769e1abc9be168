"""Verbs of what a person decides about the data, and how versions differ: shelve, diff, card."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import AsJson, HomeUrl, app, say, show

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


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(help="Dataset version: its name, the start of it, a given name, or latest.")
    ],
    b: Annotated[str, typer.Argument(help="The version to compare it with.")],
    home: HomeUrl = "var",
    as_json: AsJson = False,
) -> None:
    """Compare two dataset versions: options, counts, images, phrases.

    Reads the shards that only one of them has. `hyco serve` shows the same with pictures at /versions/A/diff/B.
    """
    from pipeline.curation.compare import as_json as plain
    from pipeline.curation.compare import compare, lines
    from storage.home import Home

    found = compare(Home(home).require(), a, b)
    if as_json:
        show(plain(found))
        return
    for line in lines(found):
        typer.echo(line)
    say(
        f"with pictures: hyco serve --home {home}, /versions/{found.went.version.name}/diff/{found.came.version.name}"
    )


@app.command()
def card(
    version: Annotated[str, typer.Argument(help="Dataset version.")] = "latest",
    home: HomeUrl = "var",
    out: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
) -> None:
    """Write the dataset card of a version, as Markdown.

    Front matter as the Hugging Face hub reads it, splits, counts, configuration, scores and phrases.
    """
    from pipeline.ui.version_card import card as made
    from storage.home import Home

    opened = Home(home).require()
    text = made(opened, opened.versions.load(version))
    if out is None:
        typer.echo(text, nl=False)
        return
    out.write_text(text)
    say(f"wrote {out}")
