"""One value that pyarrow cannot give to Python costs its own row or column, never the file."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.sources import parquet_rows
from hyco.pipeline.sources.source import open_source
from tests.factories.files import noise
from tests.pipeline.sources.test_source import read

BAD = b"caf\xe9 of the dog"


def text(values: list[bytes | str | None]) -> pa.Array:
    """A string column of bytes as they are, UTF-8 or not."""
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return pa.array(raw, pa.binary()).view(pa.string())


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": [noise(n) for n in range(3)], **columns}), path)
    return path


def test_a_caption_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    samples, failures = read(open_source(write(tmp_path / "0.parquet", caption=text(["one", BAD, "three"]))))
    assert [sample.captions for sample in samples] == [("one",), ("three",)]
    assert [(failure.key, failure.code) for failure in failures] == [("0.parquet:1", "bad_text")]


def test_a_caption_that_is_not_utf8_among_others_is_set_aside(tmp_path: Path) -> None:
    entries = pa.ListArray.from_arrays([0, 2, 4, 5], text(["one", BAD, BAD, "two", BAD]))
    (first, second), failures = read(open_source(write(tmp_path / "a.parquet", captions=entries)))
    assert first.captions == ("one",) and second.captions == ("two",)
    assert [failure.code for failure in failures] == ["bad_text"]
    path = write(tmp_path / "b.parquet", caption_0=text([BAD] * 3), caption_1=text(["x", "y", BAD]))
    samples, failures = read(open_source(path))
    assert [sample.captions for sample in samples] == [("x",), ("y",)]
    assert [failure.code for failure in failures] == ["bad_text"]


def test_values_that_nobody_needs_are_left_out(tmp_path: Path) -> None:
    times = pa.array([1, 1_000, None], pa.timestamp("ns"))
    pairs = [pa.field("a", pa.int64()), pa.field("a", pa.int64())]
    others = {
        "taken": times,
        "late": pa.array([2**62, 0, 0], pa.timestamp("ms")),
        "name": text(["x", BAD, "z"]),
        "twins": pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, fields=pairs),
        "day": [datetime.date(2020, 1, 1)] * 3,
        "size": [1, None, 3],
    }
    samples, failures = read(
        open_source(write(tmp_path / "0.parquet", caption=["one", "two", "three"], **others))
    )
    assert failures == [] and len(samples) == 3
    assert [{**sample.meta, "source_key": ""} for sample in samples] == [
        {"name": "x", "size": 1, "source_key": ""},
        {"source_key": ""},
        {"name": "z", "size": 3, "source_key": ""},
    ]


def test_the_path_beside_an_image_need_be_no_text(tmp_path: Path) -> None:
    image = pa.StructArray.from_arrays(
        [pa.array([noise(n) for n in range(3)]), text([BAD] * 3)], ["bytes", "path"]
    )
    pq.write_table(
        pa.table({"image": image, "text": ["one", "two", "three"], "key": text(["k", BAD, "m"])}),
        tmp_path / "0.parquet",
    )
    samples, failures = read(open_source(tmp_path))
    assert [sample.meta["source_key"] for sample in samples] == ["k", "0.parquet:1", "m"] and failures == []


def test_a_damaged_page_of_a_column_nobody_needs(tmp_path: Path) -> None:
    notes = [f"note {n} {'x' * n}" for n in range(3)]
    path = write(tmp_path / "0.parquet", caption=["one", "two", "three"], note=notes)
    table = pq.ParquetFile(path)
    column = table.metadata.row_group(0).column(table.schema_arrow.names.index("note"))
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(bytes(data))
    samples, failures = read(open_source(path))
    assert [sample.captions for sample in samples] == [("one",), ("two",), ("three",)] and failures == []
    assert all("note" not in sample.meta for sample in samples)


def test_nested_values_beyond_any_reader_are_left_out(tmp_path: Path) -> None:
    value: Any = 1
    kind = pa.int64()
    for _ in range(80):
        value, kind = {"a": value}, pa.struct([("a", kind)])
    path = write(tmp_path / "0.parquet", caption=["one", "two", "three"], deep=pa.array([value] * 3, kind))
    samples, failures = read(open_source(path))
    assert len(samples) == 3 and not failures and all("deep" not in sample.meta for sample in samples)


def test_rows_that_img2dataset_could_not_download(tmp_path: Path) -> None:
    columns = {
        "jpg": [noise(0), None, None],
        "caption": ["one", "two", "three"],
        "status": ["success", "failed_to_download", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    samples, failures = read(open_source(tmp_path))
    assert len(samples) == 1
    assert [failure.code for failure in failures] == ["not_downloaded", "no_image"]


def test_columns_stay_in_step_over_many_batches(tmp_path: Path) -> None:
    count = 3 * parquet_rows._BATCH + 5
    columns = {
        "image": [noise(n) for n in range(count)],
        "text": [f"a dog {n}" for n in range(count)],
        "n": range(count),
    }
    pq.write_table(
        pa.table({name: list(column) for name, column in columns.items()}),
        tmp_path / "0.parquet",
        row_group_size=37,
    )
    samples, _ = read(open_source(tmp_path))
    assert [(s.image, s.captions, s.meta["n"]) for s in samples] == [
        (noise(n), (f"a dog {n}",), n) for n in range(count)
    ]


def test_a_fault_of_the_disk_in_a_column_nobody_needs_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "0.parquet", caption=["one", "two", "three"], note=["a", "b", "c"])
    real = parquet_rows._scalars

    def scalars(table: pq.ParquetFile, name: str) -> Iterator[pa.Scalar]:
        if name == "note":
            raise OSError(5, "Input/output error")
        return real(table, name)

    monkeypatch.setattr(parquet_rows, "_scalars", scalars)
    with pytest.raises(OSError, match="Input/output error"):
        read(open_source(path))
