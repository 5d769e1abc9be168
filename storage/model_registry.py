"""The registry of models: a log of promotions, refusals and rollbacks, and the models that were promoted.

HOME/registry/log/000000001.parquet ...   one row per file, numbered, created if absent and never changed
HOME/registry/models/<digest>/            a promoted model, named by its bytes; in a remote home, objects

The champion is the model that the last promotion or rollback in the log names, so creating that one file is the entire
promotion: a process killed at any instruction has either created the file or not. When two processes append at once,
one gets the number, and the other has to read the log again before it continues.

A row holds a checksum of itself (storage.sealed) and the sha256 of the row before it. So a row that an earlier Hyco
wrote without a checksum is proven as soon as another row follows it.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from hyco.storage.files import atomic_directory, sha256_of
from hyco.storage.folder import Folder
from hyco.storage.layout import ASSESSED, LOG, MODEL_RUNS, MODELS, REPORTS, log_path
from hyco.storage.objects import DamagedError
from hyco.storage.sealed import is_sealed_table, read_table, seal, seal_table, unseal
from hyco.storage.store import Store

PROOF = "proof.json"  # in a folder of evaluation results: the sha256 of its files
PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled_back"
LOST = "lost"  # the key of a row that replaces a damaged one
_REMEDY = (
    "Run `hyco verify --repair`, then `hyco promote` with the run it came from; or roll back to another model"
)
_FILE = pa.struct([("name", pa.string()), ("sha256", pa.string()), ("size", pa.int64())])

SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # position in the log, from 1
        pa.field("kind", pa.string(), nullable=False),  # promoted, refused or rolled_back
        pa.field("time", pa.string(), nullable=False),  # UTC, ISO 8601
        pa.field("model", pa.string(), nullable=False),  # digest of the model's files
        pa.field("files", pa.list_(_FILE), nullable=False),
        pa.field("before", pa.string()),  # the champion it was compared with, or that was rolled back
        pa.field("reason", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),  # version and configuration that were trained
        pa.field("source", pa.string(), nullable=False),  # lineage: the source of the captioned images,
        pa.field("detections", pa.string(), nullable=False),  # the folder of the mining results,
        pa.field("detectors", pa.list_(pa.string()), nullable=False),  # the digests of the detectors,
        pa.field("version", pa.string(), nullable=False),  # the dataset version,
        pa.field("run", pa.string(), nullable=False),  # the directory of the run,
        pa.field("report", pa.string()),  # its report.html, a copy under registry/,
        pa.field("metrics", pa.string(), nullable=False),  # and its numbers: metrics.json
        pa.field("verdict", pa.string(), nullable=False),  # JSON: every comparison of the gate
        pa.field("commit", pa.string()),  # of this code
        pa.field("kept", pa.list_(_FILE)),  # the files of the run that were stored with the model
        pa.field("previous", pa.string()),  # sha256 of the file of the row before, "" in the first
    ]
)


class MovedError(RuntimeError):
    """The log has grown since it was read: decide again on the new log."""


@dataclass(frozen=True, slots=True)
class Decision:
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
    kept: list[dict[str, Any]] | None = None
    previous: str | None = None


class Registry:
    """The registry of one home."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def rows(self) -> list[Decision]:
        """Return the whole log, oldest first; DamagedError when a row is missing or damaged."""
        rows = self.log()
        for row in rows:
            if isinstance(row, DamagedError):
                raise row
        return [row for row in rows if isinstance(row, Decision)]

    def log(self) -> list[Decision | DamagedError]:
        """Return the whole log, oldest first; in place of a damaged row, the error."""
        names = [path for path in self.store.list(LOG) if path.endswith(".parquet")]
        last = max((int(path[-17:-8]) for path in names if path[-17:-8].isdigit()), default=0)
        rows: list[Decision | DamagedError] = []
        before = ""  # the sha256 of the file of the row before
        for number in range(1, last + 1):
            row, sha256 = self._read(number)
            if isinstance(row, Decision) and rows and _breaks_chain(rows[-1], before, row):
                rows[-1] = self._damaged(number - 1, f"is not the row that row {number} follows by its hash")
            rows.append(row)
            before = sha256
        return rows

    def readable(self) -> tuple[list[Decision], dict[str, str]]:
        """Return the rows that can be read, oldest first, and the reason for each path of the log that cannot."""
        rows: list[Decision] = []
        unreadable: dict[str, str] = {}
        for row in self.log():
            if isinstance(row, Decision):
                rows.append(row)
            else:
                unreadable[row.path] = " ".join(str(row).split())
        return rows, unreadable

    def table(self) -> pa.Table:
        """Return the log as a table."""
        return pa.Table.from_pylist([dataclasses.asdict(row) for row in self.rows()], schema=SCHEMA)

    def champion(self) -> Decision | None:
        """Return the row that made the present champion, None before the first promotion."""
        return champion_of(self.rows())

    def append(self, row: Decision, seen: int) -> Decision:
        """Append a row to the `seen` rows that the decision was based on; return it with its number and time.

        Raises MovedError, changing nothing, when the log has more rows than that.
        """
        previous = self.store.sha256(log_path(seen)) if seen else ""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        dated = dataclasses.replace(row, number=seen + 1, time=now, previous=previous)
        data = _bytes(dated)
        # After an error a remote store may say that the row exists although this process created it.
        if not self.store.create(log_path(seen + 1), data) and (
            self.store.local or self.store.read_bytes(log_path(seen + 1)) != data
        ):
            raise MovedError(f"the registry {self.store.url} has grown since it was read: read it again")
        return dated

    def stand_in(self, number: int, reason: str) -> None:
        """Write a row without a decision in place of one that is missing or was moved to damaged/."""
        lost = Decision(REFUSED, "", [], reason, key=LOST, number=number, time=datetime.now(UTC).isoformat())
        previous = log_path(number - 1)
        there = self.store.sha256(previous) if number > 1 and self.store.exists(previous) else ""
        self.store.create(log_path(number), _bytes(dataclasses.replace(lost, previous=there)))

    def keep(self, folder: str | os.PathLike[str]) -> tuple[str, list[dict[str, Any]]]:
        """Copy a model's directory into the registry, completely before a row can name it; return (digest, files)."""
        files = fingerprint(folder)
        final = self.model(digest_of(files))
        if not final.local:
            final.fetch()  # a killed promotion may have uploaded some of the files
            final.path.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (kept := final.path / file["name"]).is_file() or file_entry(kept) != file:
                    Store(final.path).replace(file["name"], (Path(folder) / file["name"]).read_bytes())
            final.send()
        elif not final.path.is_dir():
            with contextlib.suppress(FileExistsError):  # another process was faster with the same bytes
                with atomic_directory(final.path) as draft:
                    for file in files:
                        shutil.copyfile(Path(folder) / file["name"], draft / file["name"])
        if problem := self.problem(digest_of(files), files):
            raise ValueError(problem)
        return digest_of(files), files

    def model(self, model: str) -> Folder:
        """Return the folder of a promoted model."""
        return Folder(f"{self.store.url}/{MODELS}/{model}")

    def path(self, model: str) -> Path:
        """Return the directory of this machine with a promoted model; that of a remote home is fetched."""
        return self.model(model).fetch()

    def run(self, model: str) -> Folder:
        """Return the folder of the stored files of a promoted model's run."""
        return Folder(f"{self.store.url}/{MODEL_RUNS}/{model}")

    def assessment(self, name: str) -> Folder:
        """Return the folder of a champion's evaluation results; `name` tells the evaluation and the model."""
        return Folder(f"{self.store.url}/{ASSESSED}/{name}")

    def keep_report(self, path: Path) -> str:
        """Copy a run's report into the registry under its content's name; return its path in the home."""
        return self.store.commit(REPORTS, ".html", lambda file: file.write(path.read_bytes())).path

    def problem(self, model: str, files: list[dict[str, Any]]) -> str | None:
        """Return the fault of a promoted model's files, None when each has the sha256 it was promoted with."""
        folder = self.model(model)
        if not folder.exists(""):
            return f"{folder} is missing: the model cannot be restored. {_REMEDY}"
        there = fingerprint(folder.fetch())
        if there != sorted(files, key=lambda file: file["name"]):
            changed = [file["name"] for file in there if file not in files] or ["a file"]
            return f"{folder}: {', '.join(changed)} changed since the promotion. {_REMEDY}"
        return None

    def _read(self, number: int) -> tuple[Decision | DamagedError, str]:
        """The row of this number, or its fault, and the sha256 of its file."""
        try:
            data = self.store.read_bytes(log_path(number))
        except FileNotFoundError:
            return self._damaged(number, "is missing, and rows follow it"), ""
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            proven = is_sealed_table(data)
            found = read_table(data).to_pylist()
            row = Decision(**found[0])
            if len(found) != 1 or row.number != number or (row.previous is not None and not proven):
                raise ValueError("it was changed since it was written")
        except (ValueError, TypeError, IndexError, UnicodeDecodeError, pa.ArrowException) as error:
            return self._damaged(number, f"is not a row of the registry ({error})"), sha256
        return row, sha256

    def _damaged(self, number: int, what: str) -> DamagedError:
        remedy = f"restore it from a backup, or run `hyco verify --repair --home {self.store.url}` to go on without it"
        return DamagedError(log_path(number), what, self.store.url, remedy)


