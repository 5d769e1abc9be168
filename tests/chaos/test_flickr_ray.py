"""Two Ray nodes mine and pack real photographs to the version that the local engine makes of them, by command line.

300 photographs, 30 of each shard; HYCO_PHOTOGRAPHS sets another number, up to 5,000.
"""

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.factories.commands import ROOT, hyco
from tests.factories.ray_cluster import RayCluster

DATA = ROOT.parent / "shared" / "data"
PHOTOGRAPHS, DETECTOR = DATA / "flickr8k", DATA / "detectors" / "yolox_nano.onnx"
WANTED = int(os.environ.get("HYCO_PHOTOGRAPHS", "300"))


def some(source: Path) -> Path:
    """Write the first photographs of every shard."""
    source.mkdir()
    for shard in sorted(PHOTOGRAPHS.glob("*.tar")):
        with tarfile.open(shard) as old, tarfile.open(source / shard.name, "w") as new:
            keys: dict[str, None] = {}
            for member in old:
                keys.setdefault(member.name.partition(".")[0])
                if len(keys) > WANTED // 10:
                    break
                new.addfile(member, old.extractfile(member))
    return source


def version(source: Path, home: Path, *options: str) -> dict:
    """Mine and pack with these options, and return what pack prints."""
    words = [
        "--home",
        home,
        "--source",
        source,
        "--grounder",
        f"onnx:{DETECTOR}",
        "--workers",
        "2",
        "--quiet",
    ]
    hyco("mine", *words, *options)
    return json.loads(hyco("pack", *words, *options))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="needs ../shared/data/flickr8k")
def test_photographs_on_two_nodes_make_the_version_of_the_local_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = some(tmp_path / "source")
    local = version(source, tmp_path / "local")
    with RayCluster(nodes=2, cpus=1) as cluster:
        far = version(source, tmp_path / "ray", "--engine", f"ray:{cluster.address}")
    assert far == local and local["counts"]["images"] > 0.6 * WANTED
    with capsys.disabled():
        print(f"\n{WANTED:,} photographs: {local['version']} on both engines, {local['counts']}")
