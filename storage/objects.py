"""Objects are verified when read: a file that a record names is opened only when its sha256 is unchanged."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from hyco.storage.layout import OBJECTS, REPORTS
from hyco.storage.store import Store

OBJECT = re.compile(rf"(?:.+/)?{OBJECTS}/([0-9a-f]{{64}})\.\w+|{REPORTS}/([0-9a-f]{{64}})\.html")
_BLOCK = 1 << 20


class DamagedError(ValueError):
    """A file of the home is missing or damaged; `path` is its path in the home, `what` the fault."""

    def __init__(self, path: str, what: str, url: str = "", remedy: str = "") -> None:
        home = f" --home {url}" if url else ""
        repair = (
            f"run `hyco verify --repair{home}`, then the commands that made it: they redo the missing units"
        )
        super().__init__(f"{path}: {what}: {remedy or repair}")
        self.path, self.what = path, what
        self._rest = url, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments, so that a worker can send it."""
        return DamagedError, (self.path, self.what, *self._rest)


def objects_in(value: Any) -> set[str]:
    """Return the paths of all objects that a record names, anywhere in its JSON."""
    if isinstance(value, str):
        return {value} if OBJECT.fullmatch(value) else set()
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(objects_in, value)) if isinstance(value, list) else set()


@contextlib.contextmanager
def open_object(store: Store, path: str, sha256: str = "") -> Iterator[BinaryIO]:
    """Yield an object as a seekable binary file, after its bytes were compared with its hash.

    Args:
        store: where it is.
        path: of the object, as a record names it.
        sha256: of its bytes, when the record holds it; an object's own name always holds it.

    Raises:
        DamagedError: missing or changed.
    """
    wanted = sha256 or name_sha256(path)
    try:
        file = store.open(path)
    except (FileNotFoundError, IsADirectoryError):
        raise DamagedError(path, "is missing", store.url) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        seekable = file
        if not store.local:  # a remote file is fetched once
            seekable = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
        hasher = hashlib.sha256()
        while block := file.read(_BLOCK):
            hasher.update(block)
            if seekable is not file:
                seekable.write(block)
        check_sha256(path, hasher.hexdigest(), wanted, store.url)
        seekable.seek(0)
        yield seekable


def read_object(store: Store, path: str, sha256: str = "") -> bytes:
    """Return the bytes of an object; DamagedError when it is missing or has changed."""
    with open_object(store, path, sha256) as file:
        return file.read()


def check_sha256(path: str, found: str, wanted: str, url: str = "") -> None:
    """Raise DamagedError when a file has another sha256 than expected."""
    if found != wanted:
        raise DamagedError(path, f"its sha256 is {found[:12]}, its record says {wanted[:12]}", url)


def name_sha256(path: str) -> str:
    """Return the sha256 in an object's name; ValueError when the path is not that of an object."""
    match = OBJECT.fullmatch(path)
    if match is None:
        raise ValueError(f"{path!r} is not the path of an object: a record that names it is damaged")
    return match[1] or match[2]
