"""The files of a data set, in a folder or still in its tar: found by a marker, listed, read without extraction."""

import tarfile
import tempfile
import threading
import zlib
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
_MEMORY = 256 << 20  # an unpacked archive up to this size stays in memory


class Files(Protocol):
    """The interface of a data set's location for adapters. Names are relative, with "/"."""

    where: str

    def anchor(self, *markers: str) -> str:
        """The prefix ("" or "a/b/") of the first marker that exists; FileNotFoundError without one."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file or folder of this name exists."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below a prefix, sorted."""
        ...

    def below(self, prefix: str) -> list[str]:
        """Full names of all files below a prefix, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError."""
        ...


class FolderFiles:
    """Files of a directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def anchor(self, *markers: str) -> str:
        """At most two folders deep, so that the search does not list a million images."""
        for marker in markers:
            for level in ("", "*/", "*/*/"):
                for found in sorted(self.root.glob(level + marker)):
                    return found.relative_to(self.root).as_posix().removesuffix(marker.rstrip("/"))
        raise missing(self.where, markers)

    def has(self, name: str) -> bool:
        """See Files."""
        return (self.root / name).exists()

    def folders(self, prefix: str) -> list[str]:
        """See Files."""
        base = self.root / prefix
        if not base.is_dir():
            return []
        return sorted(entry.name for entry in base.iterdir() if entry.is_dir() and entry.name[0] != ".")

    def below(self, prefix: str) -> list[str]:
        """See Files."""
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """See Files."""
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        return path.read_bytes()


class TarFiles:
    """Members of a tar; a compressed one is unpacked once into memory, or a temporary file where it is large."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._file, self._places = _index(path)
        self._lock = threading.Lock()  # readers share one file position

    @cached_property
    def _names(self) -> list[str]:
        return sorted(self._places)

    def anchor(self, *markers: str) -> str:
        """See Files."""
        for marker in markers:
            bare = marker.rstrip("/")
            ends = {name[: at + 1] for name in self._names for at in _slashes(name)} | set(self._names)
            found = [
                name.rstrip("/").removesuffix(bare)
                for name in ends
                if name.rstrip("/") == bare or name.rstrip("/").endswith("/" + bare)
            ]
            if found:
                return min(found, key=lambda prefix: (prefix.count("/"), prefix))
        raise missing(self.where, markers)

    def has(self, name: str) -> bool:
        """See Files."""
        folder = name.rstrip("/") + "/"
        return name in self._places or any(other.startswith(folder) for other in self._names)

    def folders(self, prefix: str) -> list[str]:
        """See Files."""
        inside = (name[len(prefix) :] for name in self._names if name.startswith(prefix))
        return sorted({rest.partition("/")[0] for rest in inside if "/" in rest})

    def below(self, prefix: str) -> list[str]:
        """See Files."""
        return [name for name in self._names if name.startswith(prefix)]

    def read(self, name: str) -> bytes:
        """See Files."""
        if name not in self._places:
            raise FileNotFoundError(f"{self.path} has no member {name}")
        offset, size = self._places[name]
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


def open_places(root: Path) -> list[Files]:
    """The locations to search for a set: the folder, then the archives directly in it; or one archive."""
    if root.is_file():
        if not root.name.endswith(ARCHIVES):
            raise ValueError(
                f"{root} is neither a folder nor a tar: give a folder or a {', '.join(ARCHIVES)}"
            )
        return [TarFiles(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist: give the folder of the data set")
    return [FolderFiles(root)]


def archives(root: Path) -> list[Path]:
    """Tars directly in a folder, sorted."""
    return sorted(path for path in root.iterdir() if path.name.endswith(ARCHIVES)) if root.is_dir() else []


def missing(where: str, markers: tuple[str, ...]) -> FileNotFoundError:
    """The error for a location without any of the markers."""
    return FileNotFoundError(f"{where} has no {' or '.join(markers)}")


def _slashes(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "/"]


def _index(path: Path) -> tuple[IO[bytes], dict[str, tuple[int, int]]]:
    plain: IO[bytes] = path.open("rb")
    try:
        if path.suffix in (".gz", ".tgz"):
            import gzip
            import shutil

            spooled = tempfile.SpooledTemporaryFile(_MEMORY)  # noqa: SIM115  (lives as long as the set)
            with plain, gzip.open(plain) as unpacked:
                shutil.copyfileobj(unpacked, spooled, 1 << 20)
            spooled.seek(0)
            plain = spooled  # pyright: ignore[reportAssignmentType]
        with tarfile.open(fileobj=plain, mode="r:") as tar:
            members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isfile()}
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a complete tar ({error}): fetch it again") from error
    return plain, members