def _breaks_chain(before: Decision | DamagedError, sha256: str, row: Decision) -> bool:
    """Whether a row holds another sha256 of the row before it; a replacement of a lost row has a new one."""
    replaced = isinstance(before, DamagedError) or before.key == LOST
    return not replaced and row.previous is not None and row.previous != sha256


def _bytes(row: Decision) -> bytes:
    return seal_table(pa.Table.from_pylist([dataclasses.asdict(row)], schema=SCHEMA))


def champion_of(rows: list[Decision]) -> Decision | None:
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
        raise ValueError(f"{folder} is not a model: it must hold model.safetensors and files next to it")
    return [file_entry(folder / name) for name in names]


def file_entry(path: Path) -> dict[str, Any]:
    """Return name, sha256 and size of a file."""
    return {"name": path.name, "sha256": sha256_of(path), "size": path.stat().st_size}


def files_damage(folder: Folder, files: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (name, fault) of the files of a folder that are missing or have another sha256 than `files` says."""
    found = []
    for file in files:
        try:
            there = {"sha256": folder.store.sha256(file["name"]), "size": folder.store.size(file["name"])}
        except (FileNotFoundError, IsADirectoryError):
            found.append((file["name"], "is missing"))
            continue
        if {"name": file["name"], **there} != file:
            found.append((file["name"], f"sha256 {there['sha256'][:12]}, expected {file['sha256'][:12]}"))
    return found


def digest_of(files: list[dict[str, Any]]) -> str:
    """Return the 16 hex digits that name a model: the start of the sha256 over its files' names and hashes."""
    text = "\n".join(f"{file['name']} {file['sha256']}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prove_folder(folder: Folder) -> None:
    """Write the hashes of a folder's files into it."""
    there = sorted(folder.path.iterdir())
    files = [file_entry(path) for path in there if path.is_file() and path.name != PROOF]
    folder.write(PROOF, seal({"files": files}))


def folder_damage(folder: Folder) -> list[tuple[str, str]]:
    """Return (name, fault) of the files of a folder with stored hashes; [] for one without them."""
    try:
        return files_damage(folder, unseal(folder.read(PROOF))["files"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError) as error:
        return [(PROOF, f"is not a proof ({error})")]
