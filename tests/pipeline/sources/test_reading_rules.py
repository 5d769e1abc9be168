"""What older rules read otherwise is known; lines, pipes and deep JSON cost themselves only."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.sources import readers
from hyco.pipeline.sources.source import open_source
from hyco.storage.store import Store
from tests.factories.files import noise, tarred
from tests.pipeline.sources.test_source import read
from tests.pipeline.sources.test_tar_rows import shard


def otherwise(path: Path) -> bool:
    source = open_source(path)
    (unit,) = source.units()
    return source.read_otherwise(unit, 1)


@pytest.mark.parametrize(
    ("members", "marked"),
    [
        ({"0.jpg": noise(0), "0.txt": "a < b & c, 5 <3"}, False),
        (
            {
                "0.jpg": noise(0),
                "0.json": '{"caption": "a dog", "url": "http://x/?a=1&copy=2", "alt": "<b>x</b>"}',
            },
            False,
        ),
        ({"0.jpg": noise(0), "0.txt": "salt &amp; pepper"}, True),
        ({"0.jpg": noise(0), "0.json": '{"captions": ["a dog", "\\u003cb>a cat\\u003c/b>"]}'}, True),
        ({"0.jpg": noise(0), "0.json": '{"caption": [1, {"a": "&amp;"}]}'}, False),
        ({"0.jpg": noise(0), "0.json": "&amp; no json"}, False),
    ],
)
def test_a_tar_that_is_read_otherwise(tmp_path: Path, members: dict[str, bytes | str], marked: bool) -> None:
    assert otherwise(tarred(tmp_path / "0.tar", members)) is marked


def test_joined_tars_and_damaged_ones(tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", shard(0, 2) + shard(5, 2))
    assert otherwise(path)
    whole = path.read_bytes()
    for end in (0, 100, 600):
        path.write_bytes(whole[:end])
        assert not otherwise(path)


def test_parquet_and_jsonl_that_are_read_otherwise(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(noise(0))
    for said, marked in (("a dog & <3", False), ("a dog &lt;3", True)):
        path = tmp_path / "0.parquet"
        columns = {"image": [noise(0)], "caption_0": ["x"], "caption_1": [said], "note": ["&amp;"]}
        pq.write_table(pa.table(columns), path)
        assert otherwise(path) is marked
        path = tmp_path / "0.jsonl"
        path.write_text(json.dumps({"file": "0.jpg", "caption": said, "note": "&amp;"}) + "\n")
        assert otherwise(path) is marked


def test_a_pipe_or_a_folder_that_a_jsonl_names_is_a_failure(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "0.jpg").write_bytes(noise(0))
    lines = [{"file": name, "caption": "a dog"} for name in ("pipe.jpg", "folder.jpg", "0.jpg")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples, failures = read(open_source(tmp_path / "x.jsonl"))
    assert len(samples) == 1 and [failure.code for failure in failures] == ["no_image"] * 2
    assert all("not a regular file" in failure.message for failure in failures)


def test_pipes_among_the_files_of_a_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "00001.tar")
    with pytest.raises(ValueError, match=r"00001\.tar is a pipe or a device: give a file or a folder"):
        open_source(tmp_path / "00001.tar")
    tarred(tmp_path / "00000.tar", {"0.jpg": noise(0), "0.txt": "x"})
    assert [unit.path for unit in open_source(tmp_path).units()] == ["00000.tar"]


class Counted:
    """A jsonl with one endless line, which notes the most bytes asked for at once."""

    def __init__(self, length: int, tail: bytes) -> None:
        self.left, self.tail, self.most = length, tail, 0

    def readline(self, size: int = -1) -> bytes:
        assert size > 0, "a line is never read without a bound"
        self.most = max(self.most, size)
        if self.left:
            taken = min(size, self.left)
            self.left -= taken
            return b"x" * taken + (b"\n" if not self.left and taken < size else b"")
        line, self.tail = self.tail, b""
        return line


def test_a_line_of_any_length_is_read_in_bounded_pieces() -> None:
    file = Counted(300 << 20, b'{"a": 1}\n')
    assert list(readers.lines(file, 1 << 16)) == [None, b'{"a": 1}\n']  # type: ignore[arg-type]
    assert file.most <= (1 << 16) + 1


def test_a_long_line_costs_itself_in_the_identity_too(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(noise(0))
    row = json.dumps({"file": "0.jpg", "caption": "a dog"})
    (tmp_path / "x.jsonl").write_text(f"{row}\n{json.dumps({'file': 'y' * (2 << 20)})}\n{row}")
    assert readers.jsonl_sizes(Store(tmp_path), "x.jsonl") == [len(noise(0)), -1, len(noise(0))]
    samples, failures = read(open_source(tmp_path / "x.jsonl"))
    assert len(samples) == 1 and [failure.code for failure in failures] == ["bad_json"]


@pytest.mark.parametrize("depth", [65, 900, 980, 5000])
def test_deep_json_is_refused_where_it_is_read(tmp_path: Path, depth: int) -> None:
    deep = '{"caption": "a dog", "deep": ' + "[" * depth + "]" * depth + "}"
    fine = '{"caption": "a cat", "deep": ' + "[" * 63 + "]" * 63 + "}"
    path = tarred(tmp_path / "x.tar", {"0.jpg": noise(0), "0.json": deep, "1.jpg": noise(1), "1.json": fine})
    samples, failures = read(open_source(path))
    assert [sample.captions for sample in samples] == [("a cat",)]
    assert [(failure.key, failure.code) for failure in failures] == [("0", "bad_json")]


def test_labels_of_an_image_met_twice_follow_its_captions(tmp_path: Path) -> None:
    def told(captions: list[str], phrase: str, caption: int) -> str:
        label = {"phrase": phrase, "caption": caption, "span": [0, len(phrase)], "box": [0, 0, 1, 1]}
        return json.dumps({"captions": captions, "objects": [label]})

    members = {"0.jpg": noise(0), "0.json": told(["a dog", "a cat"], "a cat", 1)}
    members |= {"1.jpg": noise(0), "1.json": told(["a cat", "a bird"], "a bird", 1)}
    (sample,), _ = read(open_source(tarred(tmp_path / "x.tar", members)))
    assert sample.captions == ("a dog", "a cat", "a bird")
    assert [(sample.captions[label["caption"]], label["phrase"]) for label in sample.meta["objects"]] == [
        ("a cat", "a cat"),
        ("a bird", "a bird"),
    ]
