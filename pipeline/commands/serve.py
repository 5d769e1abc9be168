"""The verb that shows: serve."""

from typing import Annotated

import typer

from pipeline.commands.app import Home, app


@app.command()
def serve(
    home: Home = "var",
    host: Annotated[
        str, typer.Option(help="Address to listen on; the pages ask nobody for a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8300,
) -> None:
    """Serve a home's pages: decisions, lineage, dataset versions with their samples, runs; Ctrl-C ends it."""
    import uvicorn

    from pipeline.serve import create_app

    application = create_app(home)
    typer.echo(f"Pages of {home}: http://{host}:{port}/ (Ctrl-C ends it)")
    uvicorn.run(application, host=host, port=port, log_level="warning")
