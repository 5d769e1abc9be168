"""`hyco serve`: the pages of a home over HTTP; the Prefect UI links to them.

    /                                   decisions, lineage, dataset versions, runs
    /versions/NAME                      its samples with their boxes, counts, gate, failures
    /versions/A/diff/B                  what came and went from version A to version B
    /versions/NAME/README.md            its dataset card
    /versions/NAME/samples              all its samples, filtered, with forms that mark images and boxes as bad
    /versions/NAME/failures             all its failures
    /versions/NAME/samples/N/whole.jpg  a sample's image; 0.jpg, 1.jpg ... are its parts
    /runs/NAME                          its numbers, curves and decisions
    /runs/NAME/report.html              the report; curves.svg, metrics.json, metrics.csv, answers.json beside it
    /runs/A/compare/B                   numbers, options, curves and answers of two runs beside each other
    /decisions/N                        a decision: each metric beside the champion's; report.html, kept with it
    /detections                         what was mined, packed or not; /detections/DIGEST: all its images, filtered
    /marks                              what is marked as bad; POST marks and takes back
    /champions.svg                      the metrics of the champions over time
    /lineage.svg                        the lineage of the champion

Only files that a record names; texts from data are escaped. Nothing is written but marks (mark.py), and these only
where the server was told to take them. A record that cannot be read is marked in its own entry. Requests by another
host name than the server's own are refused (hosts.py).
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hyco.pipeline.evaluation.metrics.document import csv_text, upgrade
from hyco.pipeline.evaluation.report import report
from hyco.pipeline.ui import curves, lineage
from hyco.pipeline.ui.hosts import OwnHostsOnly, own_hosts
from hyco.pipeline.ui.mark import answer
from hyco.pipeline.ui.mined import Mined
from hyco.pipeline.ui.pages import HomePages
from hyco.pipeline.ui.review import Review
from hyco.storage.home import Home

T = TypeVar("T")
HERE = Path(__file__).parent
RUN_FILES = {
    "report.html": "text/html",
    "metrics.json": "application/json",
    "metrics.csv": "text/csv",
    "train.json": "application/json",
    "answers.json": "application/json",
}
# No scripts, only pictures of this server or embedded in the page, and no forms to or frames of other sites.
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


FRESH = {"Cache-Control": "no-cache"}  # cached, but revalidated: the content may have changed
FOREVER = {"Cache-Control": "max-age=86400, immutable"}


def create_app(home: Home, hosts: Iterable[str] | None = None, writable: bool = False) -> Starlette:
    """The application; FileNotFoundError when there is no such home.

    `hosts` are the accepted host names, by default those of `own_hosts()`; `writable` says whether marks are taken.
    """
    known, reviewed, mined = HomePages(home), Review(home), Mined(home)
    templates = Environment(
        loader=FileSystemLoader([HERE, report.FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = report.style() + Markup((HERE / "serve.css").read_text())

    def page(template: str, **values: object) -> HTMLResponse:
        text = templates.get_template(template).render(style=style, home=home, writable=writable, **values)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY, **FRESH})

    def overview(request: Request) -> Response:
        return page("overview.html.j2", **known.overview())

    def version(request: Request) -> Response:
        return page("version.html.j2", **_found(lambda: known.version(request.path_params["name"])))

    def samples(request: Request) -> Response:
        name, asked = request.path_params["name"], request.query_params
        return page("review.html.j2", **_found(lambda: reviewed.samples(name, asked)))

    def failures(request: Request) -> Response:
        name, asked = request.path_params["name"], request.query_params
        return page("failures.html.j2", **_found(lambda: reviewed.failures(name, asked)))

    def detections(request: Request) -> Response:
        return page("mined.html.j2", **_found(mined.configurations))

    def mined_samples(request: Request) -> Response:
        digest, asked = request.path_params["digest"], request.query_params
        return page("review.html.j2", **_found(lambda: mined.samples(digest, asked)))

    def marks(request: Request) -> Response:
        return page("marks.html.j2", **_found(reviewed.marks))

    async def mark(request: Request) -> Response:
        return await answer(request, home.marks, writable)

    def difference(request: Request) -> Response:
        asked = request.path_params
        return page("difference.html.j2", **_found(lambda: known.difference(asked["a"], asked["b"])))

    def version_card(request: Request) -> Response:
        text = _found(lambda: known.card(request.path_params["name"]))
        return Response(text, media_type="text/plain; charset=utf-8", headers=FRESH)

    def picture(request: Request) -> Response:
        asked = request.path_params
        name, image = _found(lambda: known.picture(asked["name"], asked["sample"], asked["picture"]))
        # A version never changes, but "latest" and the start of a name may refer to another one later.
        headers = FOREVER if asked["name"] == name else FRESH
        return Response(image, media_type="image/jpeg", headers=headers)

    def run_file(request: Request) -> Response:
        folder = _found(lambda: known.run(request.path_params["name"]))
        file = request.path_params["file"]
        if file == "curves.svg":
            return Response(_found(lambda: curves.draw(folder)), media_type="image/svg+xml", headers=FRESH)
        if file not in RUN_FILES or not folder.exists(file):
            raise HTTPException(404, f"run {folder.name} has no {file}")
        return FileResponse(folder.fetch(file) / file, media_type=RUN_FILES[file], headers=FRESH)

    def run(request: Request) -> Response:
        return page("run.html.j2", **_found(lambda: known.run_page(request.path_params["name"])))

    def comparison(request: Request) -> Response:
        asked = request.path_params
        return page("compare.html.j2", **_found(lambda: known.comparison(asked["a"], asked["b"])))

    def decision(request: Request) -> Response:
        return page("decision.html.j2", **_found(lambda: known.decision(request.path_params["number"])))

    def decision_file(request: Request) -> Response:
        number, file = request.path_params["number"], request.path_params["file"]
        if file == "report.html":
            return HTMLResponse(_found(lambda: known.report(number)), headers=FRESH)
        found = _found(lambda: known.decision(number))
        if file in ("metrics.json", "metrics.csv"):
            text = found["row"].metrics
            text = text if file == "metrics.json" else _found(lambda: csv_text(upgrade(json.loads(text))))
            return Response(text, media_type=RUN_FILES[file], headers=FRESH)
        if file == "answers.json" and found["run"]:
            return RedirectResponse(f"/runs/{found['run']}/{file}")
        raise HTTPException(404, f"decision {number} has no {file}")

    def champions_svg(request: Request) -> Response:
        return Response(known.champions(), media_type="image/svg+xml", headers=FRESH)

    def lineage_svg(request: Request) -> Response:
        rows, champion, _ = known.decisions()
        drawn = lineage.draw(rows, champion, known.flags(rows))
        return Response(drawn, media_type="image/svg+xml", headers=FRESH)

    return Starlette(
        routes=[
            Route("/", overview),
            Route("/versions/{name}", version),
            Route("/versions/{name}/README.md", version_card),
            Route("/versions/{name}/samples", samples),
            Route("/versions/{name}/failures", failures),
            Route("/versions/{a}/diff/{b}", difference),
            Route("/versions/{name}/samples/{sample:int}/{picture}.jpg", picture),
            Route("/runs/{name}", run),
            Route("/runs/{name}/{file}", run_file),
            Route("/runs/{a}/compare/{b}", comparison),
            Route("/decisions/{number:int}", decision),
            Route("/decisions/{number:int}/{file}", decision_file),
            Route("/detections", detections),
            Route("/detections/{digest}", mined_samples),
            Route("/marks", marks),
            Route("/marks", mark, methods=["POST"]),
            Route("/champions.svg", champions_svg),
            Route("/lineage.svg", lineage_svg),
        ],
        middleware=[Middleware(OwnHostsOnly, hosts=own_hosts() if hosts is None else frozenset(hosts))],
    )


def _found(look: Callable[[], T]) -> T:
    try:
        return look()
    except (KeyError, IndexError, FileNotFoundError, ValueError) as error:
        raise HTTPException(404, str(error)) from None
