"""The content of a home as text, one line per item."""

import json
from collections.abc import Iterator
from pathlib import Path

from storage.home import Home


def report(home: Home) -> Iterator[str]:
    """Yield one line for each mining, dataset version and run; FileNotFoundError when there is no such home."""
    home.require()
    empty = True
    for mined in home.all_detections():
        records = mined.records().values()
        images, failed = (sum(record[name] for record in records) for name in ("images", "failed"))
        yield f"mined    {mined.folder.rpartition('/')[2]}  {len(records)} units, {images:,} images, {failed:,} failed"
        empty = False
    latest = home.latest_version()
    for version in home.versions.list():
        counts = version.counts
        size = f"{counts['images']:,} images, {counts['parts']:,} parts"
        mark = " (latest)" if latest and version.name == latest.name else ""
        yield f"version  {version.name}  {size}, {version.created}{mark}"
        empty = False
    for folder in home.run_folders():
        yield f"run      {folder.name}  {run_state(folder)}"
        empty = False
    for folder in home.fit_folders():
        yield f"fit      {folder.name}  {_fit_state(folder)}"
        empty = False
    if empty:
        yield f"{home} is empty: start with `hyco mine` or `hyco journey`"


def run_state(folder: Path) -> str:
    """The state of a run in words."""
    if (folder / "metrics.json").is_file():
        return f"assessed, report in {folder / 'report.html'}"
    if (folder / "train.json").is_file():
        try:
            found = json.loads((folder / "train.json").read_text())
            return f"trained, loss {found['loss_first']:.3f} to {found['loss_last']:.3f}, not assessed"
        except (ValueError, KeyError, TypeError) as error:
            return f"unreadable train.json ({error!r}): train the run again"
    return "training not finished"


def _fit_state(folder: Path) -> str:
    if (folder / "metrics.json").is_file():
        try:
            found = json.loads((folder / "metrics.json").read_text())["classification"]
            return f"trained, accuracy {found['accuracy']:.1%} on {found['images']:,} test images"
        except (ValueError, KeyError, TypeError) as error:
            return f"unreadable metrics.json ({error!r}): evaluate it again"
    return "trained, not evaluated" if (folder / "train.json").is_file() else "training not finished"
