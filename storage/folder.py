"""Folders of a home that programs open by path: the directory of a run, of a promoted model, of an evaluation.

A folder of a local home is that directory. A remote home holds its files as objects, under the same names; `path` is
then a working copy in this machine's cache (storage.local_cache), which `fetch` brings up to date from the home and
`send` uploads. Both copy only files that differ. The home is the truth: a lost working copy costs a download.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hyco.storage import faults
from hyco.storage.files import TEMPORARY
from hyco.storage.local_cache import cache_root
from hyco.storage.store import Store, file_mark


class Folder:
    """One folder, by its path or fsspec URL.

    Attributes:
        url: absolute path or URL.
        name: last part of it.
        store: the files of the folder where the home has them.
        path: directory of this machine with the files: the folder itself, or its working copy.
        guard: called before anything is written to a remote home; raises when this process may not (storage.lease).
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.store = Store(url)
        self.url = self.store.url.rstrip("/")
        self.name = self.url.rpartition("/")[2]
        self.path = Path(self.url) if self.local else cache_root() / "copies" / _plain(self.url)
        self.guard: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, where: "str | os.PathLike[str] | Folder") -> "Folder":
        """Return the folder itself, or that of a path or URL."""
        return where if isinstance(where, Folder) else cls(where)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine."""
        return self.store.local

    def exists(self, name: str) -> bool:
        """Say whether the home has a file, or a folder with files, of this name."""
        return self.store.exists(name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file as the home has it; FileNotFoundError if absent."""
        return self.store.read_bytes(name)

    def json(self, name: str) -> Any:
        """Return the content of a JSON file as the home has it, None without the file; ValueError for other bytes."""
        try:
            return json.loads(self.read(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, in the working copy too; a reader sees the old bytes or the new ones."""
        Store(self.path).replace(name, data)
        self.send(name)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file if the home has none of this name; False, changing nothing, when it has."""
        self.guard()
        return self.store.create(name, data) or (not self.local and self.store.read_bytes(name) == data)

    def fetch(self, *names: str) -> Path:
        """Bring files and folders of the working copy up to date and return its path; without names, all of them.

        What the home does not have is left alone, but in a folder that it has, other files are removed.
        """
        if self.local:
            return self.path
        there = self.store.marks()
        for name in names or ("",):
            wanted = {path: mark for path, mark in there.items() if _below(path, name)}
            for path, mark in wanted.items():
                if not self._same(path, mark):
                    self._download(path, mark)
            for path in _files(self.path, name) if wanted else ():
                if path not in wanted:
                    (self.path / path).unlink()
        return self.path

    def send(self, *names: str) -> None:
        """Upload files and folders of the working copy that the home has not or has otherwise, in the order given."""
        if self.local:
            return
        self.guard()
        there = self.store.marks()
        sent: dict[str, str] = {}
        for path in (path for name in names or ("",) for path in _files(self.path, name)):
            if path not in there or not self._same(path, there[path]):
                sent[path] = file_mark((self.path / path).stat())
                self.store.upload(self.path / path, path)
        there = self.store.marks() if sent else {}
        for path, before in sent.items():
            if path in there:
                self._note(path, there[path], before)

    def remove(self, name: str) -> None:
        """Remove a file or a folder of the home; the working copy keeps it."""
        self.guard()
        for path in sorted(path for path in self.store.marks() if _below(path, name)):
            self.store.delete(path)

    def _download(self, path: str, mark: str) -> None:
        final = self.path / path
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.parent / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with faults.local(draft), self.store.open(path) as source, draft.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)
        self._note(path, mark, file_mark(final.stat()))

    def _same(self, path: str, mark: str) -> bool:
        """Whether the file of the working copy is the one that the home has with this mark."""
        try:
            known = json.loads(self._mark_path(path).read_bytes())
            return known == [mark, file_mark((self.path / path).stat())]
        except (FileNotFoundError, ValueError):
            return False

    def _note(self, path: str, mark: str, local: str) -> None:
        at = self._mark_path(path)
        Store(at.parent).replace(at.name, json.dumps([mark, local]).encode())

    def _mark_path(self, path: str) -> Path:
        name = hashlib.sha256(str(self.path / path).encode()).hexdigest()
        return cache_root() / "marks" / name[:2] / name


def _plain(url: str) -> str:
    """A relative path for a URL; that of a folder lies below that of its parent."""
    protocol, _, place = url.partition("://")
    return "/".join(quote(part, safe="") for part in (protocol, *filter(None, place.split("/"))))


def _below(path: str, name: str) -> bool:
    return not name or path == name or path.startswith(f"{name}/")


def _files(root: Path, name: str) -> Iterator[str]:
    """The relative paths of the files of a working copy, sorted, without temporary files, links and hidden files."""
    start = root / name if name else root
    with contextlib.suppress(FileNotFoundError):
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            parts = path.relative_to(root).parts
            linked = any((root / "/".join(parts[:n])).is_symlink() for n in range(1, len(parts) + 1))
            if path.is_file() and not linked and not any(part.startswith(".") for part in parts):
                yield "/".join(parts)
