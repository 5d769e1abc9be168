"""`hyco serve`: the pages of a home over HTTP, to be looked at and linked to from the Prefect UI.

    /                                   decisions, lineage, dataset versions, runs
    /versions/NAME                      its samples with their boxes, counts, gate, failures
    /versions/NAME/samples/N/whole.jpg  a sample's image; 0.jpg, 1.jpg ... are its parts
    /runs/NAME/report.html              the report; curves.svg, metrics.json, metrics.csv beside it
    /lineage.svg                        where the champion came from

Reads only, from what a record names; everything that came from data is escaped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from pipeline.assess import report
from pipeline.serve import curves, lineage
from pipeline.serve.home import Home

T = TypeVar("T")
HERE = Path(__file__).parent
RUN_FILES = {
    "report.html": "text/html",
    "metrics.json": "application/json",
    "metrics.csv": "text/csv",
    "train.json": "application/json",
}
# No script at all, and no pictures but this server's and those inside the page.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def create_app(home: str) -> Starlette:
    """The application; FileNotFoundError when there is no such home."""
    known = Home(home)
    templates = Environment(
        loader=FileSystemLoader([HERE, report.FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = Markup((report.FOLDER / "report.css").read_text() + (HERE / "serve.css").read_text())

    def page(name: str, **values: object) -> HTMLResponse:
        text = templates.get_template(name).render(style=style, home=home, **values)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})

    def overview(request: Request) -> Response:
        return page("overview.html.j2", **known.overview())

    def version(request: Request) -> Response:
        return page("version.html.j2", **_found(lambda: known.version(request.path_params["name"])))

    def picture(request: Request) -> Response:
        asked = request.path_params
        image = _found(lambda: known.picture(asked["name"], asked["sample"], asked["picture"]))
        return Response(image, media_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})

    def run_file(request: Request) -> Response:
        folder = _found(lambda: known.run(request.path_params["name"]))
        file = request.path_params["file"]
        if file == "curves.svg":
            return Response(_found(lambda: curves.draw(folder)), media_type="image/svg+xml")
        if file not in RUN_FILES or not (folder / file).is_file():
            raise HTTPException(404, f"run {folder.name} has no {file}")
        return FileResponse(folder / file, media_type=RUN_FILES[file])

    def lineage_svg(request: Request) -> Response:
        return Response(lineage.draw(known.decisions()), media_type="image/svg+xml")

    return Starlette(
        routes=[
            Route("/", overview),
            Route("/versions/{name}", version),
            Route("/versions/{name}/samples/{sample:int}/{picture}.jpg", picture),
            Route("/runs/{name}/{file}", run_file),
            Route("/lineage.svg", lineage_svg),
        ]
    )


def _found(look: Callable[[], T]) -> T:
    try:
        return look()
    except (KeyError, IndexError, FileNotFoundError, ValueError) as error:
        raise HTTPException(404, str(error)) from None
