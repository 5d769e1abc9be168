"""Training that says nothing any more is ended; what it says need not be text; the machine's name need not resolve."""

import os
import sys
from pathlib import Path

import pytest

from hyco.pipeline.training.launch import launch
from hyco.pipeline.training.run_dir import prepare
from hyco.storage.home import Home
from tests.factories.training import make_home, tiny_recipe

ROOT = Path(__file__).parents[3]


def test_a_training_that_stalls_is_ended(tmp_path):
    with pytest.raises(RuntimeError, match=r"failed with code -9: no output for 0\.1 s"):
        launch(tmp_path, stall_s=0.1)  # importing torch alone takes longer


def test_a_line_that_is_not_utf_8_ends_no_training(tmp_path, monkeypatch):
    training = tmp_path / "training"
    training.write_text("#!/bin/sh\nprintf 'caf\\351\\ndone\\n'\n")
    training.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(training))
    (tmp_path / "train.json").write_text('{"steps": 1}')
    lines = []
    assert launch(tmp_path, on_line=lines.append) == {"steps": 1}
    assert lines == ["caf\ufffd", "done"]


def test_a_machine_whose_own_name_does_not_resolve_trains(tmp_path, monkeypatch):
    """torchrun would look for itself under that name for ten minutes, with a warning every few seconds."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "socket.gethostname = lambda: 'nowhere.invalid'\n"
        "socket.getfqdn = lambda name='': name or 'nowhere.invalid'\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    make_home(tmp_path / "home", counts=(64,))
    prepare(tmp_path / "run", Home(tmp_path / "home"), "latest", tiny_recipe(steps=4, batch_size=8))

    def on_line(line):
        assert "nowhere.invalid" not in line

    assert launch(tmp_path / "run", 2, on_line)["processes"] == 2


def test_one_process_does_not_take_the_place_of_a_cluster_job_in_its_environment(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    make_home(tmp_path / "home", counts=(64,))
    prepare(tmp_path / "run", Home(tmp_path / "home"), "latest", tiny_recipe(steps=4, batch_size=8))
    assert launch(tmp_path / "run")["processes"] == 1
