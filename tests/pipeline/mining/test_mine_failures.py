"""What a bad sample, a foreign exception or a large image costs: its sample, up to the error budget."""

import io
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hyco.pipeline.config import digest, override
from hyco.pipeline.imaging.decode import MAX_BYTES
from hyco.pipeline.mining.mine import mine_all, mine_shard, plan, results, summary
from hyco.pipeline.mining.noun_phrases import NounExtractor
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.records import Limits
from hyco.storage.home import Home
from hyco.storage.store import Store
from tests.factories.mining import config, failures_of, picture, rows_of, samples, write_tar


def spoiled(source, count):
    """A shard of 10 samples of which `count` have images that cannot be decoded."""
    good = list(samples(10))
    bad = [(name, image[: len(image) // 2], meta) for name, image, meta in good[:count]]
    write_tar(source / "00000.tar", bad + good[count:])


def test_a_bad_image_is_a_failure_and_not_the_end(tmp_path, home, detector):
    spoiled(tmp_path / "s", 2)
    mine = config(tmp_path / "s", error_budget=0.2)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    failures = failures_of(record, home)
    assert record["images"] == 8 and record["failed"] == 2 == len(failures)
    assert {failure.code for failure in failures} == {"undecodable"} and record["failed_by_code"] == {
        "undecodable": 2
    }
    assert len(set(rows_of(record, home)["key"].to_pylist())) == 8
    assert summary(mine, Home(home))["failures_by_code"] == {"undecodable": 2}


def test_limits_are_part_of_the_configuration(source, home, detector):
    strict = config(source, error_budget=1.0, limits=Limits(max_pixels=16))
    record = mine_shard(strict, Home(home), plan(strict, Home(home)).pending[0])
    assert record["images"] == 0 and record["failed_by_code"] == {"too_many_pixels": 5}
    assert digest(strict) != digest(config(source))


def test_limits_can_be_raised(tmp_path, home, detector):
    large = picture("red") + bytes(MAX_BYTES)
    write_tar(tmp_path / "s" / "0.tar", [("a", large, {"captions": ["a red block"]})])
    for limits, images in ((Limits(), 0), (Limits(max_bytes=len(large)), 1)):
        mine = config(tmp_path / "s", error_budget=1.0, limits=limits)
        assert mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])["images"] == images


def test_past_the_error_budget_the_shard_is_named_and_nothing_is_visible(tmp_path, home, detector):
    spoiled(tmp_path / "s", 3)
    mine = config(tmp_path / "s", error_budget=0.2)
    with pytest.raises(
        ValueError, match=r"00000\.tar: 3 of 10 samples failed \(undecodable 3\).*20%.*error_budget"
    ):
        mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    assert Store(home).list(results(mine, Home(home)).prefix) == [] and plan(mine, Home(home)).done == []


def test_rows_that_were_never_downloaded_are_counted_and_no_failures(tmp_path, home, detector):
    images = [image if n % 2 else None for n, (_, image, _) in enumerate(samples(10))]
    columns = {
        "jpg": images,
        "caption": [f"a red block {n}" for n in range(10)],
        "status": ["failed_to_download" if image is None else "success" for image in images],
    }
    (tmp_path / "s").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "s" / "00000.parquet")
    mine = config(tmp_path / "s", error_budget=0.0)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    assert (record["images"], record["failed"], record["not_downloaded"]) == (5, 0, 5)
    found = summary(mine, Home(home))
    assert (found["failures"], found["not_downloaded"]) == (0, 5)
    manifest = results(mine, Home(home))
    (name,) = manifest.units()
    manifest.forget(name)
    manifest.commit(name, {key: value for key, value in record.items() if key != "not_downloaded"})
    assert summary(mine, Home(home))["not_downloaded"] == 0, "a record of an older Hyco"


@pytest.mark.parametrize(
    ("limits", "spoil"),
    [
        (Limits(max_caption=30), lambda meta, image: ({"captions": [f"a red block {'x' * 40}"]}, image)),
        (Limits(max_text=100), lambda meta, image: ({**meta, "more": "x" * 200}, image)),
        (Limits(max_bytes=700), lambda meta, image: (meta, image + bytes(700))),
        (Limits(max_pixels=16), lambda meta, image: (meta, image)),
    ],
)
def test_the_remedy_named_by_the_error_budget_works(tmp_path, home, detector, limits, spoil):
    rows = [(name, *reversed(spoil(meta, image))) for name, image, meta in samples(4)]
    write_tar(tmp_path / "s" / "0.tar", rows)
    mine = config(tmp_path / "s", limits=limits)
    with pytest.raises(ValueError, match="4 of 4 samples failed") as told:
        mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    field, *_ = re.findall(r"--set limits\.(max_\w+)=N", str(told.value))
    assert "error_budget=" not in str(told.value), "that would mine nothing"
    raised = override(mine, [f"limits.{field}=10000000"])
    assert mine_shard(raised, Home(home), plan(raised, Home(home)).pending[0])["images"] == 4


