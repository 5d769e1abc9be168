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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Home = Annotated[str, typer.Option(help="Where everything Hyco makes is kept: a directory or an fsspec URL.")]
Workers = Annotated[int, typer.Option(help="Worker processes on this machine; 0 works in this process.", min=0)]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set any field of the configuration, as FIELD=VALUE. May be repeated."),
]


@app.command()
def mine(
    source: Annotated[str, typer.Option(help="Captioned images: tars, parquet, or a folder with jsonl.")],
    grounder: Annotated[str, typer.Option(help="transformers:NAME_OR_DIR, onnx:FILE or groundingdino:DIR.")],
    home: Home = "var",
    workers: Workers = os.cpu_count() or 1,
    assignments: Assignments = None,
) -> None:
    """Find the nouns of every caption and the boxes of every noun."""
    from pipeline.config import override
    from pipeline.engine import open_engine
    from pipeline.mine import MineConfig, mine_all

    config = override(MineConfig(source=source, grounder=grounder), assignments)
    with open_engine(workers) as engine:
        _show(mine_all(config, home, engine))


@app.command()
def pack(
    source: Annotated[str, typer.Option(help="The mined source.")],
    grounder: Annotated[str, typer.Option(help="The grounder it was mined with.")],
    home: Home = "var",
    workers: Workers = os.cpu_count() or 1,
    assignments: Assignments = None,
) -> None:
    """Cut crops from the mined boxes and publish a dataset version. Runs no detector."""
    raise NotImplementedError


@app.command()
def train() -> None:
    """Train a model on a dataset version."""
    raise NotImplementedError


@app.command()
def assess() -> None:
    """Measure a trained model and write its report."""
    raise NotImplementedError


def _show(result: Any) -> None:
    typer.echo(json.dumps(result, indent=2, default=str))


def run(command: Callable[..., Any]) -> None:
    """Run a typer app; a mistake of the user's becomes one line on stderr and exit code 2.

    Users' mistakes are ValueError (its subclasses from pydantic, json and unicode too) and OSError, by the house rule
    that our own invariants are asserts. HYCO_DEBUG=1 shows the traceback.
    """
    try:
        sys.exit(command(standalone_mode=False) or 0)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit("hyco: stopped; the same command goes on where it left off")
    except (typer.TyperException, ValueError, OSError) as error:
        if os.environ.get("HYCO_DEBUG"):
            raise
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print("hyco: error:", " ".join(text.split()), file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Entry point of `python -m pipeline`."""
    run(app)


if __name__ == "__main__":
    main()
