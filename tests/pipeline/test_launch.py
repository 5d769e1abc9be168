"""Training that says nothing any more is ended."""

import pytest

from pipeline.launch import launch


def test_a_training_that_stalls_is_ended(tmp_path):
    with pytest.raises(RuntimeError, match=r"failed with code -9: no word for 0\.1 s"):
        launch(tmp_path, stall_s=0.1)  # importing torch alone takes longer
