"""Remove what shows or indexes deleted images and can be made again: reports, evaluations, embeddings, caches."""

import re
import shutil
from collections.abc import Iterator

from hyco.pipeline.evaluation import answers
from hyco.storage.deletions import Tombstones
from hyco.storage.folder import Folder
from hyco.storage.home import Home
from hyco.storage.layout import ASSESSED, CACHE, DAMAGED, EMBEDDINGS, REPORTS, RUNS
from hyco.storage.sealed import read_table

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
    for path in _reports(home):
        if _shows(home.store.read_bytes(path), stones):
            _remove(home, path.rpartition("/")[0] if path.startswith(f"{ASSESSED}/") else path)
            gone.append(path)
    for path in home.store.list(RUNS):
        if path.endswith(f"/{answers.FILE}") and _names(home.store.read_bytes(path), stones):
            _remove(home, path)
            gone.append(path)
    for path in home.store.list(EMBEDDINGS):
        if path.endswith(".parquet") and _holds(home.store.read_bytes(path), stones):
            _remove(home, path)
            gone.append(path)
    return sorted(gone)


def _reports(home: Home) -> Iterator[str]:
    for run in home.run_folders():
        found = ((name.rpartition("/")[2], f"{RUNS}/{run.name}/{name}") for name in run.store.list())
        yield from (path for name, path in found if name.startswith("report") and name.endswith(".html"))
    yield from (path for path in home.store.list(ASSESSED) if path.endswith("/report.html"))


def _shows(report: bytes, stones: Tombstones) -> bool:
    found = _IMAGES.search(report[:1_000_000].decode("utf-8", "replace"))
    return found is None or not stones.keys.isdisjoint(found[1].split())


def _holds(table: bytes, stones: Tombstones) -> bool:
    try:
        return not stones.keys.isdisjoint(read_table(table)["key"].to_pylist())
    except (ValueError, KeyError):
        return True


def _names(told: bytes, stones: Tombstones) -> bool:
    try:
        return not stones.keys.isdisjoint(answers.parse(told).images)
    except ValueError:
        return True


def _remove(home: Home, path: str) -> None:
    """Remove a file, or a folder of evaluation results: the champion is evaluated again."""
    folder = Folder(f"{home.store.url}/{path}")
    for name in sorted(home.store.list(path), reverse=True) or [path]:
        home.store.delete(name)
    if folder.path.is_dir():  # of a remote home, this machine's copy; of a local one, what is left: links
        shutil.rmtree(folder.path)
    else:
        folder.path.unlink(missing_ok=True)
