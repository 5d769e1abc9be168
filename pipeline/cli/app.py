"""What all verbs of `hyco` share: the app, common options, printing, and exit codes."""

import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hyco.pipeline.mining.grounder import HELP as GROUNDERS
from hyco.pipeline.runtime.progress import Progress
from hyco.pipeline.runtime.stop import StoppedError, TerminatedError, told

if TYPE_CHECKING:
    from hyco.pipeline.sources.columns import Columns

OLD_VERBS = {"grown": "notify", "collect": "gc", "refuse": "reject"}
"""Verbs of earlier releases: they work, and --help lists only the present ones."""

PANELS: dict[str, tuple[str, ...]] = {
    "The whole journey": ("journey",),
    "Data": (
        "look",
        "plan",
        "calibrate",
        "mine",
        "pack",
        "adopt",
        "versions",
        "diff",
        "card",
        "verify",
        "release",
        "shelve",
        "delete",
    ),
    "Models": ("train", "profile", "assess", "fit", "embed", "search", "import", "export"),
    "Champion": ("promote", "reject", "champion", "rollback", "registry"),
    "On a schedule, with Prefect": ("ui", "deploy", "worker", "notify"),
    "A home": ("status", "serve", "gc", "config"),
}
"""The headings of `hyco --help` and their verbs, in the order in which they are used."""

_QUIET = ("-q", "--quiet")


class _Group(TyperGroup):
    """Accepts the old verbs and --quiet anywhere, and lists the verbs by PANELS.

    Typer ends a program at Ctrl-C without a word; an Abort reaches `run_app`.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, OLD_VERBS.get(cmd_name, cmd_name))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        Progress.quiet = any(word in _QUIET for word in args)
        return super().parse_args(ctx, [word for word in args if word not in _QUIET])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        verbs = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        width = max(map(len, verbs))
        for title, names in PANELS.items():
            rows = [(name.ljust(width), summary(verbs[name])) for name in names if name in verbs]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort(*error.args) from error


def summary(verb: Any) -> str:
    """The first line of a verb's help."""
    return (verb.help or "").strip().partition("\n")[0]


app = typer.Typer(
    name="hyco",
    cls=_Group,
    help="Train a hyperbolic CLIP on your own captioned images, and retrain it when new images arrive.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def plain_home(home: str) -> str:
    """Return the home as a plain path or URL: ~ expanded, file:// removed."""
    plain = home.removeprefix("file://")
    return plain if "://" in plain else str(Path(plain).expanduser())


Source = Annotated[
    str,
    typer.Option(
        help="Captioned images: a folder of tars (webdataset, img2dataset), parquet files, or jsonl with images."
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
        help="Directory or fsspec URL that holds everything Hyco makes.",
        envvar="HYCO_HOME",
        callback=plain_home,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes; 0 does the work in this process. By default one per core of this machine, or as many "
        "as the Ray cluster has room for.",
        min=0,
    ),
]
Engine = Annotated[
    str, typer.Option(help="Where the workers are: local, ray or ray:HOST:PORT (a Ray cluster that runs).")
]
Version = Annotated[str, typer.Option(help="Dataset version: its name, the start of its name, or latest.")]
RecipeName = Annotated[str, typer.Option(help="Training recipe, such as demo, photos, hycoclip_vit_s.")]
AssessSource = Annotated[
    str | None,
    typer.Option(help="Held-out captioned images; by default the val split of the dataset version."),
]
TaxonomyFile = Annotated[
    str | None, typer.Option(help="taxonomy.json with the classes for zero-shot and hierarchy.")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Start a training even if it would take more than three days on this CPU."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a configuration field, see `hyco config`; may be repeated.",
    ),
]


def mining_of(
    grounder: str, image: str | None, caption: str | None, boxes: str | None
) -> tuple[str, "Columns"]:
    """The grounder and the columns that the options of a command name; ValueError without grounder and boxes."""
    from hyco.pipeline.mining.grounder import SOURCE
    from hyco.pipeline.sources.boxes import preset
    from hyco.pipeline.sources.columns import Columns

    if not grounder and not boxes:
        raise ValueError(
            f"give --grounder {GROUNDERS.split(' ')[0]}, or --boxes for a source that has its boxes"
        )
    columns = Columns(image=image, caption=caption, boxes=preset(boxes) if boxes else None)
    return grounder or SOURCE, columns


def _version(asked: bool) -> None:
    if asked:
        parts = [f"python {platform.python_version()}"]
        for name in ("torch", "prefect"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                parts.append(f"{name} {metadata.version(name)}")
        typer.echo(f"hyco {metadata.version('hyco')} ({', '.join(parts)})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def hyco(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("-q", "--quiet", help="Print results and errors only; also accepted after the command."),
    ] = False,
) -> None:
    """Train a hyperbolic CLIP on your own captioned images, and retrain it when new images arrive."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def say(text: str, err: bool = False) -> None:
    """Print a line that is no result, unless --quiet was given."""
    if not Progress.quiet:
        typer.echo(text, err=err)


def show_metrics(metrics: dict[str, Any], folder: str) -> None:
    """Print the metrics with their chance levels, and the paths of the report and the metrics file."""
    from rich.console import Console
    from rich.table import Table

    from hyco.pipeline.evaluation.report.page import gaps
    from hyco.pipeline.evaluation.report.summary import COLUMNS, rows

    table = Table(*COLUMNS)
    for row in rows(metrics):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for name, words in gaps(metrics):
        console.print(f"not complete: {name}: {words}", soft_wrap=True, highlight=False, markup=False)
    for section, why in metrics["skipped"].items():
        console.print(f"not measured: {section}: {why}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report:  {folder}/report.html\nmetrics: {folder}/metrics.json", soft_wrap=True)


def show(result: Any) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(result, indent=2, default=str))


def run_app(command: Callable[..., Any]) -> None:
    """Run a typer app and exit the process: a user's mistake becomes one line on stderr and exit code 2.

    A user's mistake is a ValueError (pydantic's, json's and unicode's are subclasses) or an OSError; our own invariants
    are asserts. HYCO_DEBUG=1 shows the traceback.
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
