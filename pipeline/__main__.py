"""The `hyco` command without Prefect: each verb calls the plain function that the flow of the same name calls.

`flows/__main__.py` adds the verbs that need Prefect and is what the installed `hyco` runs;
`python -m pipeline` is this file alone, for machines where Prefect is not installed.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="hyco",
    help="From captioned images to an assessed hyperbolic CLIP.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Source = Annotated[
    str,
    typer.Option(
        help="Captioned images: a folder of tars (webdataset, img2dataset), parquet, or jsonl with images."
    ),
]
Grounder = Annotated[str, typer.Option(help="transformers:NAME_OR_DIR, onnx:FILE or groundingdino:DIR.")]
Home = Annotated[str, typer.Option(help="Where everything Hyco makes is kept: a directory or an fsspec URL.")]
Workers = Annotated[
    int, typer.Option(help="Worker processes on this machine; 0 works in this process.", min=0)
]
Version = Annotated[str, typer.Option(help="Dataset version: its name, the start of it, or latest.")]
RecipeName = Annotated[
    str, typer.Option(help="Recipe of pipeline/recipes.py, such as demo, photos, hycoclip_vit_s.")
]
AssessSource = Annotated[
    str | None,
    typer.Option(help="Held-out captioned images; by default the val split of the dataset version."),
]
TaxonomyFile = Annotated[
    str | None, typer.Option(help="taxonomy.json with the classes for zero-shot and hierarchy.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the configuration; may be repeated."),
]


@app.callback(invoke_without_command=True)
def hyco(context: typer.Context) -> None:
    """From captioned images to an assessed hyperbolic CLIP."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def mine(
    source: Source,
    grounder: Grounder,
    home: Home = "var",
    workers: Workers = CORES,
    assignments: Assignments = None,
) -> None:
    """Find the nouns of every caption and the boxes of every noun.

    --set takes fields of MineConfig: per_phrase=32, nouns.batch_size=64 ...
    """
    from pipeline.config import override
    from pipeline.engine import open_engine
    from pipeline.mine import MineConfig, mine_all

    config = override(MineConfig(source=source, grounder=grounder), assignments or [])
    with open_engine(workers) as engine:
        _show(mine_all(config, home, engine))


@app.command()
def pack(
    source: Source,
    grounder: Grounder,
    recipe: RecipeName = "hycoclip_vit_s",
    home: Home = "var",
    workers: Workers = CORES,
    assignments: Assignments = None,
) -> None:
    """Cut crops from the mined boxes and publish a dataset version. Runs no detector.

    The packing suits the recipe; --set takes fields of JourneyConfig: pack.threshold=0.4, pack.holdout=0.1 ...
    """
    from pipeline import pack as packing
    from pipeline.config import override
    from pipeline.engine import open_engine
    from pipeline.journey import compose

    config = override(compose(source, grounder, recipe), assignments or [])
    with open_engine(workers) as engine:
        version = packing.pack(config.mine, config.pack, home, engine)
    _show({"version": version.name, "counts": version.counts})


@app.command()
def train(
    recipe: RecipeName,
    home: Home = "var",
    version: Version = "latest",
    run: Annotated[
        str | None, typer.Option(help="Name of the run; made of recipe and version by default.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Training processes: one for each GPU.", min=1)] = 1,
    assignments: Assignments = None,
) -> None:
    """Train a recipe on a dataset version, or go on where it stopped.

    --set takes fields of Recipe: steps=2000, optimiser.lr=0.001 ...
    """
    from pipeline.config import override
    from pipeline.journey import run_dir
    from pipeline.launch import launch
    from pipeline.recipes import by_name
    from pipeline.runs import prepare
    from storage.store import Store
    from storage.versions import Versions

    chosen = override(by_name(recipe), assignments or [])
    name = Versions(Store(home)).load(version).name
    folder = run_dir(home, chosen, name, run)
    prepare(folder, home, name, chosen)
    _show({"run_dir": str(folder), **launch(folder, processes)})


