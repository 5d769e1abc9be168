"""Verbs of the model: train, profile and assess."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyco.pipeline.cli.app import (
    AsJson,
    AssessSource,
    Assignments,
    Force,
    HomeUrl,
    RecipeName,
    TaxonomyFile,
    Version,
    app,
    say,
    show,
    show_metrics,
)

if TYPE_CHECKING:
    from hyco.storage.folder import Folder
    from hyco.storage.home import Home


@app.command()
def train(
    recipe: RecipeName,
    home: HomeUrl = "var",
    version: Version = "latest",
    run: Annotated[
        str | None, typer.Option(help="Name of the run; by default made from recipe and version.")
    ] = None,
    processes: Annotated[
        int, typer.Option(help="Training processes: one for each GPU of this machine.", min=1)
    ] = 1,
    nodes: Annotated[
        int, typer.Option(help="Machines that train together: each gives this command.", min=1)
    ] = 1,
    node_rank: Annotated[int, typer.Option(help="Number of this machine among them, from 0.", min=0)] = 0,
    rendezvous: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of machine 0 where the others meet it.")
    ] = "",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the towers' blocks: --set execution.compile=true.")
    ] = False,
    force: Force = False,
    assignments: Assignments = None,
) -> None:
    """Train a recipe on a dataset version, or resume its training.

    The cost of a long training is measured and printed first; a training of more than three days on a CPU is refused
    without --force.

    On several machines (--nodes) each gives the same command with its own --node-rank; the home is an object store or a
    shared directory. See docs/scale.md.

    --set takes fields of Recipe: steps=2000, optimiser.lr=0.001 ...
    """
    from hyco.pipeline.config import override
    from hyco.pipeline.end_to_end import enlarged, run_dir
    from hyco.pipeline.training.cost import require_feasible
    from hyco.pipeline.training.launch import launch
    from hyco.pipeline.training.nodes import Nodes
    from hyco.pipeline.training.recipes import by_name
    from hyco.pipeline.training.run_dir import prepare
    from hyco.storage.home import Home

    opened = Home(home)
    options = ["execution.compile=true"] if compiled else []
    chosen = override(by_name(recipe), [*options, *(assignments or [])])
    together = Nodes(nodes, node_rank, rendezvous) if nodes > 1 or node_rank or rendezvous else None
    found = opened.versions.load(version)
    tell = functools.partial(say, err=True)
    if cost := require_feasible(chosen, processes * nodes, force, tell):
        tell(f"training: {cost}")
    folder = run_dir(opened, chosen, found.name, run)
    tell(f"run {folder.name}: {chosen.steps:,} steps of {chosen.batch_size:,} samples on {found.name}")
    size = prepare(folder, opened, found.name, chosen).recipe.model.vision.image_size
    packed = found.config.get("pack", {}).get("image_size", size)
    if small := enlarged(packed, size):
        say(f"note: {small}; hyco pack --set pack.image_size={size} makes a version for it", err=True)
    trained = launch(folder, processes, on_line=tell, nodes=together)
    show({"run_dir": str(folder), **trained})


@app.command()
def profile(
    run: Annotated[str, typer.Argument(help="Directory of a run, or its name in HOME/runs.")],
    home: HomeUrl = "var",
    steps: Annotated[int, typer.Option(help="Training steps in the trace.", min=1)] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what the steps of a training spend their time on; with a trace.

    The steps follow the run's last checkpoint, and the run itself stays as it is. RUN/profile/trace.json.gz opens in
    https://ui.perfetto.dev or chrome://tracing.
    """
    from hyco.pipeline.training.profiling import profile_run
    from hyco.storage.home import Home

    found = profile_run(Home(home).run(run), steps, device)
    if as_json:
        show(found)
        return
    typer.echo(
        f"{found['seconds_per_step']:.3g} s per step on {found['device']}, of which "
        f"{100 * found['data_wait']:.0f} % waiting for data; largest costs:"
    )
    for line in found["largest"]:
        typer.echo(line)
    typer.echo(f"trace: {found['trace']}")


@app.command()
def assess(
    run: Annotated[str, typer.Option(help="Directory of the run, or its name in HOME/runs.")],
    home: HomeUrl = "var",
    assess_source: AssessSource = None,
    taxonomy: TaxonomyFile = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Published data sets to evaluate on: all (every one in DIR), or names separated by commas."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Directory of these data sets, one folder each.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="How they are asked: hyco, or published (as in the papers).")
    ] = "hyco",
    published: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Your copy of the published prompts and class names."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts and class names of yours: .json, .toml or .py (not run)."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Another assessed run to show in the report; may be repeated."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Evaluate a trained run and write its report.

    Writes metrics.json, metrics.csv and report.html into the run's directory. --run may also be a model directory,
    exported or imported: it is evaluated on --assess-source, --suite or both.

    --set takes fields of AssessConfig: max_images=1000, suite_images=1000, min_coverage=0.5 ...
    """
    from hyco.pipeline import end_to_end as journey
    from hyco.pipeline.config import override
    from hyco.pipeline.evaluation.config import AssessConfig, EvaluationSpec
    from hyco.pipeline.evaluation.evaluate import evaluate, evaluate_model
    from hyco.pipeline.training.run_dir import read_config
    from hyco.storage.home import Home

    opened = Home(home)
    config = override(AssessConfig(), assignments or [])
    if suite is None and data is not None:
        raise ValueError("--data needs --suite: all, or names of data sets")
    if suite is not None and data is None:
        raise ValueError("--suite needs --data: the directory of your data sets")
    if suite is None and (prompts or published or protocol != "hyco"):
        raise ValueError("--protocol, --published and --prompts belong to --suite: name data sets, or all")
    if beside:
        config = config.replace(beside=tuple(str(_assessed(opened, other)) for other in beside))
    spec = EvaluationSpec.model_validate(
        {"assess_source": assess_source, "taxonomy": taxonomy, "config": config}
        | {"suite": suite, "data": data}
        | {"protocol": protocol, "published": published, "prompts": prompts}
    )
    if (Path(run) / "model.safetensors").is_file():
        if suite is None and assess_source is None:
            raise ValueError(
                f"{run} is a model directory, not a run, and has no val split: give --assess-source with captioned "
                "images, --suite and --data, or the directory of its run"
            )
        if taxonomy and assess_source is None:
            raise ValueError(
                "--taxonomy names the classes of an --assess-source: give that too, or leave it out"
            )
        show_metrics(evaluate_model(run, spec), run)
        return
    folder = opened.run(run)
    if not folder.exists("config.json"):
        raise FileNotFoundError(f"no run in {run} or {folder}: give the directory that `hyco train` printed")
    known = read_config(folder)
    try:
        mined, packed, version = journey.mined_of(known.version, opened)
        held = mined.replace(source=assess_source) if assess_source else None
        found = journey.mining_report(mined, packed, opened, version, held)
    except (ValueError, OSError) as error:  # the source may be gone, or not mined
        found = f"mining is left out of the report: {error}"
        typer.echo(found, err=True)
    metrics = evaluate(folder, opened, spec.replace(version=known.version), mining=found)
    show_metrics(metrics, folder.url)


def _assessed(home: "Home", run: str) -> "Folder":
    """Return an evaluated run or model, given as a path or URL or by its name in HOME/runs."""
    from hyco.storage.folder import Folder

    return Folder(run) if (Path(run) / "metrics.json").is_file() else home.run(run)
