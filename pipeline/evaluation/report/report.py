"""report.html: one file that opens offline, with embedded style, script and pictures.

The template escapes all text from data; in addition, the page's content security policy allows only its own script (by
hash) and inline pictures.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hyco.pipeline.evaluation.report.charts import share
from hyco.pipeline.evaluation.report.page import page
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.storage.store import Store

FOLDER = Path(__file__).parent


def style() -> Markup:
    """The style of a page: palette and charts, then the rest."""
    return Markup(chart_style() + (FOLDER / "report.css").read_text(encoding="utf-8"))


def chart_style() -> Markup:
    """Only palette and charts, for a chart outside a page."""
    return Markup((FOLDER / "charts.css").read_text(encoding="utf-8"))


def render(metrics: dict[str, Any], exhibits: Exhibits) -> str:
    """The page as text; `metrics` is the content of metrics.json."""
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["share"] = share
    return environment.get_template("report.html.j2").render(
        page=page(metrics, exhibits),
        style=style(),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write(path: Path, metrics: dict[str, Any], exhibits: Exhibits) -> None:
    """Render to a file, atomically."""
    Store(path.parent).replace(path.name, render(metrics, exhibits).encode())
