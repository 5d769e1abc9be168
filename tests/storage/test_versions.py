import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hyco.storage.sample import Part, TrainingSample, content_key
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import ShardRef, Version, Versions, shard_ref


def add_shard(store: Store, first: int, count: int = 2) -> ShardRef:
    samples = [
        TrainingSample(content_key(b"%d" % i), b"%d" % i, ("c",), (Part(b"p", "x", (0, 0, 1, 1), 1.0),))
        for i in range(first, first + count)
    ]
    return shard_ref(
        store.commit("shards/objects", ".tar", lambda file: write_shard(file, samples)), count, count
    )


def publish(store: Store, first: int = 0, **config: float) -> Version:
    shards = {
        "train": [add_shard(store, first), add_shard(store, first + 2)],
        "val": [add_shard(store, first + 4, 1)],
    }
    counts = {"images": 5, "train_images": 4, "val_images": 1}
    return Versions(store).publish({"pack": config}, {"pack": str(config)}, shards, counts, ["d2", "d1"])


def test_publish_load_list(store: Store) -> None:
    versions = Versions(store)
    first = publish(store, threshold=0.3)
    second = publish(store, first=10, threshold=0.4)
    assert first.parent is None and second.parent == first.name
    assert versions.load() == versions.load("latest") == versions.load(second.name[:8]) == second
    assert [version.name for version in versions.list()] == [first.name, second.name]
    assert second.detectors == ["d1", "d2"] and second.config == {"pack": {"threshold": 0.4}}
    assert versions.verify(first) == versions.verify(second) == []


def test_publishing_again_changes_only_latest(store: Store) -> None:
    first = publish(store, threshold=0.3)
    second = publish(store, threshold=0.4)
    assert second.name != first.name, "the configuration is part of the name"
    before = {path: store.read_bytes(path) for path in store.list() if path != "versions/latest"}
    assert publish(store, threshold=0.3) == first
    assert {path: store.read_bytes(path) for path in store.list() if path != "versions/latest"} == before
    assert Versions(store).load().name == first.name


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def first_sample_only(data: bytes) -> bytes:
    """Cut between samples and close the archive properly, as no reader without a count could notice."""
    return data[: data.index(content_key(b"1").encode() + b".child.jpg")] + bytes(1024)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (Path.unlink, "missing"),
        (damage(lambda data: data[:-1024]), "without end-of-archive mark"),
        (damage(lambda data: data[:2048]), "bytes, expected"),
        (damage(first_sample_only), "holds 1 samples, its record says 2"),
        (damage(lambda data: data.replace(b"c" + bytes(511), b"d" + bytes(511), 1)), "sha256"),
    ],
)
def test_verify_finds_what_was_done_to_a_shard(
    tmp_path: Path, harm: Callable[[Path], None], problem: str
) -> None:
    store = Store(tmp_path)
    version = publish(store)
    harm(tmp_path / version.shards["train"][0].path)
    problems = Versions(store).verify(version)
    assert problems and all(version.shards["train"][0].path in line for line in problems)
    assert any(problem in line for line in problems)


def test_verify_finds_a_changed_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    version = publish(store)
    path = tmp_path / f"versions/{version.name}.json"
    record = json.loads(path.read_text())
    record["shards"]["train"].pop()
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"{version.name}\.json: is not a dataset version .it was changed"):
        Versions(store).load()
    path.write_text(json.dumps({key: record[key] for key in record if key not in ("sealed", "proof")}))
    problems = Versions(store).verify(Versions(store).load())
    assert any("record was changed" in line for line in problems)
    assert any("train_images is 4, its shards hold 2" in line for line in problems)


def test_clear_errors(tmp_path: Path) -> None:
    store = Store(tmp_path)
    versions = Versions(store)
    with pytest.raises(ValueError, match=r"no dataset version in .*run mine and pack first"):
        versions.load()
    with pytest.raises(ValueError, match=r"'v-x' does not exist .* there are: none"):
        versions.load("v-x")
    with pytest.raises(ValueError, match="no training sample is left"):
        versions.publish({}, {}, {"train": [], "val": []}, {})
    with pytest.raises(ValueError, match="gone: is missing: run `hyco verify --repair"):
        versions.publish({}, {}, {"train": [ShardRef("gone", "", 0, 0, 0)]}, {})
    version = publish(store)
    (tmp_path / f"versions/{version.name}.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a dataset version"):
        versions.load()
