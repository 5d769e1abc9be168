"""The registry's log: ordered, appended by one at a time, and the champion is what its last row says."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from hyco.storage.home import Home
from hyco.storage.model_registry import SCHEMA, Decision, MovedError, digest_of, fingerprint


def model(folder, weights=b"weights"):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return folder


def row(kind="promoted", name="a"):
    return Decision(kind, name, [{"name": "model.safetensors", "sha256": name, "size": 1}], "because")


def test_the_champion_is_the_last_row_that_is_no_refusal(tmp_path):
    registry = Home(tmp_path).registry
    assert registry.champion() is None and registry.rows() == []
    for number, (kind, name) in enumerate(
        [("promoted", "a"), ("refused", "b"), ("promoted", "c"), ("refused", "d")]
    ):
        registry.append(row(kind, name), number)
    assert registry.champion().model == "c"
    registry.append(row("rolled_back", "a"), 4)
    assert registry.champion().model == "a"
    assert [one.number for one in registry.rows()] == [1, 2, 3, 4, 5]


def test_the_log_is_parquet_that_anything_reads(tmp_path):
    registry = Home(tmp_path).registry
    registry.append(replace(row(), source="s3://x", detectors=["d1"], metrics='{"a": 1}'), 0)
    (path,) = tmp_path.glob("registry/log/*.parquet")
    assert pq.read_table(path).schema.equals(SCHEMA)
    assert registry.table().to_pylist()[0]["detectors"] == ["d1"]


def test_who_decided_on_an_old_log_has_to_look_again(tmp_path):
    registry = Home(tmp_path).registry
    registry.append(row(name="a"), 0)
    with pytest.raises(MovedError):
        registry.append(row(name="b"), 0)
    assert [one.model for one in registry.rows()] == ["a"]


def test_of_many_at_once_each_number_goes_to_one(tmp_path):
    registry = Home(tmp_path).registry

    def add(name):
        while True:
            try:
                return registry.append(row(name=name), len(registry.rows())).number
            except MovedError:
                continue

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(add, map(str, range(10))))
    assert sorted(numbers) == list(range(1, 11))


def test_a_kept_model_has_its_bytes_and_damage_is_named(tmp_path):
    registry = Home(tmp_path / "home").registry
    source = model(tmp_path / "run" / "model")
    name, files = registry.keep(source)
    assert (name, files) == registry.keep(source) and name == digest_of(files)
    shutil.rmtree(source)
    assert fingerprint(registry.path(name)) == files and registry.problem(name, files) is None
    (registry.path(name) / "model.safetensors").write_bytes(b"weightz")
    assert "model.safetensors changed since the promotion" in registry.problem(name, files)
    with pytest.raises(ValueError, match="changed since the promotion"):
        registry.keep(model(tmp_path / "again"))
    shutil.rmtree(registry.path(name))
    assert "missing" in registry.problem(name, files)


def test_a_copy_killed_half_way_leaves_no_model(tmp_path):
    model(tmp_path / "run", b"x" * 1000)
    script = (
        "import os, sys, hyco.storage.model_registry as r\n"
        "original, done = r.shutil.copyfile, []\n"
        "def killed(source, target):\n"
        "    if done: os.kill(os.getpid(), 9)\n"
        "    done.append(original(source, target))\n"
        "r.shutil.copyfile = killed\n"
        "r.Registry(r.Store(sys.argv[1])).keep(sys.argv[2])\n"
    )
    home = tmp_path / "home"
    ended = subprocess.run([sys.executable, "-c", script, str(home), str(tmp_path / "run")], check=False)
    assert ended.returncode == -9
    left = list(home.glob("registry/models/*"))
    assert left and all(path.name.startswith(".tmp-") for path in left)
    name, files = Home(home).registry.keep(tmp_path / "run")
    assert Home(home).registry.problem(name, files) is None


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fingerprint(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"must hold model\.safetensors"):
        fingerprint(tmp_path)


def test_a_torn_row_is_named(tmp_path):
    registry = Home(tmp_path).registry
    registry.append(row(), 0)
    (path,) = tmp_path.glob("registry/log/*.parquet")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"000000001\.parquet: is not a row"):
        registry.rows()
