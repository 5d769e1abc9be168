"""Training checkpoints: folders that are written atomically, in the directory of a run or in a remote home.

Of a remote home a checkpoint is complete once its record is there, which is uploaded last and deleted first.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from hyco.storage.files import TEMPORARY, atomic_directory, sha256_of
from hyco.storage.folder import Folder

_NAME = re.compile(r"step-(\d{9,})")
_RECORD = "complete.json"
_FOLDER = "checkpoints"

Content = bytes | Callable[[BinaryIO], object]


class Checkpoints:
    """The checkpoints of one run, in a local folder; step-000001000/ holds the files given to `save`.

    A checkpoint is written under a temporary name, every file fsynced, a record of sizes and hashes added,
    and the folder renamed: a crash at any instruction leaves the older checkpoints and temporary files, which `prune`
    removes. A checkpoint is intact only when every file has the sha256 in the record.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._saved: int | None = None  # step of the last `save`
        self._damaged: set[int] = set()  # steps that `latest` skipped

    def save(self, step: int, files: Mapping[str, Content]) -> Path:
        """Write a checkpoint and return its folder; an intact checkpoint that already exists is left as it is.

        Args:
            step: number of optimiser steps done, not negative.
            files: name to bytes, or to a function that writes to a binary file.
        """
        if step < 0 or not files:
            raise ValueError(
                f"checkpoint of step {step} with {len(files)} files: give a step >= 0 and a file"
            )
        final = self._path(step)
        if verify_checkpoint(final) is not None:
            with atomic_directory(final, replace=True) as draft:
                record = {name: _write(draft / _plain_name(name), content) for name, content in files.items()}
                _write(draft / _RECORD, json.dumps({"step": step, "files": record}, indent=1).encode())
        self._saved = step
        self._damaged.discard(step)
        return final

    def at(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self._path(step)

    def newest_step(self) -> int:
        """Return the step of the newest intact checkpoint; 0 without one."""
        found = self.latest(lambda text: None)  # training itself reports damaged ones
        return found[0] if found else 0

    def latest(self, tell: Callable[[str], object] | None = None) -> tuple[int, Path] | None:
        """Return (step, folder) of the newest intact checkpoint; None if there is none.

        `tell` gets a line for every damaged checkpoint that is skipped, and what is done instead; by default the line
        is printed to stderr.
        """
        tell = tell or _to_stderr
        self._damaged.clear()
        for step in sorted(self._there(), reverse=True):
            problem = verify_checkpoint(path := self.at(step))
            if problem is None:
                if self._damaged:
                    tell(f"resuming from the checkpoint of step {step}")
                return step, path
            tell(f"the checkpoint of step {step} is damaged and is skipped: {problem}")
            self._damaged.add(step)
        if self._damaged:
            tell(f"{self.folder} holds no intact checkpoint: starting again at step 0")
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _there(self) -> set[int]:
        return {step for step, _ in self.list()}

    def list(self) -> "list[tuple[int, Path]]":
        """Return (step, folder) of all checkpoints, oldest first, incomplete ones included."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def prune(self, keep: int) -> "list[int]":
        """Delete all but the newest `keep` intact checkpoints; return the steps of the deleted ones.

        The checkpoint that this object saved last is always kept and counts as one of them. Damaged checkpoints and
        temporary folders are deleted too, so only the process that writes the run may call this. Reads the bytes of up
        to `keep` checkpoints.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must stay")
        kept = [self._saved] if self._saved is not None else []
        deleted = []
        for step, path in reversed(self.list()):
            if step in kept:
                continue
            if len(kept) < keep and verify_checkpoint(path) is None:
                kept.append(step)
            else:
                deleted.append(step)
                shutil.rmtree(path)
        if self.folder.is_dir():
            for path in self.folder.glob(f"{TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)
        return sorted(deleted)


class RemoteCheckpoints(Checkpoints):
    """The checkpoints of a run of a remote home: what the home has counts, the working copy holds the files."""

    def __init__(self, run: Folder) -> None:
        super().__init__(run.path / _FOLDER)
        self.run = run

    def save(self, step: int, files: Mapping[str, Content]) -> Path:
        """Write a checkpoint into the working copy and upload it; its record follows the other files."""
        final = super().save(step, files)
        here = self._name(step)
        self.run.send(*(f"{here}/{name}" for name in sorted(files)), f"{here}/{_RECORD}")
        return final

    def at(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, after bringing the working copy of it up to date."""
        self.run.fetch(self._name(step))
        return self._path(step)

    def newest_step(self) -> int:
        """Return the step of the newest complete checkpoint of the home; 0 without one. Fetches nothing."""
        return max(self._there(), default=0)

    def latest(self, tell: Callable[[str], object] | None = None) -> tuple[int, Path] | None:
        """Return (step, folder) of the home's newest intact checkpoint, fetched; None if there is none."""
        there = self._there()
        for step, path in self.list():
            if step not in there:  # left by a process that was killed before it was uploaded
                shutil.rmtree(path)
        return super().latest(tell)

    def prune(self, keep: int) -> "list[int]":
        """Delete all but the newest `keep` checkpoints, here and in the home; return the steps of the deleted ones.

        The checkpoint that this object saved last is always kept, and those that `latest` skipped are not.
        """
        assert keep >= 1
        saved = {self._saved} - {None}
        others = sorted(self._there() - saved - self._damaged, reverse=True)
        kept = saved | set(others[: keep - len(saved)])
        deleted = {step for step, _ in self._files()} - kept
        for step in deleted:
            self.run.remove(f"{self._name(step)}/{_RECORD}")
            self.run.remove(self._name(step))
        for step, path in self.list():
            if step not in kept:
                shutil.rmtree(path)
        return sorted(deleted)

    def _there(self) -> set[int]:
        return {step for step, name in self._files() if name == _RECORD}

    def _files(self) -> "list[tuple[int, str]]":
        """(step, name) of every file of a checkpoint of the home."""
        parts = (path.split("/") for path in self.run.store.list(_FOLDER))
        named = ((_NAME.fullmatch(folder), name) for _, folder, name in parts)
        return [(int(match[1]), name) for match, name in named if match]

    def _name(self, step: int) -> str:
        return f"{_FOLDER}/step-{step:09d}"


def open_checkpoints(run: Folder) -> Checkpoints:
    """Return the checkpoints of a run."""
    return Checkpoints(run.path / _FOLDER) if run.local else RemoteCheckpoints(run)


def verify_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the fault of a checkpoint, or None when every file is intact."""
    folder = Path(folder)
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        files = {str(name): (str(sha256), int(size)) for name, (sha256, size) in record["files"].items()}
        step = int(record["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder}: no readable {_RECORD} ({error})"
    if folder.name != f"step-{step:09d}" or not files:
        return f"{folder / _RECORD} describes step {step} with {len(files)} files"
    for name, (sha256, size) in files.items():
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size != size:
                return f"{path} is missing or not {size} bytes long"
            if sha256_of(path) != sha256:
                return f"{path} has changed since it was written"
        except OSError as error:
            return f"{path} cannot be read ({error})"
    return None


def _to_stderr(text: str) -> None:
    print(f"hyco: {text}", file=sys.stderr, flush=True)


def _plain_name(name: str) -> str:
    if "/" in name or name in ("", ".", "..", _RECORD):
        raise ValueError(f"checkpoint file name {name!r}: give a plain name other than {_RECORD}")
    return name


def _write(path: Path, content: Content) -> tuple[str, int]:
    """Write and fsync one file; return its sha256 and size."""
    with path.open("x+b") as file:
        if callable(content):
            content(cast(BinaryIO, file))
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
    return sha256_of(path), size
