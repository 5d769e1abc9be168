"""Verbs of the registry: champion, registry, promote, reject, rollback."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyco.pipeline.cli.app import AsJson, AssessSource, HomeUrl, TaxonomyFile, app, show

if TYPE_CHECKING:
    from hyco.storage.folder import Folder
    from hyco.storage.home import Home

Run = Annotated[str, typer.Argument(help="Directory of the run, or its name in HOME/runs.")]

# flows/__main__.py adds the function that emits an event and an artifact for a new decision of a home.
announcers: list[Callable[[Any, str], None]] = []


@app.command()
def champion(home: HomeUrl = "var", as_json: AsJson = False) -> None:
    """Show the model in service and where it came from.

    The output is JSON, with --json or without.
    """
    from hyco.pipeline.curation.flags import flags
    from hyco.storage.home import Home
    from hyco.storage.model_registry import champion_of

    opened = Home(home)
    registry = opened.registry
    rows = registry.rows()
    row = champion_of(rows)
    if row is None:
        raise ValueError(f"{home} has no champion yet: hyco promote RUN --home {home}")
    names = (
        "model",
        "kind",
        "time",
        "reason",
        "run",
        "report",
        "version",
        "detections",
        "detectors",
        "source",
    )
    told = {name: getattr(row, name) for name in names}
    show({"path": registry.model(row.model).url, **told, "flag": flags(opened, rows).get(row.number)})


@app.command()
def registry(home: HomeUrl = "var", as_json: AsJson = False) -> None:
    """List promotions, refusals and rollbacks, oldest first."""
    from hyco.pipeline.curation.flags import flags
    from hyco.storage.home import Home

    opened = Home(home)
    rows = opened.registry.rows()
    flagged = flags(opened, rows)
    if as_json:
        show([{**dataclasses.asdict(row), "flag": flagged.get(row.number)} for row in rows])
        return
    for row in rows:
        flag = f" [{flagged[row.number]}]" if row.number in flagged else ""
        typer.echo(
            f"{row.number:4d}  {row.time}  {row.kind:11s} {row.model}  {Path(row.run).name}  {row.reason}{flag}"
        )
    if not rows:
        typer.echo(f"{home} has no registry yet: hyco promote RUN --home {home}")


@app.command()
def promote(
    run: Run,
    home: HomeUrl = "var",
    assess_source: AssessSource = None,
    taxonomy: TaxonomyFile = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric that decides, such as zero_shot.top1; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the gate decides.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", hidden=True, help="The former name of --force.")
    ] = False,
) -> None:
    """Evaluate a run next to the champion; promote it if it is no worse.

    Both are evaluated on the same images: by default those of the run's last evaluation, with its taxonomy. Exit code 1
    when the gate refuses the run.
    """
    from hyco.pipeline.evaluation.config import EvaluationSpec
    from hyco.pipeline.evaluation.evaluate import evaluate
    from hyco.pipeline.registry.model_gate import GateConfig
    from hyco.pipeline.registry.promotion import challenge
    from hyco.pipeline.training.run_dir import read_config
    from hyco.storage.home import Home
    from hyco.storage.model_registry import PROMOTED

    opened = Home(home)
    folder = _finished(opened, run)
    known = read_config(folder)
    spec = EvaluationSpec(version=known.version, assess_source=assess_source, taxonomy=taxonomy)
    with contextlib.suppress(ValueError):  # a damaged file says nothing, and is written anew
        spec = spec.or_as_before((folder.json("metrics.json") or {}).get("assessed"))
    metrics = evaluate(folder, opened, spec)
    gate = GateConfig(metrics=tuple(metric)) if metric else GateConfig()
    known_rows = len(opened.registry.rows())
    row = challenge(folder, opened, spec, gate, metrics, anyway=force or anyway)
    if row.number <= known_rows:
        typer.echo(f"{row.model} is the champion already")
        return
    _announce(row, home)
    typer.echo(f"{row.kind}: {row.reason}")
    if row.kind != PROMOTED:
        raise typer.Exit(1)


@app.command()
def reject(
    run: Run,
    reason: Annotated[str, typer.Option(help="Why, for the log.")],
    home: HomeUrl = "var",
) -> None:
    """Record that a run is not to be promoted."""
    from hyco.pipeline.registry.promotion import refuse
    from hyco.storage.home import Home

    opened = Home(home)
    row = refuse(_finished(opened, run), opened, reason)
    _announce(row, home)
    typer.echo(f"{row.kind}: {row.reason}")


@app.command()
def rollback(
    home: HomeUrl = "var",
    to: Annotated[
        str | None,
        typer.Option(help="Start of a promoted model's digest; the previous champion by default."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "by hand",
) -> None:
    """Restore an earlier champion, byte for byte."""
    from hyco.pipeline.registry.promotion import rollback as go_back
    from hyco.storage.home import Home

    row = go_back(Home(home), to, reason)
    _announce(row, home)
    typer.echo(f"champion {row.model} of run {Path(row.run).name}, in place of {row.before}")


def _finished(home: "Home", run: str) -> "Folder":
    """Return a finished run, given as a path or URL or by its name; FileNotFoundError when there is none."""
    folder = home.run(run)
    if not folder.exists("model"):
        raise FileNotFoundError(
            f"no finished run in {run} or {folder}: give the directory that `hyco train` printed"
        )
    return folder


def _announce(row: Any, home: str) -> None:
    for announce in announcers:
        announce(row, home)
