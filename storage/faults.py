"""Storage faults as one line that names the store or the file, and retries of transient faults."""

import contextlib
import errno
import io
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TRIES = 8
# With these codes an object store asks for a retry; fsspec's filesystems retry only some of them.
# ConditionalRequestConflict: two conditional puts of one name collided, and it is unknown which one won.
_PASSING = frozenset(
    {
        *(
            "ConditionalRequestConflict",
            "OperationAborted",
            "InternalError",
            "ServiceUnavailable",
            "SlowDown",
        ),
        *("RequestTimeout", "409", "429", "500", "502", "503", "504"),
    }
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def remote(url: str, path: str, call: Callable[[], T]) -> T:
    """Return `call()`, tried up to TRIES times while the store asks for a retry.

    Args:
        url: of the store, for the message.
        path: of the file inside the store, for the message.
        call: one operation of an fsspec filesystem that may be repeated.

    Raises:
        FileNotFoundError, FileExistsError: from `call`, as they are. A failed precondition is a FileExistsError.
        PermissionError: no credentials, or credentials that the store refuses.
        ConnectionError: no server, or a transient fault that persisted; try again later.
        OSError: any other fault. The message of each is one line that begins with the store's URL.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            code = _code(error)
            if code in ("PreconditionFailed", "412") or "precondition" in str(error).lower():
                raise FileExistsError(f"store {url}: {path} exists") from None
            if code in _PASSING and attempt < TRIES:
                time.sleep(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, 5.0))
                continue
            if not isinstance(error, OSError) and type(error).__module__ == "builtins":
                raise  # no fault of storage
            raise _named(error, code, url, path) from error
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def local(path: str | os.PathLike[str], need: Callable[[], int] | None = None) -> Iterator[None]:
    """Add the file's name to every OSError of the block; for a full disk, also the space that is needed.

    Args:
        path: the file that is read or written.
        need: minimum size of the file in bytes, called when the disk is full.
    """
    try:
        yield
    except OSError as error:
        name = os.fspath(path)
        if error.errno in _NO_SPACE:
            raise OSError(error.errno, _full(error, name, need)) from error
        if error.filename is None and error.errno is not None and name not in str(error):
            raise OSError(error.errno, error.strerror, name) from error
        raise


class Reader(io.RawIOBase):
    """A file of a remote store, for reading; each read is tried as `remote` does.

    Args:
        file: of fsspec; a failed read must not move its position.
    """

    def __init__(self, url: str, path: str, file: Any) -> None:
        self._url, self._path, self._file = url, path, file

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Read into the buffer and return the number of bytes; 0 at the end of the file."""
        data = remote(self._url, self._path, lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()


def _full(error: OSError, name: str, need: Callable[[], int] | None) -> str:
    folder = name if Path(name).is_dir() else str(Path(name).parent)
    text = f"{error.strerror}: {name}"
    with contextlib.suppress(OSError):  # the file and its folder may not exist yet
        if need:
            text += f" needs at least {need():,} bytes"
        text += f", {shutil.disk_usage(folder).free:,} bytes are free"
    return f"{text}: make room in {folder}"


def _code(error: BaseException) -> str:
    """The store's own error code ("SlowDown", "503"); "" where it gave none."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore
            return str(response.get("Error", {}).get("Code", ""))
        for name in ("error_code", "code", "status"):  # azure, gcsfs, aiohttp
            if isinstance(found := getattr(one, name, None), (str, int)):
                return str(found)
    return ""


def _named(error: Exception, code: str, url: str, path: str) -> OSError:
    kind = type(error).__name__
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(told.split()) or kind
    if "Credential" in kind or kind in ("ProfileNotFound", "TokenRetrievalError", "DefaultCredentialsError"):
        return PermissionError(
            f"store {url}: no credentials ({text}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or the credentials of this kind of store"
        )
    if isinstance(error, PermissionError):
        shown = f"{code}: {text}" if code else text
        return PermissionError(
            f"store {url}: access to {path or 'it'} refused ({shown}): check the credentials and their permissions"
        )
    if code in _PASSING:
        return ConnectionError(
            f"store {url}: {path}: {code} at each of {TRIES} tries ({text}): try again later"
        )
    if not isinstance(error, OSError) or isinstance(error, (ConnectionError, TimeoutError)):
        return ConnectionError(
            f"store {url}: no answer for {path or 'it'} ({text}): check that the server runs, its address "
            "(AWS_ENDPOINT_URL for an S3 server of your own) and the network"
        )
    return OSError(f"store {url}: {path}: {text}")
