"""Training that says nothing any more is ended; what it says need not be text."""

import sys

import pytest

from pipeline.launch import launch


def test_a_training_that_stalls_is_ended(tmp_path):
    with pytest.raises(RuntimeError, match=r"failed with code -9: no word for 0\.1 s"):
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
