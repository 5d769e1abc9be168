import io
import json
import math
import random
import re
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

import hyco.storage.tar
from hyco.storage.sample import Part, TrainingSample, content_key
from hyco.storage.shard import read_shard, write_shard
from hyco.storage.tar import TornTarError, read_members, write_end, write_member
from tests.factories.files import named, tar_bytes


def sample(number: int, parts: int = 2) -> TrainingSample:
    image = b"\xff\xd8 image %d" % number
    return TrainingSample(
        content_key(image),
        image,
        (f"first caption of {number}", "zweite Überschrift \u2713"),
        tuple(
            Part(
                b"part %d" % i, f"phrase {i}", (0.1, 0.2, 0.5, 0.75), 0.5 + i / 8, (i, i + 8), i % 2, "chunk"
            )
            for i in range(parts)
        ),
        {
            "source_key": f"000{number}",
            "url": "http://x",
            "objects": [{"box": [0, 0, 1, 1]}],
            "odd": "\ud800",
        },
    )


def shard(samples: Iterable[TrainingSample]) -> bytes:
    file = io.BytesIO()
    write_shard(file, samples)
    return file.getvalue()


def of_size(size: int) -> bytes:
    """The header of a member that claims this size."""
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_round_trip_and_equal_bytes() -> None:
    samples = [sample(i, parts) for i, parts in enumerate((2, 0, 12))]
    data = shard(samples)
    assert list(read_shard(io.BytesIO(data), samples=3)) == samples
    assert shard(samples) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    assert {(i.mtime, i.uid, i.gid, i.uname, i.mode) for i in infos} == {(0, 0, 0, "", 0o644)}
    suffixes = [i.name.partition(".")[2] for i in infos if i.name.startswith(samples[0].key)]
    published = [
        "child.jpg",
        "child.txt",
        "numparents.txt",
        "parent000.jpg",
        "parent000.txt",
        "parent001.jpg",
    ]
    assert suffixes == [*published, "parent001.txt", "meta.json"]


