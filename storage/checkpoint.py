"""Training checkpoints: folders that appear whole or not at all."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from storage.files import fsync_directory, sha256_of

_NAME = re.compile(r"step-(\d{9,})")
_RECORD = "complete.json"
_TEMPORARY = ".tmp-"

Content = bytes | Callable[[BinaryIO], object]


class Checkpoints:
    """The checkpoints of one run, in a local folder; step-000001000/ holds the files given to `save`.

    A checkpoint is written under a temporary name, every file fsynced, a record of sizes and hashes added,
    and the folder renamed: a crash at any instruction leaves the older checkpoints and rubbish that `prune`
    removes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, step: int, files: Mapping[str, Content]) -> Path:
        """Write a checkpoint and return its folder; one that is there already and whole is kept as it is.

        Args:
            step: number of optimiser steps done, not negative.
            files: name to bytes, or to a function that writes to a binary file.
        """
        if step < 0 or not files:
            raise ValueError(
                f"checkpoint of step {step} with {len(files)} files: give a step >= 0 and a file"
            )
        final = self.folder / f"step-{step:09d}"
        if final.exists():
            if _problem(final) is None:
                return final
            shutil.rmtree(final)
        draft = self.folder / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        draft.mkdir(parents=True)
        try:
            record = {name: _write(draft / _plain_name(name), content) for name, content in files.items()}
            _write(draft / _RECORD, json.dumps({"step": step, "files": record}, indent=1).encode())
            fsync_directory(draft)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        fsync_directory(self.folder)
        return final

    def latest(self) -> tuple[int, Path] | None:
        """Return (step, folder) of the newest whole checkpoint, skipping torn ones; None if there is none."""
        for step, path in reversed(self.list()):
            if _problem(path) is None:
                return step, path
        return None

    def list(self) -> "list[tuple[int, Path]]":
        """Return (step, folder) of all checkpoints, oldest first, torn ones included."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def prune(self, keep: int) -> "list[int]":
        """Delete all but the newest `keep` whole checkpoints; return the steps of the deleted ones.

        Torn checkpoints and temporary folders go too, so this is only for the process that writes the run.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must stay")
        whole = [step for step, path in self.list() if _problem(path, deep=False) is None]
        deleted = [(step, path) for step, path in self.list() if step not in whole[-keep:]]
        for _, path in deleted:
            shutil.rmtree(path)
        if self.folder.is_dir():
            for path in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)
        return [step for step, _ in deleted]


def verify_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is whole."""
    return _problem(Path(folder))


def _problem(folder: Path, deep: bool = True) -> str | None:
    """What is wrong with a checkpoint; without `deep` only names and sizes are looked at."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{folder}: no readable {_RECORD} ({error})"
    for name, (sha256, size) in record.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{path} is missing or not {size} bytes long"
        if deep and sha256_of(path) != sha256:
            return f"{path} has changed since it was written"
    return None


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
