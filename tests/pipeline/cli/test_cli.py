"""A user's mistake is one line that names the value and the way out, exit code 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyco.flows.__main__ import main
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.factories.commands import GROUNDER
from tests.factories.training import make_home


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"this is not a tar" * 100)
    return folder


@pytest.fixture
def packed_home(tmp_path: Path) -> Path:
    make_home(tmp_path / "home")
    return tmp_path / "home"


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run `hyco words`; return its one line on stderr."""
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hyco: error:")]
    assert left.value.code == 2
    assert len(said) == 1
    return said[0]


def test_a_wrong_recipe_name(source: Path, capsys, monkeypatch) -> None:
    words = ["journey", "--source", str(source), "--grounder", GROUNDER, "--recipe", "hycoclip_vits"]
    said = fails(capsys, monkeypatch, *words)
    assert "'hycoclip_vits'" in said and "did you mean 'hycoclip_vit_s'" in said


def test_an_unknown_option(capsys, monkeypatch) -> None:
    said = fails(capsys, monkeypatch, "mine", "--surce", "x")
    assert "--surce" in said and "--source" in said


def test_an_unknown_command(capsys, monkeypatch) -> None:
    assert "Did you mean 'mine'?" in fails(capsys, monkeypatch, "mien")


def test_an_unknown_field(source: Path, capsys, monkeypatch) -> None:
    words = ["mine", "--source", str(source), "--grounder", GROUNDER, "--set", "per_phrases=3"]
    said = fails(capsys, monkeypatch, *words)
    assert "per_phrases" in said and "did you mean 'per_phrase'" in said


def test_a_missing_source(capsys, monkeypatch) -> None:
    said = fails(
        capsys, monkeypatch, "mine", "--source", "/no/such/place", "--grounder", GROUNDER, "--workers", "0"
    )
    assert "/no/such/place" in said


def test_a_missing_grounder(source: Path, capsys, monkeypatch) -> None:
    said = fails(
        capsys, monkeypatch, "mine", "--source", str(source), "--grounder", "transformers:/no/weights"
    )
    assert "/no/weights" in said


def test_a_shard_that_is_not_a_tar(source: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    words = ["mine", "--source", str(source), "--grounder", GROUNDER, "--home", str(tmp_path / "home")]
    said = fails(capsys, monkeypatch, *words, "--workers", "0")
    assert "00000.tar" in said
    assert not list((tmp_path / "home").glob("detections/*/records/*"))


def test_no_version_to_train_on(tmp_path: Path, capsys, monkeypatch) -> None:
    said = fails(capsys, monkeypatch, "train", "--recipe", "demo", "--home", str(tmp_path))
    assert "run mine and pack first" in said


def test_a_home_in_tilde_or_as_a_file_url_is_one_home(tmp_path: Path, capsys, monkeypatch) -> None:
    """The shell leaves ~ alone in --home=~/x and in a file of the environment."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(tmp_path))
    (home / "fits" / "first").mkdir(parents=True)
    (home / "fits" / "first" / "config.json").write_text("{}")
    for words, environment in (
        (["--home=~/home"], {}),
        ([], {"HYCO_HOME": "~/home"}),
        ([f"--home=file://{home}"], {}),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(sys, "argv", ["hyco", "status", *words])
            for name, value in environment.items():
                patch.setenv(name, value)
            main()
        said = capsys.readouterr().out
        assert left.value.code == 0 and "first  training not finished" in said
    missing = ["assess", "--run", "nothing_here"]
    for option in ("--home=~/home", f"--home=file://{home}"):
        said = fails(capsys, monkeypatch, *missing, option)
        assert f"or {home}/runs/nothing_here" in said


def test_no_run_to_assess(tmp_path: Path, capsys, monkeypatch) -> None:
    assert "nothing_here" in fails(
        capsys, monkeypatch, "assess", "--run", "nothing_here", "--home", str(tmp_path)
    )


def test_a_run_of_another_architecture(packed_home: Path, capsys, monkeypatch) -> None:
    """The run's configuration is changed by hand after a checkpoint was written: the weights no longer fit."""
    name = Versions(Store(str(packed_home))).load("latest").name
    small = [
        "--set",
        "steps=2",
        "--set",
        "batch_size=4",
        "--set",
        "optimiser.warmup_steps=1",
        "--run",
        "small",
    ]
    monkeypatch.setattr(
        sys, "argv", ["hyco", "train", "--recipe", "demo_hycoclip", "--home", str(packed_home), *small]
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0, name
    run = packed_home / "runs" / "small"
    (run / "train.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["model"]["vision"]["width"] = 64
    (run / "config.json").write_text(json.dumps(config))
    small += ["--set", "model.vision.width=64"]
    said = fails(
        capsys, monkeypatch, "train", "--recipe", "demo_hycoclip", "--home", str(packed_home), *small
    )
    assert "another architecture" in said and "visual" in said


def test_a_failing_journey_shows_no_traceback(source: Path, tmp_path: Path) -> None:
    """Run as a program: Prefect logs the tracebacks of failed runs, which belong in its UI and not in the terminal."""
    command = [sys.executable, "-m", "hyco.flows", "journey", "--source", str(source), "--grounder", GROUNDER]
    command += ["--recipe", "demo", "--home", str(tmp_path / "home"), "--workers", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "00000.tar" in ended.stderr.splitlines()[-1]
    assert ended.stderr.splitlines()[-1].startswith("hyco: error:")
