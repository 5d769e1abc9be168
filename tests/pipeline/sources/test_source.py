import errno
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.sources import readers
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import Source, open_source
from hyco.storage.detections import read_failures, write_failures
from hyco.storage.sample import Failure, Sample, content_key
from hyco.storage.store import Store
from tests.factories.files import noise, tarred

FLICKR = Path(__file__).parents[4] / "shared/data/flickr8k"


def read(source: Source) -> tuple[list[Sample], list[Failure]]:
    failures: list[Failure] = []
    samples = [sample for unit in source.units() for sample in source.samples(unit, failures.append)]
    return samples, failures


def codes(source: Source) -> dict[str, str]:
    return {failure.key: failure.code for failure in read(source)[1]}


def test_img2dataset_tars(tmp_path: Path) -> None:
    told = {"captions": ["one", " two\n", "one"], "caption": "ignored", "width": 32}
    tarred(tmp_path / "00000.tar", {"0.jpg": noise(0), "0.txt": "one", "0.json": json.dumps(told)})
    tarred(
        tmp_path / "00001.tar",
        {"1.txt": "text wins\nover", "1.json": '{"caption": "json"}', "1.JPEG": noise(1)},
    )
    tarred(
        tmp_path / "00002.tar",
        {"2.json": '{"caption": "json alone"}', "2.png": noise(2), "3.jpg": noise(3), "3.txt": "x"},
    )
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's table of urls")
    (tmp_path / "00000_stats.json").write_text("{}")
    source = open_source(tmp_path)
    assert [unit.path for unit in source.units()] == ["00000.tar", "00001.tar", "00002.tar"]
    samples, failures = read(source)
    assert failures == []
    assert [sample.captions for sample in samples] == [
        ("one", "two", "one"),
        ("text wins over",),
        ("json alone",),
        ("x",),
    ]
    first = samples[0]
    assert first.key == content_key(noise(0)) and first.image == noise(0)
    assert first.meta == {"caption": "ignored", "width": 32, "source_key": "0"}


