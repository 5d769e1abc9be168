"""One image in several units is one sample of a version; an image that changed since mining is a failure by name."""

import json
from pathlib import Path

import pytest

from hyco.pipeline.config import digest
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.packing.pack import PackConfig, pack, pack_shard, plan, publish
from hyco.pipeline.sources.source import open_source
from hyco.storage.detections import read_detections, read_failures, write_detections
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.sample import content_key
from hyco.storage.store import Store
from tests.factories.files import tarred
from tests.pipeline.packing.test_pack import SIZE, Mined, mine, packing_config, samples_of, scene

CAPTIONS = ["a red square left of a blue square", "two squares"]


def members(numbers: list[int], **extra: str) -> list[tuple[str, bytes | str]]:
    told = json.dumps({"captions": CAPTIONS, **extra}).encode()
    return [m for n in numbers for m in ((f"{n}.jpg", encode_jpeg(scene(n), 95)), (f"{n}.json", told))]


@pytest.fixture
def doubled(tmp_path: Path) -> tuple[Mined, str]:
    source = tmp_path / "source"
    source.mkdir()
    tarred(source / "0.tar", members([0, 1], shard="0"))
    tarred(source / "1.tar", members([1, 2], shard="1"))
    tarred(source / "2.tar", members([3, 0, 1], shard="2"))
    mined, home = Mined(source=str(source)), str(tmp_path / "home")
    mine(mined, home)
    return mined, home


def held(home: str, config: PackConfig, mined: Mined) -> list[tuple[str, str]]:
    version = pack(mined, config, Home(home))
    return [(sample.key, sample.meta["shard"]) for sample in samples_of(home, version)]


def key(number: int) -> str:
    return content_key(encode_jpeg(scene(number), 95))


EXPECTED = [(key(0), "0"), (key(1), "0"), (key(2), "1"), (key(3), "2")]


def test_an_image_of_several_units_is_packed_by_the_first(doubled: tuple[Mined, str]) -> None:
    mined, home = doubled
    config = packing_config(image_size=SIZE)
    assert held(home, config, mined) == EXPECTED
    version = pack(mined, config, Home(home))
    assert (
        version.counts["images"] == 4
        and version.counts["repeated"] == 3
        and plan(mined, config, Home(home)) == []
    )


def test_it_does_not_matter_in_which_order_units_are_packed(doubled: tuple[Mined, str]) -> None:
    mined, home = doubled
    config = packing_config(image_size=SIZE)
    for unit in reversed(open_source(mined.source).units()):
        pack_shard(mined, config, Home(home), unit)
    version = publish(mined, config, Home(home))
    assert [(sample.key, sample.meta["shard"]) for sample in samples_of(home, version)] == EXPECTED


def test_units_that_come_and_go_are_packed_again_only_where_it_matters(doubled: tuple[Mined, str]) -> None:
    mined, home = doubled
    config = packing_config(image_size=SIZE)
    first = pack(mined, config, Home(home))
    zero = Path(mined.source) / "0.tar"
    away = zero.rename(Path(mined.source).parent / "0.tar")
    assert [unit.path for unit in plan(mined, config, Home(home))] == ["1.tar", "2.tar"]
    assert held(home, config, mined) == [(key(1), "1"), (key(2), "1"), (key(3), "2"), (key(0), "2")]
    away.rename(zero)
    assert [unit.path for unit in plan(mined, config, Home(home))] == ["1.tar", "2.tar"]
    assert pack(mined, config, Home(home)).name == first.name


def test_an_image_is_kept_by_the_first_unit_that_has_a_box_for_it(doubled: tuple[Mined, str]) -> None:
    mined, home = doubled
    store, config = Store(home), packing_config(image_size=SIZE)
    unit = open_source(mined.source).units()[0]
    records = Manifest(store, f"detections/{digest(mined)}/records")
    record = records.record(unit.name)
    assert record is not None
    with store.open(record["detections"]["path"]) as file:
        rows = read_detections(file).to_pylist()
    for row in rows:
        row["score"] = 0.1 if row["key"] == key(1) else row["score"]
    made = store.commit(
        f"detections/{digest(mined)}/objects", ".parquet", lambda file: write_detections(file, rows)
    )
    records.forget(unit.name)
    records.commit(unit.name, {**record, "detections": {"path": made.path}})
    assert held(home, config, mined) == [(key(0), "0"), (key(1), "1"), (key(2), "1"), (key(3), "2")]


