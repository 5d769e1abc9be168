"""Filters of packing: each by a version of one mined source, without a detector; conditions on columns; languages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyco.pipeline.config import ConfigError, digest
from hyco.pipeline.curation.delete import delete
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing import source_columns
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.filters import FilterConfig
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.packing.where import Where
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.boxes import preset
from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.language import language_fraction
from hyco.storage.home import Home
from hyco.storage.sample import TrainingSample
from hyco.storage.shard import read_shard
from hyco.storage.versions import Version
from tests.factories.files import named, tarred

ROWS: list[dict[str, Any]] = [
    {"size": (96, 128), "captions": ["a dog on a mat", "ein Hund auf einer Matte"], "aesthetic": 6.1, "punsafe": 0.0},
    {"size": (40, 128), "captions": ["a dog"], "aesthetic": 5.5, "punsafe": 0.2},
    {"size": (96, 96), "captions": ["a dog that looks at a very long row of other dogs"], "aesthetic": 4.0},
    {"size": (200, 64), "captions": ["un chien sur le tapis"], "aesthetic": None, "punsafe": 0.05},
]  # fmt: skip


@pytest.fixture
def mined(tmp_path: Path) -> tuple[MineConfig, Home]:
    source = tmp_path / "source"
    source.mkdir()
    for unit, numbers in enumerate([(0, 1), (2, 3)]):
        members: dict[str, bytes | str] = {}
        for number in numbers:
            row = dict(ROWS[number])
            height, width = row.pop("size")
            label = {"phrase": row["captions"][0].split(" ")[1], "box": [0, 0, 0.5, 0.9], "caption": 0}
            other = [
                {**label, "caption": 1, "phrase": "Hund"} for _ in row["captions"][1:]
            ]  # the same box of another caption
            told = {**row, "objects": [label, *other], "tags": {"camera": "x"}}
            image = encode_jpeg(np.full((height, width, 3), 60 * number, np.uint8), 95)
            members |= named(f"{number:09d}", {"jpg": image, "json": json.dumps(told)})
        tarred(source / f"{unit:05d}.tar", members)
    config = MineConfig(source=str(source), grounder="source", columns=Columns(boxes=preset("objects")))
    home = Home(tmp_path / "home")
    mine_all(config, home, InProcess())
    return config, home


def packed(mined: tuple[MineConfig, Home], **filters: Any) -> tuple[Version, list[TrainingSample]]:
    config, home = mined
    options = PackConfig(
        image_size=32,
        min_area_px=None,
        filters=FilterConfig(**filters),
        gate=QualityConfig(max_shrink=None),
    )
    version = pack(config, options, home)
    samples = []
    for shard in version.shards["train"]:
        with home.store.open(shard.path) as file:
            samples += read_shard(file, shard.path, shard.samples)
    return version, samples


def numbers(samples: list[TrainingSample]) -> list[int]:
    return [int(sample.meta["source_key"]) for sample in samples]


@pytest.mark.parametrize(
    ("filters", "left", "counts"),
    [
        ({}, [0, 1, 2, 3], {}),
        ({"min_side": 64}, [0, 2, 3], {"filtered_size": 1}),
        ({"max_aspect": 3}, [0, 2], {"filtered_aspect": 2}),
        ({"max_aspect": 3.15}, [0, 2, 3], {"filtered_aspect": 1}),
        ({"max_part_aspect": 2}, [0, 1, 2], {"partless": 1}),
        ({"min_words": 3}, [0, 2, 3], {"filtered_captions": 1}),
        ({"max_words": 10}, [0, 1, 3], {"filtered_captions": 1}),
        ({"min_language": 0.5}, [0, 1, 2], {"filtered_captions": 1, "captions_left_out": 1}),
        (
            {"min_language": 0.9, "language": "de", "min_words": 4},
            [0],
            {"filtered_captions": 3, "captions_left_out": 1},
        ),
        ({"where": "aesthetic > 5"}, [0, 1], {"filtered_where": 2}),
        ({"where": "aesthetic > 5 and punsafe < 0.1"}, [0], {"filtered_where": 3}),
        ({"where": "not punsafe >= 0.1"}, [0, 3], {"filtered_where": 2}),
        ({"where": "aesthetic > 5 or punsafe < 0.1"}, [0, 1, 3], {"filtered_where": 1}),
        ({"where": "aesthetic > 5", "min_side": 64}, [0], {"filtered_where": 2, "filtered_size": 1}),
    ],
)
def test_each_filter_makes_another_version(
    mined: tuple[MineConfig, Home], filters: dict[str, Any], left: list[int], counts: dict[str, int]
) -> None:
    version, samples = packed(mined, **filters)
    assert numbers(samples) == left
    told = {
        name: n for name, n in version.counts.items() if "filtered" in name or name in ("partless", "captions_left_out")
    }  # fmt: skip
    assert told == counts
    assert version.counts["images"] + sum(n for name, n in told.items() if name != "captions_left_out") == 4


def test_captions_that_are_left_out_take_their_parts_and_labels_along(mined: tuple[MineConfig, Home]) -> None:
    _, [first, *_] = packed(mined)
    assert first.captions == ("a dog on a mat", "ein Hund auf einer Matte")
    _, [first, *_] = packed(mined, min_language=0.5)
    assert first.captions == ("a dog on a mat",)
    assert [part.phrase for part in first.parts] == ["dog"]
    assert [label["phrase"] for label in first.meta["objects"]] == ["dog"]
    _, [first] = packed(mined, min_language=0.9, language="de", max_words=5, where="aesthetic > 6")
    assert first.captions == ("ein Hund auf einer Matte",)
    assert [(part.phrase, part.caption) for part in first.parts] == [("Hund", 0)]
    assert [label["caption"] for label in first.meta["objects"]] == [0]


def test_unset_filters_keep_the_digest_and_set_ones_change_it() -> None:
    plain = digest(PackConfig())
    assert digest(PackConfig(filters=FilterConfig())) == plain
    assert digest(PackConfig(filters=FilterConfig(min_side=1))) != plain


def test_another_threshold_on_the_same_columns_does_not_read_the_source_for_them_again(
    mined: tuple[MineConfig, Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(mined, where="aesthetic > 5")
    monkeypatch.setattr(source_columns, "open_unit", lambda *_: pytest.fail("the source was read again"))
    assert numbers(packed(mined, where="4 < aesthetic < 6")[1]) == [1]


def test_an_image_that_two_units_hold_is_packed_by_the_one_whose_columns_pass(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = encode_jpeg(np.full((64, 64, 3), 9, np.uint8))
    for unit, score in enumerate((1, 9)):
        label = {"phrase": "dog", "box": [0, 0, 1, 1]}
        told = {"captions": ["a dog"], "objects": [label], "score": score}
        tarred(source / f"{unit}.tar", named("1", {"jpg": image, "json": json.dumps(told)}))
    config = MineConfig(source=str(source), grounder="source", columns=Columns(boxes=preset("objects")))
    home = Home(tmp_path / "home")
    mine_all(config, home, InProcess())
    _, [kept] = packed((config, home), where="score > 5")
    assert kept.meta["score"] == 9
    assert packed((config, home))[1][0].meta["score"] == 1


def test_a_condition_on_a_column_that_is_not_there_names_those_that_are(
    mined: tuple[MineConfig, Home],
) -> None:
    with pytest.raises(ValueError, match=r"has a column 'aestetic'.*its columns: aesthetic, .*punsafe"):
        packed(mined, where="aestetic > 5")


def test_filters_that_leave_nothing_say_so(mined: tuple[MineConfig, Home]) -> None:
    with pytest.raises(ValueError, match=r"the filters left out filtered_where 4: relax pack\.filters"):
        packed(mined, where="aesthetic > 50")


def test_deleted_images_leave_the_columns(mined: tuple[MineConfig, Home]) -> None:
    _, samples = packed(mined, where="aesthetic > 5")
    delete(mined[1], keys=[samples[0].key], reason="asked")
    [made] = mined[1].all_columns()
    held = [source_columns._rows(mined[1], record) for record in made.records().values()]
    assert samples[0].key not in {key for rows in held for key, _, _ in rows}
    assert numbers(packed(mined, where="aesthetic > 5")[1]) == [1]


@pytest.mark.parametrize(
    ("text", "row", "kept"),
    [
        ("a > 5", {"a": 6}, True),
        ("a > 5", {"a": "6"}, True),
        ("a > 5", {"a": "six"}, False),
        ("a > 5", {}, False),
        ("not a > 5", {}, False),
        ("a > 5 or b", {"b": True}, True),
        ("-1 <= a < 1", {"a": 0.5}, True),
        ("license in ('CC BY', 'CC0')", {"license": "CC0"}, True),
        ("license not in ['CC BY']", {"license": "CC BY"}, False),
        ("'cat' in tags", {"tags": ["cat", "dog"]}, True),
        ("exif.camera == 'x'", {"exif": {"camera": "x"}}, True),
        ("exif.camera == 'x'", {"exif": "none"}, False),
        ("`p watermark` < 0.5", {"p watermark": 0.1}, True),
        ("a in (1, 2)", {"a": "2"}, True),
    ],
)
def test_conditions(text: str, row: dict[str, Any], kept: bool) -> None:
    assert Where(text)(row) is kept


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "a + 1 > 2",
        "a > 5; b",
        "lambda: a",
        "a[0] > 1",
        "f'{a}' == 'x'",
        "a is 5",
        "5 > 3",
        "a >",
        "(" * 300 + "a > 1" + ")" * 300,
        "not " * 100 + "a",
        "a > 1 or " * 400 + "a",
        "[x for x in a] == 1",
        "a := 5",
    ],
)
def test_whatever_is_no_condition_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="where") as caught:
        FilterConfig(where=text)
    assert "\n" not in str(caught.value)


ENGLISH = ("a dog runs on the grass", "two men in hard hats repair a roof", "snowboarder grinding a rail",
           "STOCK PHOTO: woman in a park", "red bicycle", "")  # fmt: skip
FOREIGN = ("ein Hund läuft auf dem Gras mit einem Ball", "eine Frau sitzt auf einer Bank und liest",
           "un chien court sur la pelouse avec un ballon", "une femme est assise dans un parc",
           "dos perros corren por la hierba con una pelota", "un cane che corre sul prato con una palla",
           "um cachorro correndo na grama com uma bola", "en hund springer på gräset med en boll",
           "een vrouw zit op een bank en leest een boek", "狗在草地上", "собака бежит по траве")  # fmt: skip


def test_captions_of_other_languages_are_told_from_english() -> None:
    assert [text for text in ENGLISH if language_fraction(text) < 0.5] == []
    assert [text for text in FOREIGN if language_fraction(text) >= 0.5] == []
