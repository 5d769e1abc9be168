"""The command line ends with the exit code that it means: no thread of Arrow's is left holding a Python object."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyco.storage.home import Home
from hyco.storage.model_registry import Decision

ROOT = Path(__file__).parents[3]
VERBS = ("champion", "registry", "rollback")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two promoted models."""
    registry = Home(tmp_path / "home").registry
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights %d" % number)
        model, files = registry.keep(folder)
        registry.append(
            Decision("promoted", model, files, "because", run=f"/runs/{number}", version="v-1"), number
        )
    return tmp_path / "home"


def exits(home: Path, verb: str, runs: int) -> Counter[int]:
    """The exit codes of so many runs of a verb; rollback goes back and forth between the models."""
    models = itertools.cycle(row.model for row in Home(home).registry.rows())
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    environment["PYTHONPATH"] = str(ROOT)

    def run(number: int) -> int:
        command = [sys.executable, "-m", "hyco.flows", verb, "--home", str(home)]
        if verb == "rollback":
            command += ["--to", next(models)]
        return subprocess.run(
            command, env=environment, capture_output=True, check=False, timeout=120
        ).returncode

    if verb == "rollback":  # each run depends on the one before
        return Counter(map(run, range(runs)))
    with ThreadPoolExecutor(2) as pool:
        return Counter(pool.map(run, range(runs)))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_ends_with_0(home: Path, verb: str) -> None:
    assert exits(home, verb, 2) == {0: 2}


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS)
def test_200_runs_of_a_verb_all_end_with_0(home: Path, verb: str) -> None:
    codes = exits(home, verb, 200)
    print(f"hyco {verb}: {dict(codes)} (exit code: runs)")
    assert codes == {0: 200}


def test_parquet_is_read_and_written_without_threads_or_python_files() -> None:
    """The code that calls pyarrow.parquet is small: each call is looked at here."""
    calls = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for folder in ("flows", "pipeline", "storage", "models", "demo")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"\bpq\.\w+\(|\biter_batches\(|\.read\(use_threads|feather\.|\bdataset\((?!\?)", line)
    ]
    for path, line in calls:
        if "pq.ParquetFile(path)" in line:  # Arrow opens the path itself
            continue
        assert path == "storage/sealed.py" or re.search(r"pre_buffer=False|use_threads=False", line), (
            path,
            line,
        )
    assert {path for path, _ in calls} == {
        "pipeline/datasets/parquet.py",
        "pipeline/sources/parquet_rows.py",
        "pipeline/sources/reading_rules.py",
        "storage/sealed.py",
    }
