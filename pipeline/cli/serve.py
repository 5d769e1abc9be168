"""The verb that shows: serve."""

import os
from typing import Annotated

import typer

from pipeline.cli.app import HomeUrl, app


@app.command()
def serve(
    home: HomeUrl = "var",
    host: Annotated[
        str, typer.Option(help="Address to listen on; the pages ask nobody for a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8300,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name that browsers reach the pages by; may be repeated. Loopback, this machine's name, "
            "--host and the host of HYCO_SERVE_URL are allowed anyway.",
        ),
    ] = None,
) -> None:
    """Serve a home's pages: decisions, lineage, dataset versions with their samples, runs; Ctrl-C ends it."""
    import uvicorn

    from pipeline.ui.hosts import own_hosts
    from pipeline.ui.server import create_app
    from storage.home import Home

    hosts = own_hosts(host, os.environ.get("HYCO_SERVE_URL", ""), allow_host or ())
    application = create_app(Home(home), hosts)
    typer.echo(f"Pages of {home}: http://{host}:{port}/ (Ctrl-C ends it)")
    uvicorn.run(application, host=host, port=port, log_level="warning")
