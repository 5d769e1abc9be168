"""No image is ever paired with a text across a name that comes again in a tar."""

import itertools
import json
from pathlib import Path

import pytest

from hyco.pipeline.sources.source import open_source
from tests.factories.files import noise, tarred
from tests.pipeline.sources.test_source import read

Members = list[tuple[str, bytes]]


def sample(key: str, number: int, order: str = "it") -> Members:
    both = {"i": (f"{key}.jpg", noise(number)), "t": (f"{key}.txt", f"caption {number}".encode())}
    return [both[which] for which in order]


def shard(first: int, count: int) -> Members:
    return [member for n in range(count) for member in sample(f"{n:06d}", first + n)]


def pairs(path: Path) -> tuple[dict[bytes, tuple[str, ...]], dict[str, str]]:
    samples, failures = read(open_source(path))
    return {s.image: s.captions for s in samples}, {f.key: f.code for f in failures}


def right(numbers: range | list[int]) -> dict[bytes, tuple[str, ...]]:
    return {noise(n): (f"caption {n}",) for n in numbers}


def test_two_shards_with_the_same_keys_joined_are_read_as_webdataset_does(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", shard(0, 20) + shard(100, 20))
    found, failures = pairs(path)
    assert failures == {} and found == right([*range(20), *range(100, 120)])
    theirs = pytest.importorskip("webdataset").WebDataset(str(path), shardshuffle=False)
    assert {item["jpg"]: (item["txt"].decode(),) for item in theirs} == found


def test_a_file_that_was_appended_is_a_failure_by_name(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", [*shard(0, 3), ("000001.txt", b"caption of another")])
    found, failures = pairs(path)
    assert found == right(range(3)) and failures == {"000001": "no_image"}
    (failure,) = read(open_source(path))[1]
    assert "names come again (000001.txt)" in failure.message


def test_joined_archives_that_lack_members_never_exchange_them(tmp_path: Path) -> None:
    """Every way to lose a member of each archive's two samples, in both orders of members."""
    one, two = [*sample("0", 0), *sample("1", 1)], [*sample("0", 10), *sample("1", 11)]
    turned = [*sample("0", 10, "ti"), *sample("1", 11, "ti")]
    for second in (two, turned):
        for lost, gone in itertools.product(
            itertools.chain([()], itertools.combinations(range(4), 1)), repeat=2
        ):
            members = [m for n, m in enumerate(one) if n not in lost]
            members += [m for n, m in enumerate(second) if n not in gone]
            if len({name for name, _ in members}) == len(members):
                continue  # nothing comes again: one archive, as far as anybody can tell
            found, _ = pairs(tarred(tmp_path / "x.tar", members))
            wrong = {image: said for image, said in found.items() if right([0, 1, 10, 11])[image] != said}
            assert not wrong, (lost, gone)


def test_a_missing_caption_is_not_taken_from_the_next_archive(tmp_path: Path) -> None:
    first = [("0.jpg", noise(0)), *sample("1", 1)]
    second = [("0.txt", b"caption of another"), *sample("1", 11)]
    found, failures = pairs(tarred(tmp_path / "x.tar", first + second))
    assert found == right([1, 11]) and set(failures) == {"0"}


def test_other_extensions_of_a_name_that_comes_again(tmp_path: Path) -> None:
    joined = [("0.png", noise(0)), ("0.txt", b"caption 0"), *sample("1", 1)]
    joined += [("0.jpg", noise(10)), ("0.json", b'{"caption": "caption 10"}'), *sample("1", 11)]
    found, failures = pairs(tarred(tmp_path / "x.tar", joined))
    assert found == right([0, 1, 10, 11]) and failures == {}
    alone = [("0.png", noise(0)), ("0.txt", b"caption 0"), ("1.jpg", noise(1)), ("1.txt", b"caption 1")]
    alone += [("0.jpg", noise(10)), ("0.json", b'{"caption": "caption 10"}')]
    assert pairs(tarred(tmp_path / "y.tar", alone)) == (right([0, 1, 10]), {})


def test_one_sample_shards_joined(tmp_path: Path) -> None:
    for order in ("it", "ti"):
        path = tarred(
            tmp_path / "x.tar", [*sample("0", 0, order), *sample("0", 1, order), *sample("0", 2, order)]
        )
        assert pairs(path) == (right(range(3)), {})


def test_members_in_any_order_are_paired_where_no_name_comes_again(tmp_path: Path) -> None:
    members = [
        *((f"{n}.jpg", noise(n)) for n in range(5)),
        *((f"{n}.txt", f"caption {n}".encode()) for n in range(5)),
    ]
    members += [(f"{n}.json", b'{"a": 1}') for n in range(5)]
    assert pairs(tarred(tmp_path / "x.tar", members)) == (right(range(5)), {})
    assert pairs(tarred(tmp_path / "x.tar", members[::-1])) == (right(range(5)), {})


def test_joined_archives_sorted_by_kind_are_right_or_failures_by_name(tmp_path: Path) -> None:
    def sorted_by_kind(first: int) -> Members:
        return sorted(shard(first, 4), key=lambda member: member[0].rpartition(".")[2])

    found, failures = pairs(tarred(tmp_path / "x.tar", sorted_by_kind(0) + sorted_by_kind(10)))
    assert right([10, 11, 12, 13]).items() <= found.items() <= right([*range(4), *range(10, 14)]).items()
    assert set(failures) <= {f"{n:06d}" for n in range(4)}


def test_an_empty_txt_beside_a_json_and_other_names_of_captions(tmp_path: Path) -> None:
    members: Members = [("0.jpg", noise(0)), ("0.txt", b" \n"), ("0.json", b'{"caption": "caption 0"}')]
    for n, suffix in enumerate(("caption", "text", "cap"), start=1):
        members += [(f"{n}.jpg", noise(n)), (f"{n}.{suffix}", f"caption {n}".encode())]
    members += [("4.jpg", noise(4)), ("4.txt", b""), ("4.caption", b"caption 4")]
    assert pairs(tarred(tmp_path / "x.tar", members)) == (right(range(5)), {})


def test_an_image_alone_is_told_how_captions_are_named(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", [("0.jpg", noise(0)), ("0.label", b"a dog"), *sample("1", 1)])
    (failure,) = read(open_source(path))[1]
    assert failure.code == "no_caption" and ".txt, .caption or .json" in failure.message


def test_names_in_messages_and_tables_are_cut(tmp_path: Path) -> None:
    long = "n" * 500_000
    members: Members = [(f"{long}0.jpg", b"no image"), (f"{long}0.txt", b"x"), (f"{long}1.jpg", noise(1))]
    members += [(f"{long}2.jpg", noise(2)), (f"{long}2.json", json.dumps({"caption": 3}).encode())]
    members += [
        (f"{long}3.jpg", noise(3)),
        (f"{long}3.txt", b"x"),
        (f"{long}4.jpg", noise(4)),
        (f"{long}4.txt", bytes(2 << 20)),
    ]
    path = tarred(tmp_path / "x.tar", members)
    samples, failures = read(open_source(path))
    assert len(samples) == 1 and len(samples[0].meta["source_key"]) < 250
    assert len(failures) == 4 and len({failure.key for failure in failures}) == 4
    assert all(len(failure.key) < 250 and len(failure.message) <= 500 for failure in failures)
    path.write_bytes(path.read_bytes()[: 500_000 * 2])
    source = open_source(path)
    for unit in source.units():
        try:
            list(source.samples(unit, failures.append))
        except ValueError as error:
            assert len(str(error)) < 500
        else:
            raise AssertionError("a cut tar was read")