def test_a_source_without_repeated_images_is_packed_as_ever(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    tarred(tmp_path / "source/0.tar", members([0, 1]))
    mined, home = Mined(source=str(tmp_path / "source")), str(tmp_path / "home")
    mine(mined, home)
    version = pack(mined, packing_config(image_size=SIZE), Home(home))
    assert "repeated" not in version.counts
    record = Manifest(Store(home), f"packs/{version.digests['pack']}/records")
    (unit,) = record.units()
    old = record.record(unit)
    assert old is not None and old.pop("without") == ""
    record.forget(unit)
    record.commit(unit, old)  # as an older Hyco left it
    assert plan(mined, packing_config(image_size=SIZE), Home(home)) == []


def padded(number: int) -> bytes:
    """An image of a fixed size in bytes: what follows the end of a JPEG is no part of it."""
    data = encode_jpeg(scene(number), 95)
    return data + bytes(20_000 - len(data))


def with_jsonl(folder: Path, numbers: list[int]) -> Path:
    folder.mkdir()
    for n in numbers:
        (folder / f"{n}.jpg").write_bytes(padded(n))
    rows = [json.dumps({"file": f"{n}.jpg", "captions": CAPTIONS}) for n in numbers]
    (folder / "x.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def failures(home: str, mined: Mined, config: PackConfig) -> list[tuple[str, str]]:
    (unit,) = open_source(mined.source).units()
    path = pack_shard(mined, config, Home(home), unit)["failures"]
    with Store(home).open(path) as file:
        return [(failure.code, failure.message) for failure in read_failures(file)]


def test_an_image_replaced_by_another_of_equal_size_is_a_failure_and_the_remedy_works(tmp_path: Path) -> None:
    source, home = with_jsonl(tmp_path / "source", [0, 1, 2]), str(tmp_path / "home")
    mined, config = Mined(source=str(source / "x.jsonl")), packing_config(image_size=SIZE)
    mine(mined, home)
    (source / "1.jpg").write_bytes(padded(9))
    ((code, message),) = failures(home, mined, config)
    assert code == "image_replaced" and "1.jpg" in message and "x.jsonl" in message
    with (source / "x.jsonl").open("a") as file:
        file.write("\n")
    mine(mined, home)
    version = pack(mined, packing_config(image_size=SIZE), Home(home))
    assert version.counts["images"] == 3 and version.counts["pack_failures"] == 0


def test_an_image_replaced_by_none_is_a_failure_too(tmp_path: Path) -> None:
    source, home = with_jsonl(tmp_path / "source", [0, 1, 2]), str(tmp_path / "home")
    mined = Mined(source=str(source / "x.jsonl"))
    mine(mined, home)
    (source / "1.jpg").write_bytes(bytes((source / "1.jpg").stat().st_size))
    ((code, _),) = failures(home, mined, packing_config(image_size=SIZE))
    assert code == "image_replaced"


def test_captions_other_than_those_that_were_mined_are_never_packed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path = tarred(tmp_path / "source/0.tar", members([0, 1]))
    mined, store = Mined(source=str(path)), Store(tmp_path / "home")
    (unit,) = mine(mined, store.url)
    records = Manifest(store, f"detections/{digest(mined)}/records")
    record = records.records()[unit.name]
    with store.open(record["detections"]["path"]) as file:
        table = read_detections(file)
    texts = [  # as rules of reading of before would have read the first image
        "another caption" if row["key"] == key(0) else row["text"] for row in table.to_pylist()
    ]
    table = table.set_column(table.schema.get_field_index("text"), "text", [texts])
    made = store.commit(
        f"detections/{digest(mined)}/objects", ".parquet", lambda f: write_detections(f, table)
    )
    records.forget(unit.name)
    records.commit(unit.name, {**record, "detections": {"path": made.path, "sha256": made.sha256}})
    packed = pack_shard(mined, packing_config(image_size=SIZE), Home(store.url), unit)
    with store.open(packed["failures"]) as file:
        assert [(f.code, f.key) for f in read_failures(file)] == [("captions_changed", key(0))]
    assert packed["counts"]["images"] == 1


def test_captions_without_nouns_are_not_blamed_on_thresholds(doubled: tuple[Mined, str]) -> None:
    mined, home = doubled
    records = Manifest(Store(home), f"detections/{digest(mined)}/records")
    for name, record in records.records().items():
        records.forget(name)
        records.commit(name, {**record, "phrases": 0})
    with pytest.raises(ValueError, match=r"no noun was found in any caption of 7 images.*nouns\.model"):
        pack(mined, packing_config(image_size=SIZE, threshold=0.95), Home(home))