@app.command()
def assess(
    run: Annotated[str, typer.Option(help="Directory of the run, or its name in HOME/runs.")],
    home: Home = "var",
    assess_source: AssessSource = None,
    taxonomy: TaxonomyFile = None,
    assignments: Assignments = None,
) -> None:
    """Measure a trained run; writes metrics.json and report.html into it.

    --set takes fields of AssessConfig: max_images=1000 ...
    """
    from pipeline import assess as assessing
    from pipeline import journey
    from pipeline.config import override
    from pipeline.runs import RunConfig

    folder = Path(run) if (Path(run) / "config.json").is_file() else Path(home) / "runs" / run
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no run in {run} or {folder}: give the directory that `hyco train` printed")
    known = RunConfig.model_validate_json((folder / "config.json").read_bytes())
    mined, packed, version = journey.mined_of(known.version, home)
    held = mined.replace(source=assess_source) if assess_source else None
    try:
        found = journey.mining_report(mined, packed, home, version, held)
    except ValueError as error:  # the held-out source need not be mined to be assessed on
        typer.echo(f"mining is left out of the report: {error}", err=True)
        found = None
    metrics = assessing.assess(
        folder,
        home,
        known.version,
        assess_source,
        taxonomy,
        found,
        config=override(assessing.AssessConfig(), assignments or []),
    )
    show_metrics(metrics, folder)


@app.command()
def verify(
    version: Annotated[str, typer.Argument(help="Version name or latest.")] = "latest", home: Home = "var"
) -> None:
    """Prove a dataset version intact: every hash, every count. Exit code 1 when it is not."""
    from storage.store import Store
    from storage.versions import Versions

    versions = Versions(Store(home))
    found = versions.load(version)
    problems = versions.verify(found)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    shards = sum(len(split) for split in found.shards.values())
    typer.echo(f"{found.name}: {shards} shards, {found.counts['images']:,} images, intact")


@app.command()
def status(home: Home = "var") -> None:
    """List what a home holds: mined units, dataset versions, runs."""
    from pipeline.status import report

    for line in report(home):
        typer.echo(line)


@app.command()
def collect(
    home: Home = "var",
    older_than_hours: Annotated[float, typer.Option(help="Leave younger files alone.", min=0)] = 24,
) -> None:
    """Delete files that no record and no version names: what killed workers left behind."""
    from storage.garbage import collect as collect_garbage
    from storage.store import Store

    removed = collect_garbage(Store(home), older_than_hours * 3600)
    typer.echo(f"{len(removed)} files removed from {home}")


def show_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Print the numbers with their chance levels, and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.assess.table import COLUMNS, rows

    table = Table(*COLUMNS)
    for row in rows(metrics):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"report:  {folder / 'report.html'}\nmetrics: {folder / 'metrics.json'}", soft_wrap=True)


def _show(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2, default=str))


def run_app(command: Callable[..., Any]) -> None:
    """Run a typer app; a mistake of the user's becomes one line on stderr and exit code 2.

    Users' mistakes are ValueError (its subclasses from pydantic, json and unicode too) and OSError, by the house rule
    that our own invariants are asserts. HYCO_DEBUG=1 shows the traceback.
    """
    try:
        sys.exit(command(standalone_mode=False) or 0)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("hyco: stopped; the same command goes on where it left off", file=sys.stderr)
        sys.exit(130)
    except (typer.TyperException, ValueError, OSError, RuntimeError) as error:
        if os.environ.get("HYCO_DEBUG"):
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print("hyco: error:", " ".join(text.split()), file=sys.stderr)
        sys.exit(1 if isinstance(error, RuntimeError) else 2)


def main() -> None:
    """Entry point of `python -m pipeline`."""
    run_app(app)


if __name__ == "__main__":
    main()
