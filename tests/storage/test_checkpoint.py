from pathlib import Path

import pytest

from storage.checkpoint import Checkpoints, verify_checkpoint


def save(checkpoints: Checkpoints, step: int, text: bytes = b"state") -> Path:
    return checkpoints.save(
        step, {"trainer.safetensors": lambda file: file.write(text), "config.json": b"{}"}
    )


def test_save_latest_prune(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None and checkpoints.prune(keep=1) == []
    for step in (100, 20, 1000):
        save(checkpoints, step)
    assert checkpoints.latest() == (1000, tmp_path / "checkpoints/step-000001000")
    assert (tmp_path / "checkpoints/step-000001000/trainer.safetensors").read_bytes() == b"state"
    assert checkpoints.prune(keep=2) == [20]
    assert [step for step, _ in checkpoints.list()] == [100, 1000]


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "trainer.safetensors").write_bytes(b"sta"),
        lambda path: (path / "trainer.safetensors").write_bytes(b"STATE"),
        lambda path: (path / "trainer.safetensors").unlink(),
        lambda path: (path / "complete.json").unlink(),
        lambda path: (path / "complete.json").write_bytes(b'{"files'),
    ],
)
def test_torn_ones_are_skipped_and_can_be_saved_again(tmp_path: Path, harm) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    torn = save(checkpoints, 2)
    assert verify_checkpoint(torn) is None
    harm(torn)
    assert verify_checkpoint(torn)
    assert checkpoints.latest() == (1, tmp_path / "step-000000001")
    save(checkpoints, 2)
    assert checkpoints.latest() == (2, torn)


def test_saving_twice_keeps_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, b"first")
    assert (save(checkpoints, 1, b"second") / "trainer.safetensors").read_bytes() == b"first"


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def write(file) -> None:
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Checkpoints(tmp_path).save(1, {"a": b"x", "b": write})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_rubbish_that_prune_removes(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-dead").mkdir()
    (tmp_path / ".tmp-1-dead/a").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None and checkpoints.list() == []
    save(checkpoints, 1)
    checkpoints.prune(keep=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_wrong_arguments(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="step -1"):
        checkpoints.save(-1, {"a": b""})
    with pytest.raises(ValueError, match=r"'\.\./a'"):
        checkpoints.save(1, {"../a": b""})
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoints.prune(0)
