"""Images that a row names by a file name: read below the store's root only, and only where they are regular files."""

import stat
from pathlib import Path

from hyco.pipeline.sources.records import Limits, RecordError
from hyco.storage.sample import short
from hyco.storage.store import Store

FILES = (
    *("file", "image", "file_name", "filename", "path"),
    *("image_name", "image_path", "filepath", "file_path", "img"),
)
"""Columns of tables and fields of json and jsonl that name an image's file, in this order."""


def image_file(store: Store, path: str, name: str, limits: Limits) -> bytes:
    """Return the bytes of the image `name` that the file `path` names; RecordError when it cannot be read."""
    try:
        place = beside(path, name)
        if store.local and not stat.S_ISREG(Path(store.path(place)).stat().st_mode):
            raise OSError("not a regular file")  # reading a pipe or a device may never end
        if (size := store.size(place)) > limits.max_bytes:
            text = f"{short(name)} has {size} bytes: more than {limits.max_bytes} (limits.max_bytes)"
            raise RecordError("too_many_bytes", text)
        return store.read_bytes(place)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        text = f"{short(name)} named in {path} cannot be read: {short(str(error))}"
        raise RecordError("no_image", text) from None


def beside(path: str, name: str) -> str:
    """Return the path in the store of a name that the file `path` gives."""
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name.removeprefix("./")
