"""The `hyco` command: the verbs of `pipeline`, and those that need Prefect, imported only when one of them runs."""

import os
import subprocess
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import flows.cli  # noqa: F401  registers deploy, worker and notify
import pipeline.cli  # noqa: F401  registers the verbs that need no Prefect
from flows.runtime.server import command, ensure_server, environment, reach
from flows.runtime.settings import use_home
from pipeline.cli.app import (
    CORES,
    AssessSource,
    Assignments,
    Boxes,
    CaptionColumn,
    Force,
    Grounder,
    HomeUrl,
    ImageColumn,
    RecipeName,
    Source,
    TaxonomyFile,
    Workers,
    app,
    mining_of,
    run_app,
    show_metrics,
)
from pipeline.cli.registry import announcers
from pipeline.runtime.stop import terminable


@app.command()
def journey(
    source: Source,
    recipe: RecipeName,
    grounder: Grounder = "",
    home: HomeUrl = "var",
    assess_source: AssessSource = None,
    taxonomy: TaxonomyFile = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    boxes: Boxes = None,
    workers: Workers = CORES,
    force: Force = False,
    assignments: Assignments = None,
) -> None:
    """Mine, pack, train and assess in a row, as Prefect flows. Needs no server set up beforehand.

    The cost of a long training is measured and printed first; one that would take more than three days on a CPU is
    refused without --force.

    --set takes fields of JourneyConfig: recipe.steps=2000, pack.threshold=0.4, mine.per_phrase=32 ...
    """
    from pipeline.config import override
    from pipeline.end_to_end import checked, compose
    from pipeline.training.cost import require_feasible

    grounder, columns = mining_of(grounder, image_column, caption_column, boxes)
    config = compose(source, grounder, recipe, True, columns, assess_source=assess_source, taxonomy=taxonomy)
    config = checked(override(config, assignments or []))
    if cost := require_feasible(config.recipe, config.processes, force):
        typer.echo(f"training: {cost}", err=True)
    os.environ["HYCO_WORKERS"] = str(workers)
    address = ensure_server(home)
    typer.echo(f"Prefect UI while this runs: {address.removesuffix('/api')}/runs", err=True)
    from flows.journey import journey as flow
    from flows.runtime.progress import quiet_terminal

    if not os.environ.get("HYCO_DEBUG"):
        quiet_terminal()
    with terminable():
        result = flow(config, home)
    show_metrics(result["metrics"], Path(result["run_dir"]))
    typer.echo(f"Prefect UI with these runs: hyco ui --home {home}")


@app.command()
def ui(
    home: HomeUrl = "var",
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 4200,
) -> None:
    """Serve the Prefect UI with the runs made under a home, on this machine only; Ctrl-C ends it."""
    use_home(home)
    typer.echo(f"Prefect UI: http://127.0.0.1:{port}/runs (Ctrl-C ends it)")
    typer.echo(f"for deployments and workers: export PREFECT_API_URL=http://127.0.0.1:{port}/api")
    raise typer.Exit(subprocess.call(command(port), env=environment(port)))


def announce(row: Any, home: str) -> None:
    """Make an event and an artifact of a promotion, refusal or rollback, where a Prefect server is named."""
    if not os.environ.get("PREFECT_API_URL"):
        return
    from storage.home import Home

    opened = Home(Home(home).store.url)  # absolute: who reads the event may be elsewhere
    try:
        reach(os.environ["PREFECT_API_URL"])
        use_home(opened.url)
    except (RuntimeError, OSError) as error:  # the decision stands in the registry all the same
        typer.echo(f"no event and no artifact: {error}", err=True)
        return
    from flows.reporting.events import decided, flush

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # Prefect would rather have artifacts made inside a flow
        decided(row, opened)
    flush()


def main() -> None:
    """Entry point of the installed `hyco`."""
    announcers.append(announce)
    run_app(app)


if __name__ == "__main__":
    main()
