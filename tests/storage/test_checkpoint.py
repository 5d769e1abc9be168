from pathlib import Path

import pytest

from hyco.storage.checkpoint import Checkpoints, verify_checkpoint


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
        lambda path: (path / "complete.json").write_bytes(b'{"files": [], "step": 2}'),
        lambda path: (path / "complete.json").write_bytes(b'{"files": {}, "step": 2}'),
        lambda path: (path / "complete.json").write_bytes(b"[]"),
        lambda path: (path / "complete.json").write_bytes(
            (path / "complete.json").read_bytes().replace(b'"step": 2', b'"step": 3')
        ),
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


def flip(folder: Path) -> None:
    """Change one bit of a checkpoint, its size and all names left as they are."""
    path = folder / "trainer.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_ones_are_named_with_the_reason_and_what_follows(tmp_path: Path, capsys) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        flip(save(checkpoints, step)) if step > 1 else save(checkpoints, step)
    told: list[str] = []
    assert checkpoints.latest(told.append) == (1, tmp_path / "step-000000001")
    changed = "trainer.safetensors has changed since it was written"
    assert told == [
        f"the checkpoint of step 3 is damaged and is skipped: {tmp_path}/step-000000003/{changed}",
        f"the checkpoint of step 2 is damaged and is skipped: {tmp_path}/step-000000002/{changed}",
        "resuming from the checkpoint of step 1",
    ]
    flip(tmp_path / "step-000000001")
    assert checkpoints.latest() is None
    assert f"hyco: {tmp_path} holds no intact checkpoint: starting again at step 0" in capsys.readouterr().err


def test_damaged_ones_with_higher_steps_push_no_good_one_out(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(Checkpoints(tmp_path), step)
    flip(tmp_path / "step-000000200")
    flip(tmp_path / "step-000000300")
    checkpoints = Checkpoints(tmp_path)  # of the process that goes on from step 100
    assert checkpoints.latest(lambda text: None) == (100, tmp_path / "step-000000100")
    save(checkpoints, 110)
    assert checkpoints.prune(keep=2) == [200, 300]
    assert [step for step, _ in checkpoints.list()] == [100, 110]


def test_what_was_just_saved_stays_whatever_has_a_higher_step(tmp_path: Path) -> None:
    for step in (200, 300):
        save(Checkpoints(tmp_path), step)
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 100)
    assert checkpoints.prune(keep=1) == [200, 300]
    assert [step for step, _ in checkpoints.list()] == [100]
