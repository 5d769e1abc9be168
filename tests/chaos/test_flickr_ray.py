"""Two Ray nodes mine and pack 5,000 photographs to the version that the local engine makes of them, by command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.kills import ROOT
from tests.factories.ray_cluster import RayCluster

DATA = ROOT.parent / "shared" / "data"
PHOTOGRAPHS, DETECTOR = DATA / "flickr8k", DATA / "detectors" / "yolox_nano.onnx"


def version(verb_options: list[str], home: Path) -> dict:
    """Mine and pack with these options, and return what pack prints."""
    for verb in ("mine", "pack"):
        command = [
            sys.executable,
            "-m",
            "flows",
            verb,
            "--home",
            str(home),
            "--source",
            str(PHOTOGRAPHS),
            "--quiet",
        ]
        command += ["--grounder", f"onnx:{DETECTOR}", "--workers", "2", *verb_options]
        printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(printed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/flickr8k")
def test_photographs_on_two_nodes_make_the_version_of_the_local_engine(tmp_path: Path) -> None:
    local = version([], tmp_path / "local")
    with RayCluster(nodes=2, cpus=1) as cluster:
        far = version(["--engine", f"ray:{cluster.address}"], tmp_path / "ray")
    assert far == local and local["counts"]["images"] > 3000
