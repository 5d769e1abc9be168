"""Training shards that exist become a dataset version that trains; what is no such shard is refused by name."""

import gzip
import json
from pathlib import Path

import pytest

import hyco.storage.store
from hyco.pipeline.cli import app
from hyco.pipeline.cli.app import run_app
from hyco.pipeline.end_to_end import mined_of
from hyco.pipeline.integrity.repair import repair
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.packing.adopt import adopt
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError
from hyco.pipeline.training.train import train
from hyco.storage.home import Home
from hyco.storage.versions import read_ref
from tests.factories.files import noise, tarred
from tests.factories.training import shard_files, tiny_recipe


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    shard_files(tmp_path / "shards", [20, 12, 8])
    return tmp_path / "shards"


def published(key: str, parts: int = 1, **others: bytes | str) -> dict[str, bytes | str]:
    """A sample as HyCoCLIP's own tools write it: without meta.json."""
    members: dict[str, bytes | str] = {f"{key}.child.jpg": noise(1), f"{key}.child.txt": "a dog on a mat"}
    members[f"{key}.numparents.txt"] = str(parts)
    for number in range(parts):
        members[f"{key}.parent{number:03d}.jpg"] = noise(2 + number)
        members[f"{key}.parent{number:03d}.txt"] = "a dog"
    return members | {f"{key}.{name.replace('_', '.')}": data for name, data in others.items()}


def test_shards_become_a_version_that_trains(shards: Path, tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    version = adopt(str(shards), home)
    assert [ref.samples for ref in version.shards["train"]] == [20, 12]
    assert [ref.samples for ref in version.shards["val"]] == [8]
    assert {
        name: version.counts[name] for name in ("images", "parts", "captions", "val_images", "partless")
    } == {
        "images": 40,
        "parts": 80,
        "captions": 80,
        "val_images": 8,
        "partless": 0,
    }
    assert home.versions.load("latest") == version and version.source == str(shards)
    names = {(home.folder / ref.path).stat().st_ino for split in version.shards.values() for ref in split}
    assert names == {path.stat().st_ino for path in shards.iterdir()}, "the shards take no further space"
    assert adopt(str(shards), home).name == version.name, "adopting again changes nothing"
    assert verify(home, "latest") == [] and verify(home, None) == []
    result = train(home.runs / "tiny", home, "latest", tiny_recipe(steps=4))
    assert result["samples_seen"] == 64
    with pytest.raises(ValueError, match=r"was adopted from .*shards: it was not mined here"):
        mined_of("latest", home)


def test_shards_of_others_have_no_boxes_and_may_have_no_parts(tmp_path: Path) -> None:
    tarred(tmp_path / "grit/00000.tar", published("000000017", 2) | published("000000018", 0))
    home = Home(str(tmp_path / "home"))
    version = adopt(f"{tmp_path}/grit/*.tar", home)
    assert version.counts["partless"] == 1 and version.counts["parts"] == 2 and version.shards["val"] == []
    first = next(iter(read_ref(home.store, version.shards["train"][0])))
    assert first.captions == ("a dog on a mat",) and [part.phrase for part in first.parts] == ["a dog"] * 2


def test_a_copy_where_the_filesystem_links_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked = adopt(str(shards), Home(str(tmp_path / "one")))
    copied = adopt(str(shards), Home(str(tmp_path / "two")), copy=True)
    monkeypatch.setattr(hyco.storage.store.os, "link", refuse)
    home = Home("memory://adopted")
    remote = adopt(str(shards), home)
    assert linked.name == copied.name == remote.name and verify(home, "latest") == []


def test_a_shard_that_is_written_to_afterwards_shows(shards: Path, tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    version = adopt(str(shards), home)
    with (shards / "00000.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"changed")
    assert [damage.kind for damage in verify(home, "latest")] == ["shard"]
    repair(home)
    shard_files(tmp_path / "again", [20, 12, 8])
    (shards / "00000.tar").unlink()
    (tmp_path / "again/00000.tar").rename(shards / "00000.tar")
    assert adopt(str(shards), home).name == version.name and verify(home, "latest") == []


def test_what_is_no_training_shard_is_refused(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    whole = tarred(tmp_path / "whole.tar", published("a")).read_bytes()
    cases = {
        "source.tar": ({"a.jpg": noise(0), "a.txt": "x"}, "sample a has no numparents.txt.*HyCoCLIP layout"),
        "part.tar": (published("a", 1) | {"a.numparents.txt": "2"}, r"sample a has no parent001\.jpg"),
        "image.tar": (published("a", child_jpg=b"<html>"), r"image\.tar: sample a: child\.jpg: not an image"),
        "empty.tar": ({}, r"empty\.tar holds no sample: leave it out"),
    }
    for name, (members, message) in cases.items():
        path = tarred(tmp_path / "bad" / name, members)
        with pytest.raises(ValueError, match=message):
            adopt(str(path), home)
    (tmp_path / "torn.tar").write_bytes(whole[:1500])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(whole))
    (tmp_path / "x.parquet").write_bytes(b"")
    for name, message in {
        "torn.tar": "truncated",
        "x.tar.gz": "gunzip",
        "x.parquet": "are plain .tar",
    }.items():
        with pytest.raises(ValueError, match=message):
            adopt(str(tmp_path / name), home)
    assert home.versions.names() == []
    with pytest.raises(QualityError, match="fewer than min_images 5"):
        adopt(str(tmp_path / "whole.tar"), home, config=QualityConfig(min_images=5))


def test_the_command(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["hyco", "adopt", str(shards), "--home", str(tmp_path / "home")])
    with pytest.raises(SystemExit) as done:
        run_app(app.app)
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["counts"]["images"] == 40
    monkeypatch.setattr("sys.argv", ["hyco", "look", str(shards)])
    with pytest.raises(SystemExit) as done:
        run_app(app.app)
    assert done.value.code == 1 and "hyco adopt DIR" in capsys.readouterr().out
