"""The verb of the pages: serve."""

import contextlib
import os
from typing import Annotated

import typer

from pipeline.cli.app import HomeUrl, app, say


@app.command()
def serve(
    home: HomeUrl = "var",
    host: Annotated[
        str, typer.Option(help="Address to listen on; the pages have no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8300,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another host name by which browsers reach the pages; may be repeated. Loopback, this machine's name, "
            "--host and the host of HYCO_SERVE_URL are always allowed.",
        ),
    ] = None,
) -> None:
    """Serve a home's pages: decisions, versions with samples, runs.

    Ctrl-C ends it.
    """
    import uvicorn

    from pipeline.runtime.listen import listen
    from pipeline.ui.hosts import own_hosts
    from pipeline.ui.server import create_app
    from storage.home import Home

    hosts = own_hosts(host, os.environ.get("HYCO_SERVE_URL", ""), allow_host or ())
    application = create_app(Home(home), hosts)
    with listen(host, port) as listening:
        say(f"Pages of {home}: http://{host}:{port}/ (Ctrl-C ends it)")
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=3))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
