"""The verb of the pages: serve. `hyco ui` serves them beside Prefect's."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyco.pipeline.cli.app import HomeUrl, app, say

if TYPE_CHECKING:
    import uvicorn


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
    from hyco.pipeline.runtime.listen import listen
    from hyco.pipeline.ui.hosts import own_hosts
    from hyco.pipeline.ui.server import create_app
    from hyco.storage.home import Home

    hosts = own_hosts(host, os.environ.get("HYCO_SERVE_URL", ""), allow_host or ())
    application = create_app(Home(home), hosts)
    with listen(host, port) as listening:
        say(f"Pages of {home}: http://{host}:{port}/ (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            _server(application).run(sockets=[listening])


@contextlib.contextmanager
def serving(home: str, port: int) -> Iterator[str]:
    """Serve a home's pages on loopback from a thread of this process; yields their address.

    Raises:
        FileNotFoundError: there is no such home.
        ValueError: the port is taken.
    """
    from hyco.pipeline.runtime.listen import listen
    from hyco.pipeline.ui.server import create_app
    from hyco.storage.home import Home

    application = create_app(Home(home))
    with listen("127.0.0.1", port) as listening:
        server = _server(application)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(3)


def _server(application: Any) -> "uvicorn.Server":
    import uvicorn

    settings = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=3, lifespan="off")
    return uvicorn.Server(settings)
