"""report.html: one file that opens offline, with its style, script and pictures inside.

Everything that came from data is escaped by the template; besides, the page's content security policy allows
no script but its own (by hash) and no resource but inline pictures.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.report.charts import share
from pipeline.evaluation.report.page import page
from pipeline.evaluation.report.panels import Exhibits
from storage.store import Store

FOLDER = Path(__file__).parent


def style() -> Markup:
    """The style of a page: palette and charts, then everything else."""
    return Markup(chart_style() + (FOLDER / "report.css").read_text(encoding="utf-8"))


def chart_style() -> Markup:
    """Palette and charts alone, for a chart that stands outside a page."""
    return Markup((FOLDER / "charts.css").read_text(encoding="utf-8"))


def render(metrics: dict[str, Any], exhibits: Exhibits) -> str:
    """The page as text: `metrics` is what metrics.json holds."""
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
    """Render to a file; it is there whole or not at all."""
    Store(path.parent).replace(path.name, render(metrics, exhibits).encode())
