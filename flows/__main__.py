"""The `hyco` command: the verbs of `pipeline`, and those of Prefect, imported only when one of them runs."""

import contextlib
import functools
import logging
import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import hyco.flows.cli
import hyco.pipeline.cli  # noqa: F401  registers the verbs that need no Prefect
from hyco.flows.runtime.server import ensure_server, reach, start, wait_for
from hyco.flows.runtime.settings import use_home
from hyco.pipeline.cli import curation, registry
from hyco.pipeline.cli.app import (
    AssessSource,
    Assignments,
    Boxes,
    CaptionColumn,
    Engine,
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
    say,
    show_metrics,
)
from hyco.pipeline.cli.serve import serving
from hyco.pipeline.runtime.executor import LOCAL
from hyco.pipeline.runtime.listen import listen
from hyco.pipeline.runtime.progress import Progress
from hyco.pipeline.runtime.stop import TerminatedError, terminable, told

if TYPE_CHECKING:
    from hyco.storage.home import Home

PAGES = 8300  # the port that artifacts link to unless HYCO_SERVE_URL is set
SHUTDOWN_S = 10.0  # what the server of `hyco ui` may take to end before it is killed with this process


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
    workers: Workers = None,
    engine: Engine = LOCAL,
    force: Force = False,
    assignments: Assignments = None,
) -> None:
    """Mine, pack, train and assess in a row, as Prefect flows.

    Starts a Prefect server of its own unless PREFECT_API_URL names one. Interrupted, the same command resumes.

    The cost of a long training is measured and printed first; a training of more than three days on a CPU is refused
    without --force.

    --set takes fields of JourneyConfig: recipe.steps=2000, pack.threshold=0.4, mine.per_phrase=32 ...
    """
    from hyco.pipeline.config import override
    from hyco.pipeline.end_to_end import checked, compose
    from hyco.pipeline.training.cost import require_feasible

    grounder, columns = mining_of(grounder, image_column, caption_column, boxes)
    config = compose(source, grounder, recipe, True, columns, assess_source=assess_source, taxonomy=taxonomy)
    config = checked(override(config, assignments or []))
    tell = functools.partial(say, err=True)
    if cost := require_feasible(config.recipe, config.processes, force, tell):
        tell(f"training: {cost}")
    if workers is not None:
        os.environ["HYCO_WORKERS"] = str(workers)
    with terminable():
        address = ensure_server(home)
        say(f"Prefect UI while this runs: {address.removesuffix('/api')}/runs", err=True)
        from hyco.flows.journey import journey as flow
        from hyco.flows.runtime.progress import quiet_terminal

        if not os.environ.get("HYCO_DEBUG"):
            quiet_terminal(logging.ERROR if Progress.quiet else logging.NOTSET)
        result = flow(config, home, engine)
    show_metrics(result["metrics"], result["run_dir"])
    say(f"Prefect UI with these runs: hyco ui --home {home}")


@app.command()
def ui(
    home: HomeUrl = "var",
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 4200,
    pages_port: Annotated[
        int, typer.Option(help="Port of the home's pages, those of hyco serve.", min=1, max=65535)
    ] = PAGES,
) -> None:
    """Serve the Prefect UI and a home's pages, on this machine only.

    The UI's pictures and links lead to the home's pages at port 8300, or where HYCO_SERVE_URL says.

    Ctrl-C ends it. Messages that need no action (SQLite was busy and Prefect tried again) are printed as a count.
    """
    use_home(home)
    with listen("127.0.0.1", port) as listening, terminable(), contextlib.ExitStack() as beside:
        process, address = start(listening)
        try:
            wait_for(process, address, "its last lines are above")
            say(f"Prefect UI: {address.removesuffix('/api')}/runs (Ctrl-C ends it)")
            say(_pages(home, pages_port, beside))
            say(f"for deployments and workers: export PREFECT_API_URL={address}")
            raise typer.Exit(process.wait())
        except (KeyboardInterrupt, TerminatedError) as error:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SHUTDOWN_S)
            told(error, quiet=True)


def _pages(home: str, port: int, beside: contextlib.ExitStack) -> str:
    """Serve the home's pages, unless somebody else does; return where they are."""
    if known := os.environ.get("HYCO_SERVE_URL"):
        return f"pages of {home}: where HYCO_SERVE_URL says, {known}"
    if "://" not in home:
        Path(home).mkdir(
            parents=True, exist_ok=True
        )  # what `hyco deploy` makes later is shown without a restart
    try:
        address = beside.enter_context(serving(home, port))
    except FileNotFoundError as error:
        return f"no pages: {error}; hyco serve has them once there is one"
    except ValueError:
        return f"pages of {home}: port {port} is taken, so pictures come from whatever listens there: give --pages-port"
    told = "" if port == PAGES else f"; for workers: export HYCO_SERVE_URL={address}"
    return f"pages of {home}: {address}{told}"


def announce(row: Any, home: str) -> None:
    """Emit an event and an artifact of a promotion, refusal or rollback, if PREFECT_API_URL names a server."""

    def emit(opened: "Home") -> None:
        from hyco.flows.reporting.artifacts import decided

        decided(row, opened)

    _announce(emit, home)


def announce_shelved(back: bool, path: str, source: str, reason: str, home: str) -> None:
    """Emit an event of a shard that was set aside or returned, if PREFECT_API_URL names a server."""

    def emit(opened: "Home") -> None:
        from hyco.flows.reporting.events import shelved

        shelved(back, path, source, reason, opened)

    _announce(emit, home)


def _announce(emit: Callable[["Home"], None], home: str) -> None:
    if not os.environ.get("PREFECT_API_URL"):
        return
    from hyco.storage.home import Home

    opened = Home(Home(home).store.url)  # absolute: who reads the event may be elsewhere
    try:
        reach(os.environ["PREFECT_API_URL"])
        use_home(opened.url)
    except (RuntimeError, OSError) as error:  # what is announced has happened already
        typer.echo(f"no event and no artifact: {error}", err=True)
        return
    from hyco.flows.reporting.events import flush
    from hyco.flows.runtime.progress import quiet_terminal

    quiet_terminal()  # what Prefect still has to send is its own affair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Prefect discourages artifacts outside a flow
        emit(opened)
    flush()


def main() -> None:
    """Entry point of the installed `hyco`."""
    registry.announcers.append(announce)
    curation.announcers.append(announce_shelved)
    run_app(app)


if __name__ == "__main__":
    main()
