"""Shards of scenes: equal bytes, resumable, refused when they belong to other settings, read by the usual door."""

import hashlib
import json
import tarfile

import pytest

from hyco.demo import write as module
from hyco.demo.__main__ import main
from hyco.demo.write import write, write_shard
from hyco.pipeline.sources.source import open_source


def _bytes(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.tar"))
    }


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 8)


def test_same_settings_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, train=20, heldout=8, workers=0)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert list(_bytes(tmp_path / "a")) == [
        "heldout/00000.tar",
        "train/00000.tar",
        "train/00001.tar",
        "train/00002.tar",
    ]


def test_two_processes_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 500)  # workers import the module anew
    write(tmp_path / "a", train=6, heldout=4, workers=0)
    write(tmp_path / "b", train=6, heldout=4, workers=2)
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """Cut down inside the second shard: nothing half-made has a shard's name, the first is not made again."""
    write(tmp_path / "whole", train=24, heldout=0, workers=0)
    calls = []

    def dies(*arguments, **words):
        calls.append(arguments)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return real(*arguments, **words)

    real = module.encode_jpeg
    monkeypatch.setattr(module, "encode_jpeg", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", train=24, heldout=0, workers=0)
    assert list(_bytes(tmp_path / "cut")) == ["train/00000.tar"]
    assert [p.name for p in (tmp_path / "cut" / "train").iterdir()] == ["00000.tar"]
    before = len(calls)
    write(tmp_path / "cut", train=24, heldout=0, workers=0)
    assert len(calls) - before == 16
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")
    write(tmp_path / "cut", train=24, heldout=0, workers=0)
    assert len(calls) - before == 16


def test_a_part_left_by_a_killed_run_is_no_shard(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000.tar.part-1").write_bytes(b"half")
    path = write_shard(str(tmp_path), "train", 0, 3, 0, 128)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 9


def test_the_source_door_reads_them(tmp_path):
    write(tmp_path, train=10, heldout=0, workers=0)
    source = open_source(str(tmp_path / "train"))
    failures, samples = [], []
    for unit in source.units():
        samples += list(source.samples(unit, failures.append))
    assert len(samples) == 10 and not failures
    for sample in samples:
        assert 2 <= len(sample.captions) <= 3
        assert sample.meta["labels"]
        for item in sample.meta["objects"]:
            start, end = item["span"]
            assert sample.captions[item["caption"]][start:end] == item["phrase"]
            assert 0 <= item["box"][0] < item["box"][2] <= 1


def test_scenes_json_tells_what_is_held_out(tmp_path):
    write(tmp_path, train=1, heldout=1, workers=0)
    plan = json.loads((tmp_path / "scenes.json").read_text())
    assert plan["counts"] == {"train": 1, "heldout": 1} and plan["seed"] == 0
    assert len(plan["heldout"]["colors"]) + len(plan["heldout"]["backdrops"]) == len(
        [n for n in json.loads((tmp_path / "taxonomy.json").read_text())["nodes"] if _is_leaf(n, tmp_path)]
    )


def _is_leaf(node, folder):
    nodes = json.loads((folder / "taxonomy.json").read_text())["nodes"]
    return all(other["parent"] != node["id"] for other in nodes)


def test_other_settings_are_refused_in_one_line(tmp_path, capsys):
    arguments = ["scenes", "--out", str(tmp_path), "--train", "2", "--heldout", "0", "--workers", "0"]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "7"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "seed = 0, not 7" in error and "--out" in error
    assert main([*arguments[:3], "--train", "-1"]) == 2
