"""Remove what shows or indexes deleted images and can be made again: reports, evaluations, embeddings, caches."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.evaluation import answers
from storage.deletions import Tombstones
from storage.home import Home
from storage.layout import ASSESSED, CACHE, DAMAGED, EMBEDDINGS, REPORTS
from storage.sealed import read_table

_IMAGES = re.compile(r'<meta name="hyco-images" content="([a-z0-9_ ]*)">')


def erase_derived(home: Home, stones: Tombstones) -> list[str]:
    """Remove the files of a home that show or index a deleted image; return their paths, sorted.

    A report lists the images that it may show; one of an earlier Hyco does not and is removed. Files that were damaged
    and set aside cannot be searched and are removed. `hyco assess` and `hyco search` make theirs again.
    """
    gone = [path for path in home.store.list(DAMAGED) if home.store.delete(path)]
    if gone or home.deletions.hashes():
        for path in home.store.list(CACHE):
            home.store.delete(path)
    for path in home.store.list(REPORTS):
        if _shows(home.store.read_bytes(path), stones):
            home.deletions.erase(path, None, {}, ())
            gone += [path] if home.store.delete(path) else []
    if not home.local:
        return sorted(gone)
    for report in _reports(home):
        if _shows(report.read_bytes(), stones):
            kept = home.folder / ASSESSED in report.parents
            _remove(report.parent if kept else report)  # the champion is evaluated again
            gone.append(report.relative_to(home.folder).as_posix())
    for folder in home.run_folders():
        for path in sorted(folder.rglob(answers.FILE)):
            if _names(path, stones):
                path.unlink()
                gone.append(path.relative_to(home.folder).as_posix())
    for path in sorted((home.folder / EMBEDDINGS).rglob("*.parquet")):
        if _holds(path, stones):
            path.unlink()
            gone.append(path.relative_to(home.folder).as_posix())
    return sorted(gone)


def _reports(home: Home) -> Iterator[Path]:
    for folder in home.run_folders():
        yield from sorted(folder.rglob("report*.html"))
    yield from sorted((home.folder / ASSESSED).glob("*/report.html"))


def _shows(report: bytes, stones: Tombstones) -> bool:
    found = _IMAGES.search(report[:1_000_000].decode("utf-8", "replace"))
    return found is None or not stones.keys.isdisjoint(found[1].split())


def _holds(path: Path, stones: Tombstones) -> bool:
    try:
        return not stones.keys.isdisjoint(read_table(path.read_bytes())["key"].to_pylist())
    except (ValueError, KeyError):
        return True


def _names(path: Path, stones: Tombstones) -> bool:
    try:
        found = answers.read(path.parent)
    except ValueError:
        return True
    return found is not None and not stones.keys.isdisjoint(found.images)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
