"""Local files: folders that are written atomically, durable names, and hashes."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and folders; storage/gc.py deletes old ones."""


@contextlib.contextmanager
def atomic_directory(final: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a new empty folder that is renamed to `final`, complete and durable, when the block ends.

    Every file and folder in it is fsynced before the rename and the parent after it: whatever is written to disk
    later, such as a record that the folder is there, never outlives the folder's bytes in a power cut. If the block
    raises, nothing is left behind; a killed process leaves a `.tmp-` folder.

    Args:
        final: path of the folder. An existing empty folder is replaced.
        replace: replace an existing folder by the new one.

    Raises:
        FileExistsError: `final` exists and holds files when the block ends, and `replace` is false.
    """
    draft = _unused(final)
    draft.mkdir(parents=True)
    try:
        yield draft
        _fsync_tree(draft)
        aside = _unused(final)
        if replace:
            with contextlib.suppress(FileNotFoundError):
                final.rename(aside)
        try:
            draft.rename(final)
        except OSError as error:
            if final.is_dir():
                raise FileExistsError(f"{final} already exists") from error
            raise
        fsync_directory(final.parent)
        _remove(aside)
    except BaseException:
        _remove(draft)
        raise


def fsync_directory(folder: Path) -> None:
    """Make the names in a directory durable: a rename is durable only after its directory was fsynced."""
    _fsync(folder)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def _unused(final: Path) -> Path:
    return final.parent / f"{TEMPORARY}{final.name}-{os.getpid()}-{uuid.uuid4().hex}"


def _fsync_tree(folder: Path) -> None:
    """Fsync the files below a folder and the folders themselves, the innermost first."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            _fsync(Path(path) / name)
        _fsync(Path(path))


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Delete a folder or a file, which may be absent; a failed deletion is left to garbage collection."""
    with contextlib.suppress(OSError):
        path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
