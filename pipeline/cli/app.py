"""The parts that every verb of `hyco` shares: the app, its options, what it prints and how it fails."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.mining.grounder import HELP as GROUNDERS
from pipeline.runtime.stop import StoppedError, TerminatedError, told

if TYPE_CHECKING:
    from pipeline.sources.columns import Columns

OLD_VERBS = {"grown": "notify", "collect": "gc", "refuse": "reject"}
"""Verbs of earlier releases: they work, and --help lists the present ones alone."""


class _Group(TyperGroup):
    """Knows the old verbs too. Typer ends a program at Ctrl-C without a word; an Abort reaches `run_app`."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, OLD_VERBS.get(cmd_name, cmd_name))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort(*error.args) from error


app = typer.Typer(
    name="hyco",
    cls=_Group,
    help="From captioned images to an assessed hyperbolic CLIP.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plain_home(home: str) -> str:
    """The home as every part reads it alike: ~ expanded, no file://."""
    plain = home.removeprefix("file://")
    return plain if "://" in plain else str(Path(plain).expanduser())


Source = Annotated[
    str,
    typer.Option(
        help="Captioned images: a folder of tars (webdataset, img2dataset), parquet, or jsonl with images."
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="Column or field of the image (bytes or file name), if not a usual name.")
]
CaptionColumn = Annotated[
    str | None, typer.Option(help="Column or field of the caption, or several with commas, likewise.")
]
Boxes = Annotated[
    str | None,
    typer.Option(
        help="Boxes that the source has: objects, grit or coco. Without --grounder no detector runs; with one, both."
    ),
]
Grounder = Annotated[str, typer.Option(help=f"{GROUNDERS}.")]
HomeUrl = Annotated[
    str,
    typer.Option(
        help="Where everything Hyco makes is kept: a directory or an fsspec URL.",
        envvar="HYCO_HOME",
        callback=plain_home,
    ),
]
Workers = Annotated[
    int, typer.Option(help="Worker processes on this machine; 0 works in this process.", min=0)
]
Version = Annotated[str, typer.Option(help="Dataset version: its name, the start of it, or latest.")]
RecipeName = Annotated[
    str, typer.Option(help="Recipe of pipeline/training/recipes.py, such as demo, photos, hycoclip_vit_s.")
]
AssessSource = Annotated[
    str | None,
    typer.Option(help="Held-out captioned images; by default the val split of the dataset version."),
]
TaxonomyFile = Annotated[
    str | None, typer.Option(help="taxonomy.json with the classes for zero-shot and hierarchy.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Start a training that this machine would need months for.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a field of the configuration, see `hyco config`; may be repeated.",
    ),
]


def mining_of(
    grounder: str, image: str | None, caption: str | None, boxes: str | None
) -> tuple[str, "Columns"]:
    """The grounder and the columns that the options of a command name; ValueError without grounder and boxes."""
    from pipeline.mining.grounder import SOURCE
    from pipeline.sources.boxes import preset
    from pipeline.sources.columns import Columns

    if not grounder and not boxes:
        raise ValueError(
            f"give --grounder {GROUNDERS.split(' ')[0]}, or --boxes for a source that has its boxes"
        )
    columns = Columns(image=image, caption=caption, boxes=preset(boxes) if boxes else None)
    return grounder or SOURCE, columns


@app.callback(invoke_without_command=True)
def hyco(context: typer.Context) -> None:
    """From captioned images to an assessed hyperbolic CLIP."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def show_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Print the numbers with their chance levels, and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluation.report.page import gaps
    from pipeline.evaluation.report.summary import COLUMNS, rows

    table = Table(*COLUMNS)
    for row in rows(metrics):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for name, words in gaps(metrics):
        console.print(f"not complete: {name}: {words}", soft_wrap=True, highlight=False, markup=False)
    for section, why in metrics["skipped"].items():
        console.print(f"not measured: {section}: {why}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report:  {folder / 'report.html'}\nmetrics: {folder / 'metrics.json'}", soft_wrap=True)


def show(result: dict[str, Any]) -> None:
    """Print a result as JSON."""
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
    except (typer.Abort, KeyboardInterrupt, TerminatedError, StoppedError) as error:
        sys.exit(told(error))
    except (typer.TyperException, ValueError, OSError, RuntimeError) as error:
        if os.environ.get("HYCO_DEBUG"):
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print("hyco: error:", " ".join(text.split()), file=sys.stderr)
        sys.exit(1 if isinstance(error, RuntimeError) else 2)