def test_plain_webdataset_reads_it(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    samples = [sample(i) for i in range(3)]
    (tmp_path / "00000.tar").write_bytes(shard(samples))
    read = list(wds.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [found["__key__"] for found in read] == [made.key for made in samples]
    for found, made in zip(read, samples, strict=True):
        assert found["child.jpg"] == made.image
        assert found["child.txt"].decode() == made.captions[0]
        assert int(found["numparents.txt"]) == 2
        assert found["parent000.jpg"] == made.parts[0].image
        assert found["parent001.txt"].decode() == made.parts[1].phrase
        meta = json.loads(found["meta.json"])
        assert meta["captions"] == list(made.captions)
        assert meta["parts"][1]["caption"] == 1
        assert meta["parts"][1]["span"] == [1, 9]
        assert meta["source_key"] == made.meta["source_key"]


def test_a_shard_without_meta_is_read_as_published() -> None:
    """As HyCoCLIP's own tools write it: no meta.json, keys of digits, a folder before the name."""
    members = {"child.jpg": b"i", "child.txt": b"a dog", "numparents.txt": b"1\n"}
    parent = {"parent000.jpg": b"p", "parent000.txt": b"dog"}
    data = tar_bytes(named("./grit/000001234", {**members, **parent}))
    (found,) = read_shard(io.BytesIO(data))
    assert (found.key, found.captions, found.image) == ("000001234", ("a dog",), b"i")
    (part,) = found.parts
    assert (part.image, part.phrase, part.span, part.rule) == (b"p", "dog", (-1, -1), "")
    assert math.isnan(part.score) and all(map(math.isnan, part.box))
    assert next(read_shard(io.BytesIO(shard([found])))).parts[0].span == (-1, -1), "unknown stays unknown"


def test_every_cut_is_noticed() -> None:
    """At each 512-byte boundary, member boundaries included, where tarfile itself ends without a word."""
    data = shard([sample(i) for i in range(2)])
    silent = 0
    for end in range(0, len(data) - 512, 512):
        with pytest.raises(ValueError, match="shard"):
            list(read_shard(io.BytesIO(data[:end]), samples=2))
        try:
            with tarfile.open(fileobj=io.BytesIO(data[:end])) as tar:
                silent += len(tar.getnames()) < 16
        except tarfile.TarError:
            pass
    assert silent > 10, "tarfile would have missed these"


def test_a_cut_made_to_look_whole_is_caught_by_the_count() -> None:
    data = shard([sample(i, parts=0) for i in range(2)])
    half = len(shard([sample(0, parts=0)])) - 1024
    forged = data[:half] + bytes(1024)
    assert len(list(read_shard(io.BytesIO(forged)))) == 1
    with pytest.raises(TornTarError, match="holds 1 samples, its record says 2"):
        list(read_shard(io.BytesIO(forged), samples=2))


def test_a_missing_part_is_caught() -> None:
    data = tar_bytes(named("k", {"child.jpg": b"i", "child.txt": b"t", "numparents.txt": b"1"}))
    with pytest.raises(ValueError, match=r"sample k has no parent000\.jpg"):
        list(read_shard(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(sample(0), key="a.b"), "'a.b' does not match"),
        (replace(sample(0), key="A"), "'A' does not match"),
        (replace(sample(0), captions=()), "has no caption"),
        (replace(sample(0), parts=sample(0).parts * 501), "has 1002 parts"),
    ],
)
def test_unlawful_samples_are_refused(bad: TrainingSample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard([bad])


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="appears twice"):
        shard([sample(0), sample(0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x is empty"),
        (b"not a tar", "x is not a tar archive"),
        (b"PK\x03\x04" + b"z" * 4000, "x is not a tar archive"),
        (bytes(600) + b"z", "begins with zeros"),
        (shard([sample(0)])[:-1024] + b"garbage!" * 128, "broken header at byte"),
        (
            shard([sample(0)]) + shard([sample(1)]),
            r"after its end-of-archive mark \(two concatenated archives\?\)",
        ),
        (of_size(-4096) + bytes(8192), r"broken header at byte 0 \(a size of -4096\)"),
    ],
)
def test_what_is_no_tar(data: bytes, message: str) -> None:
    with pytest.raises(TornTarError, match=message):
        list(read_members(io.BytesIO(data), "x"))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers_are_understood(format: int) -> None:
    """Long and foreign names, empty files, folders and links, unread members, a stream that cannot seek."""
    file = io.BytesIO()
    long = "/".join(["folder" * 8] * 4) + "/name.jpg"
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, kind, data in [
            ("dir", tarfile.DIRTYPE, b""),
            ("empty.txt", tarfile.REGTYPE, b""),
            (long, tarfile.REGTYPE, b"x" * 513),
            ("link", tarfile.SYMTYPE, b""),
            ("skipped.bin", tarfile.REGTYPE, b"y" * 3000),
            ("größe.txt", tarfile.REGTYPE, b"z" * 512),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd" if name == "link" else ""
            tar.addfile(info, io.BytesIO(data))

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.bytes = io.BytesIO(file.getvalue())

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return self.bytes.read(min(size, 100))  # short reads, as sockets give

    found = {m.name: m.read() if m.name != "skipped.bin" else None for m in read_members(Pipe(), "x")}  # type: ignore[arg-type]
    assert found == {
        "empty.txt": b"",
        long: b"x" * 513,
        "skipped.bin": None,
        "größe.txt": b"z" * 512,
    }


@pytest.mark.parametrize(
    "meta",
    [
        "[" * 5000 + "]" * 5000,
        "[1, 2]",
        "{",
        '{"parts": 3}',
        '{"parts": [{"span": 7, "box": 1}]}',
        '{"captions": 5}',
    ],
)
def test_a_record_that_cannot_be_read_names_its_sample(meta: str) -> None:
    file = io.BytesIO()
    key = "0" * 32
    members = {"child.jpg": b"x", "child.txt": b"x", "numparents.txt": b"1", "parent000.jpg": b"x"}
    for suffix, data in {**members, "parent000.txt": b"x", "meta.json": meta.encode()}.items():
        write_member(file, f"{key}.{suffix}", data)
    write_end(file)
    file.seek(0)
    with pytest.raises(ValueError, match=f"x.tar: sample {key} cannot be read"):
        list(read_shard(file, "x.tar"))


def test_headers_are_those_of_tarfile() -> None:
    draw = random.Random(0)
    for _ in range(5000):
        length, size = (
            draw.choice((1, 5, 50, 99, 100, 101, 150)),
            draw.choice((0, 1, 511, 8**11 - 1, 8**11, 10**6)),
        )
        info = tarfile.TarInfo("".join(draw.choice("abcXYZ019/._é") for _ in range(length)))
        info.size = size
        try:
            expected = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                hyco.storage.tar._header(info.name, size)
            continue
        assert hyco.storage.tar._header(info.name, size) == expected
        damaged = bytearray(expected)
        damaged[draw.randrange(512)] ^= 1 << draw.randrange(8)
        for header in (expected, bytes(damaged)):
            try:
                read = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                assert hyco.storage.tar._plain(header) is None
                continue
            plain = hyco.storage.tar._plain(header)
            assert plain is None or (*plain, tarfile.REGTYPE) == (read.name, read.size, read.type)
