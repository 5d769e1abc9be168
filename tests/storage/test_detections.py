import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.storage.detections import (
    FAILURES,
    SCHEMA,
    read_detections,
    read_failures,
    write_detections,
    write_failures,
)
from hyco.storage.sample import Failure

ROW: dict[str, Any] = {
    "key": "k",
    "caption": 0,
    "text": "a dog",
    "image_sha256": "ab",
    "width": 10,
    "height": 20,
    "detector": "d",
    "rules": "r",
}


def test_round_trip() -> None:
    boxed = ROW | {"phrase": "a dog", "span_start": 0, "span_end": 5, "rule": "chunk", "expression": "a dog"}
    boxed |= {"x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4, "score": 0.5}
    file = io.BytesIO()
    assert write_detections(file, [boxed, ROW]) == 2
    file.seek(0)
    table = read_detections(file)
    assert table.schema.equals(SCHEMA)
    first, second = table.to_pylist()
    assert first["score"] == 0.5 and first["phrase"] == "a dog"
    assert second["phrase"] is None and second["x0"] is None
    again = io.BytesIO()
    write_detections(again, table)
    assert again.getvalue() == file.getvalue()


def test_empty_tables_keep_their_columns() -> None:
    for write, read, schema in (
        (write_detections, lambda file: read_detections(file).schema, SCHEMA),
        (write_failures, lambda file: pq.read_schema(file), FAILURES),
    ):
        file = io.BytesIO()
        write(file, [])
        file.seek(0)
        assert read(file).names == schema.names


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"scor": 1}, r"unknown columns \['scor'\]"),
        ({**ROW, "key": None}, r"has no \['key'\]"),
    ],
)
def test_wrong_rows(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_detections(io.BytesIO(), [row])
    with pytest.raises(ValueError, match="expected"):
        write_detections(io.BytesIO(), pa.table({"key": ["k"]}))


def test_failures() -> None:
    failures = [Failure("a", "source", "zero_byte", "x"), Failure("b", "ground", "oom", "y", 2, True)]
    file = io.BytesIO()
    write_failures(file, failures)
    file.seek(0)
    assert read_failures(file) == failures
    with pytest.raises(ValueError, match="not a detections file: no column caption"):
        read_detections(file)
    with pytest.raises(ValueError, match="not a failures file"):
        read_failures(io.BytesIO(b"nothing of the kind"))
