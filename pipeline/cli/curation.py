"""Verbs of what a person decides about the data, and how versions differ: shelve, delete, diff, card."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hyco.pipeline.cli.app import AsJson, HomeUrl, app, say, show

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
    from hyco.pipeline.curation import shelve as shelf
    from hyco.storage.home import Home

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
    from hyco.pipeline.curation.compare import as_json as plain
    from hyco.pipeline.curation.compare import compare, lines
    from hyco.storage.home import Home

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
    from hyco.pipeline.ui.version_card import card as made
    from hyco.storage.home import Home

    opened = Home(home).require()
    text = made(opened, opened.versions.load(version))
    if out is None:
        typer.echo(text, nl=False)
        return
    out.write_text(text)
    say(f"wrote {out}")


@app.command()
def delete(
    key: Annotated[
        list[str] | None, typer.Option(help="Key of an image, as shards and reports name it.")
    ] = None,
    sha256: Annotated[list[str] | None, typer.Option(help="sha256 of an image's file.")] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="Address of an image, as its source's json has it.")
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="Opt-out list: a key, sha256 or address per line.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
    home: HomeUrl = "var",
) -> None:
    """Delete images from a home for good, and keep them out of it.

    Detections and shards are written again without them, a new dataset version takes the place of the old one, reports
    and embeddings that may show them are removed, and models that were trained on them are flagged. The bytes go with
    the next `hyco gc`. The source is never touched: the image stays there, and is not mined again.

    An image that is not in the home is kept out of it too. Interrupted, `hyco gc` or the same command finishes.
    """
    from hyco.pipeline.curation import delete as deletion
    from hyco.storage.home import Home

    opened = Home(home).require()
    keys, urls = list(key or []), list(url or [])
    if listed is not None:
        found_keys, found_urls = deletion.read_list(listed)
        keys, urls = keys + found_keys, urls + found_urls
    found = deletion.delete(opened, keys, sha256 or [], urls, reason)
    typer.echo(
        f"{len(found.images):,} images found: {found.shards:,} shards and {found.units:,} units written again, "
        f"{len(found.derived):,} reports and other files removed"
    )
    for name in found.superseded:
        new = found.versions.get(name)
        typer.echo(f"superseded: {name}" + (f", by {new}" if new else ""))
    for name, why in found.quarantined.items():
        typer.echo(f"{name} is not latest: {why}")
    say(
        f"next: hyco gc --home {home} deletes the bytes; the source is untouched and its image is not mined again"
    )
