"""Verbs of the data: mine, plan, pack, versions, verify, release, status, gc."""

from typing import TYPE_CHECKING, Annotated

import typer

from hyco.pipeline.cli.app import (
    AsJson,
    AssessSource,
    Assignments,
    Boxes,
    CaptionColumn,
    Engine,
    Grounder,
    HomeUrl,
    ImageColumn,
    RecipeName,
    Source,
    Workers,
    app,
    mining_of,
    say,
    show,
)
from hyco.pipeline.runtime.executor import LOCAL
from hyco.pipeline.runtime.stop import terminable

if TYPE_CHECKING:
    from hyco.pipeline.mining.mine import MineConfig


@app.command()
def mine(
    source: Source,
    grounder: Grounder = "",
    home: HomeUrl = "var",
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    boxes: Boxes = None,
    workers: Workers = None,
    engine: Engine = LOCAL,
    gpus: Annotated[
        float | None,
        typer.Option(help="GPUs per grounder on Ray; by default 1 where the cluster has any.", min=0),
    ] = None,
    grounders: Annotated[
        int | None,
        typer.Option(
            help="Ray actors that hold the detector for all workers; by default one per GPU. "
            "0: each worker holds its own.",
            min=0,
        ),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Find the nouns of every caption and the boxes of every noun.

    --set takes fields of MineConfig: per_phrase=32, nouns.batch_size=64 ...
    """
    from hyco.pipeline.mining.mine import mine_all
    from hyco.pipeline.runtime.executor import open_executor
    from hyco.storage.home import Home

    config = _mining(source, grounder, image_column, caption_column, boxes, assignments)
    with terminable(), open_executor(workers, engine=engine, gpus=gpus, servers=grounders) as executor:
        show(mine_all(config, Home(home), executor))


def _mining(
    source: str,
    grounder: str,
    image_column: str | None,
    caption_column: str | None,
    boxes: str | None,
    assignments: list[str] | None,
) -> "MineConfig":
    """The configuration that the options of mine and plan name."""
    from hyco.pipeline.config import override
    from hyco.pipeline.mining.mine import MineConfig

    grounder, columns = mining_of(grounder, image_column, caption_column, boxes)
    return override(MineConfig(source=source, grounder=grounder, columns=columns), assignments or [])


@app.command()
def plan(
    source: Source,
    grounder: Grounder = "",
    home: HomeUrl = "var",
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    boxes: Boxes = None,
    seconds: Annotated[float, typer.Option(help="Seconds for reading new units.", min=0)] = 20,
    as_json: AsJson = False,
    assignments: Assignments = None,
) -> None:
    """Price a mining run: new images, detector calls, hours, bytes.

    Takes the options of `hyco mine`. New units are read for --seconds, at least one of them, and the others estimated
    by their size. Hours are at the rate measured in this home. Mines nothing and loads no detector.
    """
    import dataclasses

    from hyco.pipeline.mining.price import lines, price
    from hyco.storage.home import Home

    config = _mining(source, grounder, image_column, caption_column, boxes, assignments)
    found = price(config, Home(home), seconds)
    if as_json:
        show(dataclasses.asdict(found))
        return
    for line in lines(found):
        typer.echo(line)


@app.command()
def pack(
    source: Source,
    grounder: Grounder = "",
    recipe: RecipeName = "hycoclip_vit_s",
    home: HomeUrl = "var",
    assess_source: AssessSource = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    boxes: Boxes = None,
    workers: Workers = None,
    engine: Engine = LOCAL,
    latest: Annotated[
        bool,
        typer.Option("--latest/--no-latest", help="Whether a version that passes the gate becomes latest."),
    ] = True,
    name: Annotated[
        str | None, typer.Option(help="A name for the version, an experiment: it does not become latest.")
    ] = None,
    where: Annotated[
        str,
        typer.Option(help="Condition on columns of the source, such as 'aesthetic > 5 and punsafe < 0.1'."),
    ] = "",
    verify: Annotated[
        str,
        typer.Option(
            help="A second grounder, such as owlv2_base, that must confirm every box; it is run where needed."
        ),
    ] = "",
    assignments: Assignments = None,
) -> None:
    """Cut crops from the mined boxes and publish a dataset version.

    Runs no detector but that of --verify, for units that it has not seen. Image size and crops suit the recipe, and a
    tenth of the images is held out unless --assess-source names other images.

    --set takes fields of JourneyConfig: pack.threshold=0.4, pack.holdout=0.2 ...
    """
    from hyco.pipeline.config import override
    from hyco.pipeline.end_to_end import checked, compose
    from hyco.pipeline.mining.mine import mine_all
    from hyco.pipeline.packing import pack as packing
    from hyco.pipeline.packing.verified import verifying
    from hyco.pipeline.runtime.executor import open_executor
    from hyco.storage.home import Home

    grounder, columns = mining_of(grounder, image_column, caption_column, boxes)
    composed = compose(source, grounder, recipe, columns=columns, assess_source=assess_source)
    if where:
        assignments = [*(assignments or []), f"pack.filters.where={where}"]
    if verify:
        assignments = [*(assignments or []), f"pack.verify.grounder={verify}"]
    config = checked(override(composed, assignments or []))
    opened = Home(home)
    before = opened.latest_version()
    if config.pack.verify.grounder:
        with terminable(), open_executor(workers, engine=engine) as executor:
            mine_all(verifying(config.mine, config.pack.verify), opened, executor)
    with terminable(), open_executor(workers, engine=engine, gpus=0.0) as executor:
        version = packing.pack(config.mine, config.pack, opened, executor, latest=latest, label=name)
    show(
        {
            "version": version.name,
            "latest": opened.versions.latest() == version.name,
            "counts": version.counts,
        }
    )
    if latest and name is None and before is not None and before.digests != version.digests:
        from hyco.pipeline.curation.describe import differences

        told = "; ".join(f"{key} {old} -> {new}" for key, (old, new) in differences(before, version).items())
        say(f"latest was {before.name} and is now {version.name}, of another configuration ({told}): "
            f"--no-latest or --name makes an experiment, hyco diff {before.name} {version.name} compares them",
            err=True)  # fmt: skip


@app.command()
def versions(home: HomeUrl = "var", as_json: AsJson = False) -> None:
    """List the dataset versions with their configuration, oldest first."""
    from hyco.pipeline.ui import status as listing
    from hyco.storage.home import Home

    found, damaged = listing.versions(Home(home).require())
    for error in damaged:
        typer.echo(f"damaged: {error}", err=True)
    if as_json:
        show(found)
        return
    for version in found:
        typer.echo(listing.version_line(version))
    if not found and not damaged:
        typer.echo(f"{home} has no dataset version yet: run mine and pack first")


@app.command()
def verify(
    version: Annotated[str, typer.Argument(help="Version name, latest, or all.")] = "latest",
    home: HomeUrl = "var",
    repair: Annotated[
        bool, typer.Option("--repair", help="Check the whole home and move damaged files to HOME/damaged.")
    ] = False,
) -> None:
    """Check every hash and count of a dataset version; --repair a home.

    Covers the version's shards, the detections they were packed from, and the registry. `all` covers every version and
    the detections that are in none.

    Exit code 1 when a file is damaged or the version is in quarantine. --repair moves the damaged files to
    HOME/damaged; the commands that made them make them again.
    """
    from hyco.storage.home import Home

    opened = Home(home)
    if repair:
        from hyco.pipeline.integrity.repair import remedy
        from hyco.pipeline.integrity.repair import repair as set_aside

        found = set_aside(opened)
        for damage in found:
            typer.echo(f"set aside: {damage}")
        for line in remedy(found):
            typer.echo(line)
        if not found:
            typer.echo(f"{home}: nothing is damaged")
        return
    from hyco.pipeline.integrity.verify import verify as prove

    problems = prove(opened, None if version == "all" else version)
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        typer.echo(
            f"{len(problems)} problems: hyco verify --repair --home {home} sets aside the damaged files"
        )
        raise typer.Exit(1)
    if version == "all":
        typer.echo(f"{home}: intact")
        return
    found = opened.versions.load(version)
    if reasons := opened.versions.quarantined(found.name):
        from hyco.pipeline.packing.dataset_gate import verdict

        for row in verdict(reasons):
            typer.echo(f"quarantined: {row['check']} {row['value']} (limit {row['limit']}): {row['verdict']}")
        raise typer.Exit(1)
    shards = sum(len(split) for split in found.shards.values())
    typer.echo(f"{found.name}: {shards} shards, {found.counts['images']:,} images, intact")


@app.command()
def release(
    version: Annotated[str, typer.Argument(help="Version name, or the start of it.")], home: HomeUrl = "var"
) -> None:
    """Take a dataset version out of quarantine and make it latest."""
    from hyco.storage.home import Home

    versions = Home(home).versions
    name = versions.load(version).name
    if not versions.release(name):
        raise ValueError(f"dataset version {name} is not in quarantine")
    typer.echo(f"{name} is released, and latest")


@app.command()
def status(home: HomeUrl = "var", as_json: AsJson = False) -> None:
    """List what a home holds: mined units, dataset versions, runs."""
    from hyco.pipeline.ui import status as listing
    from hyco.storage.home import Home

    if as_json:
        show(listing.holdings(Home(home)))
        return
    for line in listing.report(Home(home)):
        typer.echo(line)


@app.command()
def gc(
    home: HomeUrl = "var",
    older_than_hours: Annotated[float, typer.Option(help="Keep files younger than this.", min=0)] = 24,
) -> None:
    """Delete unreferenced and partly written files of killed workers.

    Files that held deleted images (`hyco delete`) go whatever their age.
    """
    from hyco.pipeline.curation.delete import settle
    from hyco.storage.gc import collect
    from hyco.storage.home import Home

    opened = Home(home)
    settle(opened)
    removed = collect(opened.store, older_than_hours * 3600)
    typer.echo(f"{len(removed)} files removed from {home}")