def test_the_error_budget_that_a_message_names_is_enough(tmp_path, home, detector):
    spoiled(tmp_path / "s", 3)
    mine = config(tmp_path / "s", error_budget=0.2)
    with pytest.raises(ValueError, match="Fix the shard, or raise error_budget") as told:
        mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    (budget,) = re.findall(r"--set (error_budget=[\d.]+)\)", str(told.value))
    raised = override(mine, [budget])
    assert mine_shard(raised, Home(home), plan(raised, Home(home)).pending[0])["images"] == 7


def test_a_poisoned_shard_is_named_and_the_others_are_mined(source, home, detector):
    (source / "00000.tar").write_bytes((source / "00001.tar").read_bytes()[:1000])
    mine = config(source)
    with pytest.raises(ValueError, match=r"00000\.tar"):
        mine_all(mine, Home(home), InProcess())
    assert [unit.path for unit in plan(mine, Home(home)).done] == ["00001.tar"]


def test_an_image_the_detector_cannot_bear_costs_only_itself(source, home, detector):
    def refuse(images):
        if any((image[-1, -1] == 2).all() for image in images):
            raise MemoryError("one image of bucket (800, 1333) does not fit")

    detector.refuse = refuse
    mine = config(source, error_budget=0.3)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    (failure,) = failures_of(record, home)
    assert failure.stage == "ground" and failure.code == "out_of_memory" and failure.retryable
    assert record["images"] == 4 and detector.calls == 6


class ForeignError(Exception):
    """Of no class that this project knows, as onnxruntime's and spaCy's are."""


def test_whatever_the_detector_raises_costs_only_its_image(source, home, detector):
    def refuse(images):
        if any((image[-1, -1] == 2).all() for image in images):
            raise ForeignError("no\nmore")

    detector.refuse = refuse
    mine = config(source, error_budget=0.3)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    (failure,) = failures_of(record, home)
    assert (failure.code, failure.message) == ("detector", "ForeignError: no") and record["images"] == 4


def test_whatever_the_parser_raises_costs_only_its_caption(source, home, detector, monkeypatch):
    parse = NounExtractor.__call__

    def refuse(self, captions):
        captions = [*captions]
        if any("green" in caption for caption in captions):
            raise ForeignError("[E999] no parse")
        return parse(self, captions)

    monkeypatch.setattr(NounExtractor, "__call__", refuse)
    mine = config(source, error_budget=0.5)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    failures = failures_of(record, home)
    assert record["images"] == 3 and record["captions"] == 6
    assert {(failure.stage, failure.code) for failure in failures} == {("nouns", "unreadable_caption")}
    assert failures[0].message == "ForeignError: [E999] no parse"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [5]),
        ({"chunk": 2}, [2, 2, 1]),
        ({"chunk_pixels": 3 * 60 * 40}, [3, 2]),
        ({"chunk_pixels": 3 * 60 * 40 - 1}, [2, 2, 1]),
        ({"chunk_pixels": 1}, [1, 1, 1, 1, 1]),
    ],
)
def test_images_decoded_at_a_time_are_bounded_by_number_and_by_pixels(source, home, detector, options, sizes):
    seen = []
    detector.refuse = lambda images: seen.append(len(images))
    mine = config(source, **options)
    assert digest(mine) == digest(config(source))
    assert mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])["images"] == 5
    assert seen == sizes


def test_an_image_that_will_not_be_decoded_takes_no_room(source, home, detector):
    """Its header says 9,000 x 9,000: refused, and the others share a chunk as without it."""
    large = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(large, "PNG")
    good = list(samples(4))
    write_tar(source / "00000.tar", [*good[:2], ("large", large.getvalue(), good[0][2]), *good[2:]])
    seen = []
    detector.refuse = lambda images: seen.append(len(images))
    mine = config(source, error_budget=0.5)
    record = mine_shard(mine, Home(home), plan(mine, Home(home)).pending[0])
    assert seen == [4] and record["failed_by_code"] == {"too_many_pixels": 1}
