"""What a home directory holds, in lines for a person."""

import json
from collections.abc import Iterator
from pathlib import Path

from storage.manifest import Manifest
from storage.store import Store
from storage.versions import Versions


def report(home: str) -> Iterator[str]:
    """Yield one line for each mining, dataset version and run; FileNotFoundError when there is no such home."""
    store = Store(home)
    if store.local and not Path(home.removeprefix("file://")).is_dir():
        raise FileNotFoundError(f"{home} does not exist: name the home of an earlier command with --home")
    empty = True
    for folder in sorted({path.split("/")[1] for path in store.list("detections") if path.count("/") > 1}):
        records = Manifest(store, f"detections/{folder}/records").records().values()
        images, failed = (sum(record[name] for record in records) for name in ("images", "failed"))
        yield f"mined    {folder}  {len(records)} units, {images:,} images, {failed:,} failed"
        empty = False
    try:
        latest = Versions(store).load("latest").name
    except ValueError:
        latest = None
    for version in Versions(store).list():
        counts = version.counts
        size = f"{counts['images']:,} images, {counts['parts']:,} parts"
        mark = " (latest)" if version.name == latest else ""
        yield f"version  {version.name}  {size}, {version.created}{mark}"
        empty = False
    runs = Path(home.removeprefix("file://")) / "runs" if store.local else None
    for folder in sorted(runs.iterdir()) if runs and runs.is_dir() else []:
        if not (folder / "config.json").is_file():
            continue
        yield f"run      {folder.name}  {run_state(folder)}"
        empty = False
    fits = Path(home.removeprefix("file://")) / "fits" if store.local else None
    for folder in sorted(fits.iterdir()) if fits and fits.is_dir() else []:
        if not (folder / "config.json").is_file():
            continue
        yield f"fit      {folder.name}  {_fit_state(folder)}"
        empty = False
    if empty:
        yield f"{home} holds nothing yet: start with `hyco mine` or `hyco journey`"


def run_state(folder: Path) -> str:
    """How far a run has come, in words."""
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
    return "trained, not measured" if (folder / "train.json").is_file() else "training not finished"