def test_a_unit_is_named_by_its_content(tmp_path: Path) -> None:
    one = tarred(tmp_path / "a/weird name.1.tar", {"0.jpg": noise(0), "0.txt": "x"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / one.name).write_bytes(one.read_bytes())
    (unit,) = open_source(tmp_path / "a").units()
    assert [unit] == open_source(tmp_path / "b").units() == open_source(one).units()
    assert unit.name == unit.sha256[:12]
    one = one.rename(tmp_path / "a/renamed.tar")
    assert [found.name for found in open_source(tmp_path / "a").units()] == [unit.name]
    (tmp_path / "b/copy.tar").write_bytes(one.read_bytes())
    assert len(open_source(tmp_path / "b").units()) == 1, "the same bytes are mined once"
    tarred(one, {"0.jpg": noise(0), "0.txt": "y"})
    assert open_source(one).units()[0].sha256 != unit.sha256


def test_dots_folders_and_further_fields(tmp_path: Path) -> None:
    members = {
        "a/v1.0.jpg": noise(1),
        "a/v1.1.jpg": noise(2),
        "a/v1.1.txt": "second",
        "a/v1.0.txt": "first",
        "b/v1.0.jpg": noise(3),
        "b/v1.0.txt": "third",
        "c.jpg": noise(4),
        "c.txt": "fourth",
        "c.mask.png": noise(5),
        "c.ocr.txt": "not a caption",
        "c.cls": "7",
        "._c.jpg": "a note of macOS",
    }
    samples, failures = read(open_source(tarred(tmp_path / "x.tar", dict(members))))
    assert failures == []
    assert {sample.meta["source_key"]: sample.captions[0] for sample in samples} == {
        "a/v1.0": "first",
        "a/v1.1": "second",
        "b/v1.0": "third",
        "c": "fourth",
    }
    assert all(sample.key == content_key(sample.image) for sample in samples)


def test_one_image_twice_is_one_sample(tmp_path: Path) -> None:
    members = {"a.jpg": noise(0), "a.txt": "first", "b.jpg": noise(1), "b.txt": "other", "c.jpg": noise(0)}
    members |= {"c.json": '{"captions": ["first", "again"]}'}
    samples, failures = read(open_source(tarred(tmp_path / "x.tar", members)))
    assert failures == []
    assert [(sample.meta["source_key"], sample.captions) for sample in samples] == [
        ("a", ("first", "again")),
        ("b", ("other",)),
    ]


def test_bad_samples_are_named_and_cost_nobody_else(tmp_path: Path) -> None:
    bad: dict[str, tuple[bytes | str | None, bytes | str | None, str]] = {
        "zero": (b"", "x", "zero_byte"),
        "text": (b"<html>404</html>", "x", "unknown_format"),
        "large": (noise(9) + bytes(30_000), "x", "too_many_bytes"),
        "alone": (noise(2), None, "no_caption"),
        "orphan": (None, "no image", "no_image"),
        "blank": (noise(3), " \n\t ", "empty_caption"),
        "huge": (noise(4), "word " * 2_000_000, "caption_too_long"),
        "long": (noise(5), "word " * 500, "caption_too_long"),
        "latin": (noise(6), "caf\xe9".encode("latin-1"), "bad_text"),
    }
    members: dict[str, bytes | str] = {"good.jpg": noise(0), "good.txt": "good"}
    for name, (image, text, _) in bad.items():
        members |= {f"{name}.jpg": image} if image is not None else {}
        members |= {f"{name}.txt": text} if text is not None else {}
    for name, text, code in [
        ("torn", "{torn", "bad_json"),
        ("list", "[1]", "bad_json"),
        ("deep", "[" * 100_000, "bad_json"),
        ("number", '{"caption": 3}', "bad_text"),
        ("empty", '{"captions": ["", null]}', "empty_caption"),
        ("none", "{}", "no_caption"),
        ("half", '{"caption": "\\ud800"}', "bad_text"),
    ]:
        members |= {f"{name}.jpg": noise(7), f"{name}.json": text}
        bad[name] = (None, None, code)
    members |= {"last.jpg": noise(8), "last.txt": "last"}
    source = open_source(tarred(tmp_path / "x.tar", members), Limits(max_bytes=20_000))
    samples, failures = read(source)
    assert [sample.captions[0] for sample in samples] == ["good", "last"]
    assert {failure.key: failure.code for failure in failures} == {
        name: code for name, (_, _, code) in bad.items()
    }
    assert {failure.stage for failure in failures} == {"source"}
    assert all(len(failure.message) < 300 and "\n" not in failure.message for failure in failures)


def test_a_pixel_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", {"bomb.jpg": noise(0), "bomb.txt": "x"})
    assert codes(open_source(path, Limits(max_pixels=32 * 24 - 1))) == {"bomb": "too_many_pixels"}


def test_a_long_caption_among_others_is_set_aside_and_objects_follow(tmp_path: Path) -> None:
    def thing(caption: int, start: int, end: int) -> dict[str, Any]:
        return {"leaf": "dog", "caption": caption, "span": [start, end], "box": [0, 0, 1, 1]}

    told = {
        "captions": ["x" * 3000, "", "  a dog", "dog"],
        "objects": [thing(0, 0, 1), thing(2, 4, 7), thing(3, 0, 3), {"leaf": "loose"}],
    }
    (sample,), _ = read(
        open_source(tarred(tmp_path / "x.tar", {"a.jpg": noise(0), "a.json": json.dumps(told)}))
    )
    assert sample.captions == ("a dog", "dog")
    assert sample.meta["objects"] == [thing(0, 2, 5), thing(1, 0, 3), {"leaf": "loose"}]
    assert sample.captions[0][2:5] == "dog"


def test_objects_that_point_nowhere_cost_nobody_else(tmp_path: Path) -> None:
    told = {
        "captions": [" a dog"],
        "objects": [{"caption": [0]}, {"caption": 0, "span": ["x", None, 3]}, "dog"],
    }
    (sample,), failures = read(
        open_source(tarred(tmp_path / "x.tar", {"a.jpg": noise(0), "a.json": json.dumps(told)}))
    )
    assert sample.meta["objects"] == [{"caption": 0, "span": ["x", None, 2]}, "dog"] and not failures


def test_names_that_are_not_unicode_fit_into_the_table_of_failures(tmp_path: Path) -> None:
    tarred(tmp_path / "tar/x.tar", {"caf\udce9.jpg": noise(0), "good.jpg": noise(1), "good.txt": "good"})
    (tmp_path / "jsonl").mkdir()
    (tmp_path / "jsonl/x.jsonl").write_text('{"file": "\\ud800.jpg", "caption": "x"}\n')
    for kind, good, key in (("tar", 1, "caf\\udce9"), ("jsonl", 0, "x.jsonl:1")):
        samples, failures = read(open_source(tmp_path / kind))
        table = io.BytesIO()
        write_failures(table, failures)
        assert len(samples) == good and [failure.key for failure in read_failures(table)] == [key]


def test_numbers_that_json_cannot_hold_are_no_part_of_a_sample(tmp_path: Path) -> None:
    told = '{"caption": "a dog", "a": NaN, "b": [-Infinity, 1e999, 0.1, 1e3], "c": {"d": 2}}'
    tarred(tmp_path / "tar/x.tar", {"a.jpg": noise(0), "a.json": told})
    (tmp_path / "parquet").mkdir()
    columns = {"image": [noise(0)], "text": ["a dog"], "a": [float("nan")], "b": [[float("inf")]], "c": [0.5]}
    pq.write_table(pa.table(columns), tmp_path / "parquet/x.parquet")
    ((of_tar,), _), ((of_parquet,), _) = (read(open_source(tmp_path / kind)) for kind in ("tar", "parquet"))
    assert of_tar.meta == {"a": None, "b": [None, None, 0.1, 1e3], "c": {"d": 2}, "source_key": "a"}
    assert of_parquet.meta == {"c": 0.5, "source_key": "x.parquet:0"}


def test_two_archives_joined_are_an_error_and_not_the_first_of_them(tmp_path: Path) -> None:
    one, two = (tarred(tmp_path / f"{n}.tar", {f"{n}.jpg": noise(n), f"{n}.txt": "x"}) for n in range(2))
    joined = tmp_path / "joined/x.tar"
    joined.parent.mkdir()
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(ValueError, match=r"x\.tar has data after its end-of-archive mark"):
        read(open_source(joined))


def test_files_of_the_system_are_no_units(tmp_path: Path) -> None:
    tarred(tmp_path / "00.tar", {"0.jpg": noise(0), "0.txt": "x"})
    (tmp_path / "._00.tar").write_bytes(b"\0\5\x16\7 a note of macOS")
    (tmp_path / ".a.jsonl").write_text("{}")
    assert [unit.path for unit in open_source(tmp_path).units()] == ["00.tar"]


def test_a_tar_cut_anywhere_is_an_error_and_yields_nothing(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {}
    for i in range(3):
        members |= {f"{i}.jpg": noise(i), f"{i}.txt": "x"}
    path = tarred(tmp_path / "00007.tar", members)
    whole = path.read_bytes()
    for end in [*range(0, len(whole.rstrip(b"\0")) + 1, 512), 100, 700]:
        path.write_bytes(whole[:end])
        source = open_source(path)
        seen = []
        with pytest.raises(ValueError, match=r"00007\.tar"):
            seen += source.samples(source.units()[0], lambda failure: None)
        assert seen == []


def test_a_file_that_is_not_a_tar(tmp_path: Path) -> None:
    (tmp_path / "photo.tar").write_bytes(noise(0))
    with pytest.raises(ValueError, match=r"photo\.tar is not a tar archive"):
        read(open_source(tmp_path))


def test_parquet(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([{"bytes": noise(i), "path": f"{i}.jpg"} for i in range(3)], struct),
            "text": ["unused"] * 3,
            "captions": [["one", "two"], ["three"], []],
            "key": ["a", "b", "c"],
            "blob": [b"1", b"2", b"3"],
            "objects": [[{"leaf": "dog", "caption": 1, "span": [0, 3]}], [], None],
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    samples, failures = read(open_source(tmp_path))
    assert [sample.captions for sample in samples] == [("one", "two"), ("three",)]
    assert samples[0].image == noise(0)
    assert samples[0].meta["source_key"] == "a" and "blob" not in samples[0].meta
    assert samples[0].meta["objects"] == [{"leaf": "dog", "caption": 1, "span": [0, 3]}]
    assert [(failure.key, failure.code) for failure in failures] == [("c", "no_caption")]


@pytest.mark.parametrize("column", ["caption", "text", "captions", "TEXT", "Caption"])
def test_parquet_of_plain_bytes(tmp_path: Path, column: str) -> None:
    pq.write_table(
        pa.table({"jpg": [noise(0), None, b""], column: ["one", "two", "three"]}), tmp_path / "0.parquet"
    )
    samples, failures = read(open_source(tmp_path / "0.parquet"))
    assert [sample.captions for sample in samples] == [("one",)]
    assert {failure.key: failure.code for failure in failures} == {
        "0.parquet:1": "no_image",
        "0.parquet:2": "zero_byte",
    }


def test_parquet_with_numbered_captions(tmp_path: Path) -> None:
    columns = {"image": [noise(0)], "caption_0": ["one"], "caption_1": ["two"], "caption_2": [None]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    assert read(open_source(tmp_path))[0][0].captions == ("one", "two")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["x"], "caption": ["y"]}, r"no column of image bytes.*url \(string\), caption \(string\)"),
        ({"image": [b"x"], "label": [3]}, r"no caption column.*image \(binary\), label \(int64\)"),
        ({"left": [b"x"], "right": [b"x"], "text": ["y"]}, r"several columns of bytes \(left, right\)"),
    ],
)
def test_parquet_without_its_columns(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=message):
        read(open_source(tmp_path))


