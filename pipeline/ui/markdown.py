"""Markdown for the Prefect UI: bars, and escaped texts from data."""

import os
import re
from typing import Any

import numpy as np

from hyco.pipeline.runtime.markdown import table
from hyco.storage.home import Home

SERVE_URL = "http://127.0.0.1:8300"
LONGEST = 120
BAR = 24  # characters of the longest bar


def serve_url() -> str:
    """Address of `hyco serve` as the reader's browser sees it, without a slash at its end."""
    return os.environ.get("HYCO_SERVE_URL", SERVE_URL).rstrip("/")


def bars(histogram: np.ndarray) -> list[str]:
    """A histogram of equal bins of [0, 1] as a table with bars, without the empty bins at its ends."""
    full = np.flatnonzero(histogram)
    top = histogram.max()
    body = (
        (f"{n / len(histogram):.2f} to {(n + 1) / len(histogram):.2f}", f"{int(histogram[n]):,}",
         "█" * round(BAR * histogram[n] / top))
        for n in range(full[0], full[-1] + 1)
    )  # fmt: skip
    return table(("score", "boxes", ""), body)


def number(value: Any) -> str:
    """A number in four digits, anything else as plain text."""
    return f"{value:,.4g}" if isinstance(value, float) else plain(value)


def plain(value: Any, longest: int = LONGEST) -> str:
    """Text from data as one line, cut to `longest` characters and escaped for Markdown and HTML."""
    text = " ".join(str(value).split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return re.sub(
        r"([\\`*_\[\]!|~])",
        r"\\\1",
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    )


def served(home: Home) -> list[str]:
    """The line that names the server of the pictures."""
    return [
        "",
        f"Pictures and pages come from `hyco serve --home {home}` ({serve_url()}, set by HYCO_SERVE_URL).",
    ]
