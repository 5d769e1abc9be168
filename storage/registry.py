"""The registry of models: a log of promotions, refusals and rollbacks, and the models that were promoted.

HOME/registry/log/000000001.parquet ...   one row a file, numbered, created if absent and never changed
HOME/registry/models/<digest>/            a promoted model, named by its bytes

The champion is what the last promotion or rollback in the log names, so the one file that says so is the whole
promotion: a process killed at any instruction has either made that file or has not. Of two processes that append at
once one gets the number, and the other has to look at the log again before it may go on.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.files import atomic_directory, sha256_of
from storage.store import Store

LOG, MODELS = "registry/log", "registry/models"
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled_back"
_FILE = pa.struct([("name", pa.string()), ("sha256", pa.string()), ("size", pa.int64())])

SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # place in the log, from 1
        pa.field("kind", pa.string(), nullable=False),  # promoted, refused or rolled_back
        pa.field("time", pa.string(), nullable=False),  # UTC, ISO 8601
        pa.field("model", pa.string(), nullable=False),  # digest of the model's files
        pa.field("files", pa.list_(_FILE), nullable=False),
        pa.field("before", pa.string()),  # the champion it was held against, or that was rolled back
        pa.field("reason", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),  # version and configuration that were trained
        pa.field("source", pa.string(), nullable=False),  # lineage: where the captioned images came from,
        pa.field("detections", pa.string(), nullable=False),  # the folder of what mining found,
        pa.field("detectors", pa.list_(pa.string()), nullable=False),  # the digests of what looked,
        pa.field("version", pa.string(), nullable=False),  # the dataset version,
        pa.field("run", pa.string(), nullable=False),  # the directory of the run,
        pa.field("report", pa.string()),  # its report.html, a copy under registry/,
        pa.field("metrics", pa.string(), nullable=False),  # and its numbers: metrics.json
        pa.field("verdict", pa.string(), nullable=False),  # JSON: every comparison of the gate
        pa.field("commit", pa.string()),  # of this code
    ]
)


class MovedError(RuntimeError):
    """The log has grown since it was read: what was decided on it has to be decided again."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the log; see SCHEMA. `number` and `time` are given when it is appended."""

    kind: str
    model: str
    files: list[dict[str, Any]]
    reason: str
    before: str | None = None
    key: str = ""
    source: str = ""
    detections: str = ""
    detectors: list[str] = field(default_factory=list)
    version: str = ""
    run: str = ""
    report: str | None = None
    metrics: str = "{}"
    verdict: str = "{}"
    commit: str | None = None
    number: int = 0
    time: str = ""


class Registry:
    """The registry of one home, which must be on this machine: models are directories that training opens.

    Raises ValueError for a remote home.
    """

    def __init__(self, home: str | os.PathLike[str]) -> None:
        self.store = Store(home)
        if not self.store.local:
            raise ValueError(f"home {self.store.url} is remote: a registry of models needs a local home")

    def rows(self) -> list[Row]:
        """Return the whole log, oldest first; ValueError when a file of it is not a row."""
        return [self._read(path) for path in self.store.list(LOG) if path.endswith(".parquet")]

    def readable(self) -> tuple[list[Row], dict[str, str]]:
        """Return the rows that can be read, oldest first, and the reason for each path of the log that cannot."""
        rows, unreadable = [], {}
        for path in self.store.list(LOG):
            if path.endswith(".parquet"):
                try:
                    rows.append(self._read(path))
                except (ValueError, TypeError, OSError) as error:
                    unreadable[path] = " ".join(str(error).split())
        return rows, unreadable

    def table(self) -> pa.Table:
        """Return the log as a table."""
        return pa.Table.from_pylist([dataclasses.asdict(row) for row in self.rows()], schema=SCHEMA)

    def champion(self) -> Row | None:
        """Return the row that made the present champion, None before the first promotion."""
        return champion_of(self.rows())

    def append(self, row: Row, seen: int) -> Row:
        """Add a row behind the `seen` rows that it was decided on, and return it with its number and time.

        Raises MovedError, changing nothing, when the log has more rows than that.
        """
        dated = dataclasses.replace(
            row, number=seen + 1, time=datetime.now(UTC).isoformat(timespec="milliseconds")
        )
        buffer = io.BytesIO()
        table = pa.Table.from_pylist([dataclasses.asdict(dated)], schema=SCHEMA)
        pq.write_table(table, buffer, compression="zstd")
        if not self.store.create(f"{LOG}/{seen + 1:09d}.parquet", buffer.getvalue()):
            raise MovedError(f"the registry {self.store.url} has grown since it was read: look again")
        return dated

    def keep(self, folder: str | os.PathLike[str]) -> tuple[str, list[dict[str, Any]]]:
        """Copy a model's directory into the registry, whole or not at all; return (digest, files)."""
        files = fingerprint(folder)
        final = self.path(digest_of(files))
        if not final.is_dir():
            with contextlib.suppress(FileExistsError):  # another process was faster with the same bytes
                with atomic_directory(final) as draft:
                    for file in files:
                        shutil.copyfile(Path(folder) / file["name"], draft / file["name"])
        if problem := self.problem(digest_of(files), files):
            raise ValueError(problem)
        return digest_of(files), files

    def path(self, model: str) -> Path:
        """Return the directory of a promoted model."""
        return Path(self.store.path(f"{MODELS}/{model}"))

    def problem(self, model: str, files: list[dict[str, Any]]) -> str | None:
        """Say what is wrong with the bytes of a promoted model, None when each has the sha256 it was promoted with."""
        folder = self.path(model)
        if not folder.is_dir():
            return f"{folder} is missing: the model cannot be restored"
        there = fingerprint(folder)
        if there != sorted(files, key=lambda file: file["name"]):
            changed = [file["name"] for file in there if file not in files] or ["a file"]
            return f"{folder}: {', '.join(changed)} is not what was promoted"
        return None

    def _read(self, path: str) -> Row:
        try:
            (found,) = pq.read_table(io.BytesIO(self.store.read_bytes(path)), schema=SCHEMA).to_pylist()
        except (pa.ArrowInvalid, ValueError) as error:
            raise ValueError(f"{self.store.url}/{path} is not a row of the registry: {error}") from None
        return Row(**found)


def champion_of(rows: list[Row]) -> Row | None:
    """Return the last promotion or rollback of a log, None without any."""
    return next((row for row in reversed(rows) if row.kind != REFUSED), None)


def fingerprint(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return name, sha256 and size of every file of a model's directory, by name.

    Raises FileNotFoundError without a directory, ValueError when it holds no model.safetensors or folders.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: name the directory of a trained model")
    names = sorted(path.name for path in folder.iterdir())
    if "model.safetensors" not in names or any((folder / name).is_dir() for name in names):
        raise ValueError(f"{folder} is not a model: it must hold model.safetensors and files beside it")
    return [
        {"name": name, "sha256": sha256_of(folder / name), "size": (folder / name).stat().st_size}
        for name in names
    ]


def digest_of(files: list[dict[str, Any]]) -> str:
    """Return the 16 hex digits that name a model: the start of the sha256 over its files' names and hashes."""
    text = "\n".join(f"{file['name']} {file['sha256']}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