def test_a_torn_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [noise(0)], "text": ["x"]}), tmp_path / "0.parquet")
    data = (tmp_path / "0.parquet").read_bytes()
    for torn in (data[:-20], data[:60], b"", b"PAR1nonsensePAR1"):
        (tmp_path / "0.parquet").write_bytes(torn)
        with pytest.raises(ValueError, match=r"0\.parquet is not a whole parquet file"):
            read(open_source(tmp_path))


def test_a_full_disk_is_not_called_a_broken_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [noise(0)], "text": ["x"]}), tmp_path / "0.parquet")
    for fault in (OSError(errno.ENOSPC, "No space left on device"), ConnectionError("gone")):

        def refuse(data: bytes, fault: OSError = fault) -> str:
            raise fault

        with (
            (tmp_path / "0.parquet").open("rb") as file,
            pytest.raises(type(fault), match=str(fault.args[-1])),
        ):
            list(readers.parquet_rows(file, "0.parquet", Store(tmp_path), Limits(), refuse))


def test_parquet_of_views(tmp_path: Path) -> None:
    columns = {"image": pa.array([noise(0)], pa.binary_view()), "text": pa.array(["one"], pa.string_view())}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    (sample,), _ = read(open_source(tmp_path))
    assert sample.image == noise(0) and sample.captions == ("one",)


