"""A version that is not fit is quarantined: latest stays, training refuses it, and releasing it is one command."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hyco.pipeline.packing import dataset_gate
from hyco.pipeline.packing.dataset_gate import (
    QualityConfig,
    QualityError,
    gate,
    judge,
    score_histogram,
    scores_of,
    verdict,
)
from hyco.pipeline.training.recipes import by_name
from hyco.pipeline.training.run_dir import prepare
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.store import Store
from hyco.storage.versions import ShardRef, Version, Versions

DIGESTS = {"mine": "m", "pack": "p"}
LAX = QualityConfig(verify=False)


def publish(
    store: Store, name: str, images: int, parts: int, scores: list[float], failures: int = 0, pack: str = "p"
) -> Version:
    """A version of one shard (whose bytes nobody looks at), with the pack record of its unit."""
    made = store.commit("shards/objects", ".tar", lambda file: file.write(name.encode()))
    ref = ShardRef(made.path, made.sha256, made.size, images, parts)
    counts = {"images": images, "train_images": images, "val_images": 0, "parts": parts, "failures": failures}
    record: dict[str, Any] = {
        "shards": {"train": [dataclasses.asdict(ref)], "val": []},
        "scores": scores_of(scores),
    }
    Manifest(store, f"packs/{pack}/records").commit(name, record)
    digests = DIGESTS | {"pack": pack}
    return Versions(store).publish({}, digests, {"train": [ref], "val": []}, counts, latest=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    gate(Home(store.url), publish(store, "first", 100, 400, [0.6] * 400), LAX)
    return store


def failing(store: Store, version: Version, config: QualityConfig = LAX) -> list[str]:
    return [check.name for check in judge(Home(store.url), version, config) if not check.passed]


@pytest.mark.parametrize(
    ("images", "parts", "scores", "failures", "expected"),
    [
        (120, 480, [0.6] * 480, 0, []),
        (120, 480, [0.6] * 480, 20, ["failed images, fraction"]),
        (40, 160, [0.6] * 160, 0, ["images"]),
        (120, 100, [0.6] * 100, 0, ["boxes per image"]),
        (120, 480, [0.6] * 240 + [0.2] * 240, 0, ["box scores, distance"]),
        (
            10,
            500,
            [0.1] * 500,
            5,
            ["failed images, fraction", "images", "boxes per image", "box scores, distance"],
        ),
    ],
)
def test_each_check_bites(
    store: Store, images: int, parts: int, scores: list[float], failures: int, expected: list[str]
) -> None:
    assert failing(store, publish(store, "second", images, parts, scores, failures)) == expected


def test_a_new_check_is_one_function(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_gate, "CHECKS", list(dataset_gate.CHECKS))

    @dataset_gate.dataset_check
    def even(of: dataset_gate.Subject) -> dataset_gate.Check:
        odd = of.version.counts["images"] % 2
        return dataset_gate.Check("odd images", odd, None, 0, not odd, "an image has no neighbour")

    odd = publish(store, "odd", 101, 404, [0.6] * 404)
    assert failing(store, odd) == ["odd images"]
    with pytest.raises(QualityError, match="an image has no neighbour"):
        gate(Home(store.url), odd, LAX)
    assert judge(Home(store.url), publish(store, "even", 102, 408, [0.6] * 408), LAX)[-1].why == ""


def test_other_configurations_are_not_compared(store: Store) -> None:
    assert failing(store, publish(store, "second", 20, 20, [0.1] * 20, pack="q")) == []


def test_damaged_shards_are_found(store: Store) -> None:
    version = publish(store, "second", 100, 400, [0.6] * 400)
    assert "damaged shards" in failing(store, version, QualityConfig())  # the bytes are no tar at all


def test_quarantine_and_release(store: Store, tmp_path: Path) -> None:
    versions = Versions(store)
    first = versions.load("latest").name
    bad = publish(store, "second", 10, 40, [0.6] * 40).name
    with pytest.raises(QualityError, match=f"10 images after 100.*hyco release {bad} --home {store.url}"):
        gate(Home(store.url), versions.load(bad), LAX)
    assert versions.load("latest").name == first
    with pytest.raises(ValueError, match=f"{bad} is in quarantine"):
        prepare(tmp_path / "run", Home(tmp_path), bad, by_name("demo"))
    assert any("failed" in row["verdict"] for row in verdict(versions.quarantined(bad) or []))
    assert versions.release(bad)
    assert not versions.release(bad)
    assert versions.load("latest").name == bad
    prepare(tmp_path / "run", Home(tmp_path), bad, by_name("demo"))


def test_the_histogram_is_that_of_the_version_alone(store: Store) -> None:
    version = publish(store, "second", 100, 400, [0.05] * 3)
    assert score_histogram(Home(store.url), version)[:2].tolist() == [0, 3]
    assert score_histogram(Home(store.url), version).sum() == 3
