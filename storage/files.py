"""Two things that local files are asked for: that a directory's entries are durable, and what a file hashes to."""

import hashlib
import os
from pathlib import Path
from typing import Any, cast


def fsync_directory(folder: Path) -> None:
    """Make the names in a directory durable: a rename is not, until its directory is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