def test_folder_with_jsonl(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / f"images/{i}.jpg").write_bytes(noise(i))
    (tmp_path.parent / "secret.jpg").write_bytes(noise(9))
    lines = [
        {"file": "images/0.jpg", "caption": "one", "extra": 1},
        {"image": "./images/1.jpg", "captions": ["two", "three"]},
        {"file_name": "images/2.jpg", "text": "four"},
        {"file": "images/gone.jpg", "caption": "x"},
        {"file": "../secret.jpg", "caption": "x"},
        {"file": str(tmp_path / "images/0.jpg"), "caption": "x"},
        {"caption": "x"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\nnot json\n" + json.dumps({"file": "y" * 2_000_000}) + "\n"
    (tmp_path / "all.jsonl").write_text(text + '{"file": "images/0.jpg", "caption": "last"}')
    source = open_source(tmp_path)
    samples, failures = read(source)
    assert [(sample.meta["source_key"], sample.captions) for sample in samples] == [
        ("images/0.jpg", ("one", "last")),
        ("./images/1.jpg", ("two", "three")),
        ("images/2.jpg", ("four",)),
    ]
    assert samples[0].meta["extra"] == 1
    assert Counter(failure.code for failure in failures) == {"no_image": 4, "bad_json": 2}
    assert "images/gone.jpg" in failures[0].message and failures[0].key == "all.jsonl:4"
    before = source.units()
    (tmp_path / "images/0.jpg").write_bytes(noise(0) + b"longer")
    assert open_source(tmp_path).units() != before, "the images are part of the unit's identity"


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        open_source(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=r"has no \.tar, \.parquet.*no images with captions \(it holds no files\)"
    ):
        open_source(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds \.zip"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"unknown extension '\.zip'"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="Protocol not known: pipe"):
        open_source("pipe:curl http://x/0.tar".replace("pipe:", "pipe://"))
    tarred(tmp_path / "0.tar", {})
    (tmp_path / "other.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"mixes \.tar and \.parquet"):
        open_source(tmp_path)


def test_a_remote_source(tmp_path: Path) -> None:
    data = tarred(tmp_path / "0.tar", {"a.jpg": noise(0), "a.txt": "x"}).read_bytes()
    store = Store("memory://hyco-source-test")
    store.replace("0.tar", data)
    for url in ("memory://hyco-source-test", "memory://hyco-source-test/0.tar"):
        samples, failures = read(open_source(url))
        assert [sample.captions for sample in samples] == [("x",)] and not failures
    with pytest.raises(FileNotFoundError):
        open_source("memory://hyco-source-test/gone")


@pytest.mark.skipif(not FLICKR.is_dir(), reason=f"no photographs in {FLICKR}")
def test_flickr8k_brings_five_captions(tmp_path: Path) -> None:
    source = open_source(FLICKR)
    assert len(source.units()) == 10
    failures: list[Failure] = []
    samples = list(source.samples(source.units()[0], failures.append))
    assert len(samples) == 500 and not failures
    assert {len(sample.captions) for sample in samples} == {5}
    assert samples[0].captions[0] == samples[0].meta["caption"].strip()
