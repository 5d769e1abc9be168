"""kill -9 in the middle of each stage, then the same command again: it finishes, and what was done stays as it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyco.demo import taxonomy
from hyco.demo.write import write_shard
from hyco.storage.detections import read_detections
from hyco.storage.store import Store
from hyco.storage.versions import Versions

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
SMALL = [
    "recipe.steps=40",
    "recipe.batch_size=32",
    "recipe.log_every=1",
    "recipe.checkpoint_steps=10",
    "recipe.optimiser.warmup_steps=5",
    "recipe.entailment_start=6",
    "recipe.entailment_ramp=10",
    "recipe.model.vision.width=64",
    "recipe.model.vision.depth=1",
    "pack.shard_size=25",
    "assess.draws=100",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    for number in range(4):
        write_shard(str(out), "train", number, 50, seed=3, size=128)
    write_shard(str(out), "heldout", 0, 40, seed=3, size=128)
    (out / "taxonomy.json").write_text(json.dumps(taxonomy.load().to_json()))
    return out


def journey(scenes: Path, home: Path | str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "flows",
        "journey",
        "--home",
        str(home),
        "--recipe",
        "demo",
        "--workers",
        "1",
    ]
    command += ["--source", str(scenes / "train"), "--assess-source", str(scenes / "heldout")]
    command += [
        "--taxonomy",
        str(scenes / "taxonomy.json"),
        "--grounder",
        "transformers:demo/weights/grounder",
    ]
    for assignment in SMALL:
        command += ["--set", assignment]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen[bytes], home: Path | str, ready: Callable[[], bool]) -> None:
    """kill -9 the command itself, and nothing else, once `ready`; then see that all it had started ends by itself."""
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, (
            f"the command ended with {process.returncode} before it could be killed"
        )
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while left := _left(process.pid, home):
        assert time.monotonic() < deadline, f"orphans go on: {left}"
        time.sleep(0.2)


def _left(session: int, home: Path | str) -> list[str]:
    """Commands still running that the killed one had started: its workers, its server, training."""
    own = subprocess.run(["ps", "-s", str(session), "-o", "args="], capture_output=True, text=True).stdout
    every = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True).stdout
    training = [line for line in every.splitlines() if str(home) in line]
    return [line for line in [*own.splitlines(), *training] if "defunct" not in line]


def records(home: Path, stage: str) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in home.glob(f"{stage}/*/records/*.json")}


def test_a_journey_killed_in_every_stage_ends_as_if_nothing_had_happened(
    scenes: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"

    kill_when(journey(scenes, home), home, lambda: len(records(home, "detections")) >= 2)
    mined = records(home, "detections")
    assert 2 <= len(mined) < 5
    for path in mined:
        record = json.loads(path.read_text())
        with Store(str(home)).open(record["detections"]["path"]) as file:
            assert read_detections(file).num_rows == record["detections"]["rows"]

    kill_when(journey(scenes, home), home, lambda: len(records(home, "packs")) >= 1)
    assert mined.items() <= records(home, "detections").items(), "what was mined has been mined again"
    assert len(records(home, "detections")) == 5
    packed = records(home, "packs")

    checkpoints = lambda: list(home.glob("runs/*/checkpoints/*"))  # noqa: E731
    kill_when(journey(scenes, home), home, lambda: len(checkpoints()) >= 2)
    assert packed.items() <= records(home, "packs").items(), "what was packed has been packed again"
    (log,) = home.glob("runs/*/log.jsonl")
    before = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]

    last = journey(scenes, home)
    assert last.wait(timeout=600) == 0
    (run,) = home.glob("runs/*")
    after = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in after] == list(range(1, 41))
    kept = [line for line in before if line["step"] <= 10]
    assert [line["loss"] for line in kept] == [line["loss"] for line in after[: len(kept)]]
    for old, new in zip(before, after, strict=False):  # the steps between checkpoint and kill were done again
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-3)
    versions = Versions(Store(str(home)))
    assert versions.verify(versions.load("latest")) == []
    assert json.loads((run / "metrics.json").read_text())["mining"]["images"] == 200
