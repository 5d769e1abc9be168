"""Verbs of `hyco` that need a Prefect server: deploy, worker, notify."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hyco.flows.runtime.server import ensure_server, reach
from hyco.flows.runtime.settings import WORKER, use_home
from hyco.pipeline.cli.app import GROUNDERS, AssessSource, Assignments, HomeUrl, TaxonomyFile, app, say
from hyco.pipeline.cli.config_docs import SECTIONS
from hyco.storage.home import Home
from hyco.storage.layout import DEPLOYED
from hyco.storage.store import Store

SECTIONS["deploy"] = ("hyco.flows.deployment.config:DeployConfig", "`hyco deploy --set FIELD=VALUE`")
SECTIONS["maintain"] = ("hyco.flows.maintain:MaintainConfig", "the form of the deployment `maintain`")


@app.command()
def deploy(
    source: Annotated[str | None, typer.Option(help="Folder or URL of captioned images to watch.")] = None,
    grounder: Annotated[str | None, typer.Option(help=f"{GROUNDERS}.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training recipe, such as demo, photos.")] = None,
    home: HomeUrl = "var",
    assess_source: AssessSource = None,
    taxonomy: TaxonomyFile = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of a training on new data: smoke, small, full.")
    ] = None,
    pool_type: Annotated[str | None, typer.Option(help="process, docker or kubernetes.")] = None,
    assignments: Assignments = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only list the differences; exit code 1 if there are any.")
    ] = False,
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Undo changes of parameters, schedules and limits made on the server."),
    ] = False,
    yaml: Annotated[
        str | None, typer.Option(help="Write the deployments as prefect.yaml to this file.")
    ] = None,
) -> None:
    """Create or update work pools, deployments and automations.

    Parameters, schedules and limits that were changed in the UI are kept and listed, except where these options say
    something new; --reset undoes them.

    The server is that of PREFECT_API_URL, or one on the home's database for the duration of this command. The options
    are stored in HOME/deploy.json, so that the next `hyco deploy` needs none of them. Without any options, the first
    `hyco deploy` watches HOME/source with the embedded grounder and recipe demo. --yaml contacts no server and stores
    nothing: it writes the deployments that the same options would create.

    --set takes fields of DeployConfig: retrain.min_new=500, heavy_pool=gpu, watch_every_s=60,
    retrain.journey.recipe.steps=2000 ...
    """
    from hyco.pipeline.config import override

    use_home(home)
    store = Store(home)
    # Before flows.deployment.spec imports Prefect, which reads its settings once. The configurations do not import it.
    address = None if yaml else ensure_server(home)
    from hyco.flows.deployment.config import DeployConfig, first, resolved
    from hyco.flows.deployment.prefect_yaml import text
    from hyco.flows.deployment.spec import blueprint
    from hyco.pipeline.end_to_end import checked, compose
    from hyco.pipeline.registry.retraining import RetrainConfig

    stored = None
    if store.exists(DEPLOYED) and not (reset and source and grounder and recipe):
        try:
            stored = DeployConfig.model_validate_json(store.read_bytes(DEPLOYED)).replace(home=home)
        except ValueError as error:
            raise ValueError(
                f"{home}/{DEPLOYED} cannot be read ({error}): give --source, --grounder, --recipe and --reset to "
                "replace it, which undoes changes that were made on the server"
            ) from error
    if source and grounder and recipe:
        journey = compose(source, grounder, recipe, False, assess_source=assess_source, taxonomy=taxonomy)
        config = DeployConfig(home=home, retrain=RetrainConfig(journey=journey))
    elif source or grounder or recipe:
        raise ValueError("--source, --grounder and --recipe belong together: give all three or none")
    elif stored:
        config = stored
    else:
        config = first(home, assess_source)
        if store.local and not yaml:
            Path(config.retrain.journey.mine.source).mkdir(parents=True, exist_ok=True)
    chosen = {
        "preset": preset,
        "pool_type": pool_type,
        "retrain.journey.assess_source": assess_source,
        "retrain.journey.taxonomy": taxonomy,
    }
    config = override(config, [f"{name}={value}" for name, value in chosen.items() if value])
    config = override(config, assignments or [])
    checked(config.retrain.journey, "retrain.journey.pack.image_size")
    if yaml:
        Path(yaml).write_text(text(blueprint(config)))
        return
    from hyco.flows.deployment import reconcile as deploying

    config = resolved(config, Path.cwd())
    plan = blueprint(config)
    before = blueprint(resolved(stored, Path.cwd())) if stored and not reset else None
    reconcile = deploying.check if check else deploying.apply
    lines = reconcile(plan, before, lambda line: say(f"note: {line}"))
    for line in lines:
        say(f"differs: {line}" if check else line)
    if check:
        for line in deploying.pauses(plan):
            say(f"note: {line}")
        typer.echo(f"{len(lines)} differences on {address}")
        raise typer.Exit(1 if lines else 0)
    store.replace(DEPLOYED, (json.dumps(config.model_dump(mode="json"), indent=1) + "\n").encode())
    typer.echo(f"watched: {config.retrain.journey.mine.source}, recipe {config.retrain.journey.recipe.name}")
    say(f"scheduled: watch every {config.watch_every_s:g} s; maintain at cron '{config.maintain_cron}', UTC")
    workers = [f"hyco worker --pool {pool} --home {home}" for pool in sorted({"cpu", config.heavy_pool})]
    typer.echo(f"{len(lines)} changes on {address}; next: {' and '.join(workers)}")


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Work pool: cpu or gpu.")] = "cpu",
    home: HomeUrl = "var",
    limit: Annotated[int | None, typer.Option(help="Maximum number of flow runs at once.", min=1)] = None,
    health: Annotated[
        bool,
        typer.Option("--health", help="Serve the worker's health at port 8080 (/health), for containers."),
    ] = False,
) -> None:
    """Run a Prefect worker for a work pool until Ctrl-C.

    PREFECT_API_URL must name the server.
    """
    use_home(home)
    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError(
            f"PREFECT_API_URL is not set: start `hyco ui --home {home}` and export the address it prints"
        )
    reach(os.environ["PREFECT_API_URL"])
    for name, value in WORKER.items():
        os.environ.setdefault(name, value)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    command += ["--limit", str(limit)] if limit else []
    command += ["--with-healthcheck"] if health else []
    os.execv(sys.executable, command)  # Prefect's worker gets every signal itself, in a container too


@app.command()
def notify(
    source: Annotated[str, typer.Argument(help="Folder or URL that has new shards.")],
    home: HomeUrl = "var",
) -> None:
    """Start the next check of a watched source now.

    Emits the event hyco.source.grown to the server of PREFECT_API_URL and prints which deployment will look, and when.
    """
    use_home(home)
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        raise ValueError("PREFECT_API_URL is not set: name the server whose deployments watch the source")
    place = source
    if "://" not in source:
        place = str(Path(source).expanduser().resolve())
        if not Path(place).exists():
            raise FileNotFoundError(f"{source} does not exist: give the folder that has new shards")
    reach(address)
    from prefect.client.orchestration import get_client

    from hyco.flows.deployment.watchers import told, watchers
    from hyco.flows.reporting.events import flush, grown
    from hyco.flows.runtime.progress import quiet_terminal

    quiet_terminal()
    with get_client(sync_client=True) as client:
        known = list(watchers(client))
    looking = [one for one in known if one.source.rstrip("/") == place.rstrip("/")]
    if not looking:
        others = ", ".join(sorted({one.source for one in known})) or "nothing"
        raise ValueError(
            f"nobody watches {place} on {address} (watched: {others}): give a watched folder, or watch this one with "
            "hyco deploy --source"
        )
    grown(looking[0].source)
    flush()
    for watcher in looking:
        for line in told(watcher, home):
            say(line)
    for entry in Home(home).shelf.entries():
        say(f"not looked at: {entry}")
