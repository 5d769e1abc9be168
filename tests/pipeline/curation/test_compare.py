"""Versions are compared sample by sample, experiments leave `latest` alone, and a card tells what a version is."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from hyco.flows.__main__ import main
from hyco.pipeline.curation.compare import as_json, compare
from hyco.pipeline.curation.describe import brief, differences
from hyco.pipeline.end_to_end import JourneyConfig
from hyco.pipeline.integrity.verify import verify
from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.registry.retraining import RetrainConfig, published
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.ui.server import create_app
from hyco.storage.home import Home
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.shard import write_shard
from hyco.storage.versions import Version, shard_ref
from tests.factories.mining import config, samples, write_tar
from tests.factories.training import tiny_recipe


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 12), (shade, 90, 30)).save(data, "JPEG")
    return data.getvalue()


def sample(key: str, *phrases: str, caption: str = "a <b>thing</b>") -> TrainingSample:
    parts = tuple(Part(jpeg(9), text, (0.1, 0.1, 0.5, 0.5), 0.6, (0, 5), 0, "chunk") for text in phrases)
    return TrainingSample(key, jpeg(len(key) * 20 + ord(key[-1]) % 9), (caption,), parts)


def publish(home: Home, threshold: float, *shards: list[TrainingSample], val: int = 0) -> Version:
    refs = []
    for held in shards:
        made = home.store.commit("shards/objects", ".tar", lambda file, held=held: write_shard(file, held))
        refs.append(shard_ref(made, len(held), sum(len(one.parts) for one in held)))
    every = [one for held in shards for one in held]
    counts = {"images": len(every), "parts": sum(len(one.parts) for one in every)}
    split = {"train": refs[: len(refs) - val], "val": refs[len(refs) - val :]}
    told = {"pack": PackConfig(threshold=threshold).model_dump(mode="json")}
    return home.versions.publish(told, {"pack": str(threshold)}, split, counts)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Home, Version, Version]:
    """One shard in both; of the other images one went, one came, one lost a part, one moved to the split val."""
    opened = Home(tmp_path / "home")
    same, moved = [sample("same1", "a dog"), sample("same2", "a cat")], [sample("moved", "a tree")]
    a = publish(
        opened, 0.35, same, [sample("went", "a car", "a dog"), sample("less", "a dog", "a hat")], moved
    )
    b = publish(opened, 0.5, same, [sample("less", "a dog"), sample("came", "a bus")], moved, val=1)
    return opened, a, b


def test_what_came_and_went_is_counted_by_image_part_and_phrase(pair) -> None:
    home, a, b = pair
    found = compare(home, a.name, b.name, examples=5)
    assert (found.went.keys, found.came.keys, found.kept, found.changed) == (["went"], ["came"], 4, 2)
    assert (found.went.parts, found.came.parts, found.shared) == (3, 1, 2)
    assert found.phrases == [("a bus", 1), ("a car", -1), ("a dog", -1), ("a hat", -1)]
    assert found.configuration == {"pack.threshold": (0.35, 0.5)}
    assert found.counts == {"images": (5, 5), "parts": (7, 5)}
    assert [one.key for one in found.went.images] == ["went"]
    assert [(key, part.phrase) for key, part in found.went.crops] == [("less", "a hat")]
    back = compare(home, b.name, a.name)
    assert back.phrases == [("a bus", -1), ("a car", 1), ("a dog", 1), ("a hat", 1)]
    assert (back.went.keys, back.changed, back.came.images) == (["came"], 2, [])
    none = as_json(compare(home, a.name, a.name))
    assert none["came"] == none["went"] == {"images": 0, "parts": 0, "keys": []} and not none["phrases"]


def test_shards_of_both_are_not_read(pair) -> None:
    home, a, b = pair
    (shared,) = [ref for ref in a.shards["train"] if ref in b.shards["train"]]
    Path(home.store.path(shared.path)).unlink()
    assert compare(home, a.name, b.name).came.keys == ["came"]


def test_the_page_shows_it_with_pictures_and_escapes_what_data_says(pair) -> None:
    home, a, b = pair
    client = TestClient(create_app(home), base_url="http://localhost")
    page = client.get(f"/versions/{a.name}/diff/{b.name}").text
    assert (
        "Images that came" in page
        and "Images that went" in page
        and "Parts of images in both that went" in page
    )
    assert page.count("<figure>") == 3 and page.count("data:image/jpeg;base64,") == 3
    assert "a &lt;b&gt;thing" in page and "<b>thing" not in page and "pack.threshold" in page
    assert client.get(f"/versions/{a.name}/diff/v-unknown").status_code == 404
    assert (
        f"/versions/{a.name}/diff/{b.name}" in client.get("/").text
        and "threshold 0.5" in client.get("/").text
    )
    assert "pack.threshold" in client.get(f"/versions/{b.name}").text
    assert client.get(f"/versions/{b.name}/README.md").text.startswith("---\npretty_name: " + b.name)


def hyco(monkeypatch, capsys, *words: str, code: int = 0) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code or 0) == code
    return capsys.readouterr()


def test_commands_compare_and_describe(pair, monkeypatch, capsys, tmp_path) -> None:
    home, a, b = pair
    where = ("--home", home.url)
    said = hyco(monkeypatch, capsys, "diff", a.name, "latest", *where)[0]
    assert (
        "option   pack.threshold: 0.35 -> 0.5" in said and "images   1 came, 1 went, 4 in both, 2 of" in said
    )
    assert json.loads(hyco(monkeypatch, capsys, "diff", a.name, b.name, "--json", *where)[0])["kept"] == 4
    assert "does not exist" in hyco(monkeypatch, capsys, "diff", a.name, "other", *where, code=2)[1]
    hyco(monkeypatch, capsys, "card", a.name, "--out", str(tmp_path / "card.md"), *where)
    text = (tmp_path / "card.md").read_text()
    assert text == hyco(monkeypatch, capsys, "card", a.name, *where)[0]
    for told in (
        "| train | 3 | 5 | 7 |",
        "| pack.threshold | 0.35 |",
        "| a dog | 3 |",
        "size_categories:\n- n<1K",
    ):
        assert told in text
    lines = hyco(monkeypatch, capsys, "versions", *where)[0].splitlines()
    assert lines[0].endswith("threshold 0.35, image_size 224") and "(latest): threshold 0.5" in lines[1]


def test_an_experiment_is_not_latest_and_its_name_loads(source, home, detector, monkeypatch, capsys) -> None:
    opened, mine = Home(home), config(source)
    options = {"image_size": 32, "min_area_px": None, "gate": QualityConfig(max_failed=None)}
    mine_all(mine, opened, InProcess())
    first = pack(mine, PackConfig(**options), opened)
    second = pack(mine, PackConfig(threshold=0.1, **options), opened, latest=False)
    assert opened.versions.latest() == first.name != second.name
    third = pack(mine, PackConfig(threshold=0.2, **options), opened, label="low-scores")
    assert opened.versions.latest() == first.name and opened.versions.load("low-scores") == third
    assert third.parent == first.name and opened.versions.labels() == {"low-scores": third.name}
    assert list(differences(first, third)) == ["pack.threshold"] and "threshold 0.2" in brief(third)
    for wrong in ("latest", "v-12", "UP", "a/b", ""):
        with pytest.raises(ValueError, match="use lower-case letters"):
            pack(mine, PackConfig(**options), opened, label=wrong)
    strict = QualityConfig(max_failed=None, min_images=99)
    with pytest.raises(QualityError):
        pack(mine, PackConfig(threshold=0.15, **options | {"gate": strict}), opened, label="few")
    assert opened.versions.quarantined(opened.versions.load("few").name)
    words = ("pack", "--source", str(source), "--grounder", "onnx:counting", "--recipe", "demo", "--workers", "0",
             "--home", home, "--set", "pack.gate.max_failed=null")  # fmt: skip
    out, err = hyco(monkeypatch, capsys, *words)
    assert (
        json.loads(out)["latest"]
        and f"latest was {first.name} and is now" in err
        and "image_size 32 -> 96" in err
    )
    assert "latest was" not in hyco(monkeypatch, capsys, *words)[1]
    out, err = hyco(monkeypatch, capsys, *words, "--set", "pack.threshold=0.15", "--name", "low")
    assert not json.loads(out)["latest"] and "latest was" not in err
    assert "(low, experiment): threshold 0.15" in hyco(monkeypatch, capsys, "versions", "--home", home)[0]
    assert not verify(opened, None)
    pointer = Path(home, "versions/names/low")
    pointer.write_bytes(pointer.read_bytes().replace(b"v-", b"v_"))
    assert [damage.kind for damage in verify(opened, None)] == ["name of a version"]


def test_a_home_of_experiments_alone_has_no_latest_and_is_intact(source, home, detector) -> None:
    opened, mine = Home(home), config(source)
    options = PackConfig(image_size=32, min_area_px=None, gate=QualityConfig(max_failed=None))
    mine_all(mine, opened, InProcess())
    made = pack(mine, options, opened, latest=False)
    assert not verify(opened, None) and opened.latest_version() is None
    with pytest.raises(ValueError, match="is an experiment: name one"):
        opened.versions.load("latest")
    journey = JourneyConfig(mine=mine, pack=options, recipe=tiny_recipe())
    assert published(RetrainConfig(journey=journey), opened).newest is None, "a retraining does not take it"
    assert pack(mine, options, opened) == made and opened.versions.latest() == made.name
    assert not opened.versions.experiments()


def test_more_data_is_seen_as_images_that_came(source, home, detector) -> None:
    opened, mine = Home(home), config(source)
    options = PackConfig(image_size=32, min_area_px=None, gate=QualityConfig(max_failed=None))
    mine_all(mine, opened, InProcess())
    first = pack(mine, options, opened)
    write_tar(source / "00002.tar", samples(3, start=9))
    mine_all(mine, opened, InProcess())
    second = pack(mine, options, opened)
    found = compare(opened, first.name, second.name)
    assert (len(found.came.keys), found.went.keys, found.kept, found.changed, found.shared) == (
        3,
        [],
        9,
        0,
        2,
    )
    assert (
        found.came.scores.sum() == second.counts["parts"] and found.went.scores.sum() == first.counts["parts"]
    )
