# ruff: noqa: F811  (fixtures)
"""A source that changes while it is worked on: a look uses what it was when the look began."""

import shutil

import pytest

from hyco.pipeline.evaluation.mined_boxes import phrase_quality
from hyco.pipeline.mining.mine import mine_all, mine_shard, plan, summary
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.source import UnitGoneError, open_source
from hyco.storage.home import Home
from hyco.storage.store import Store
from hyco.storage.versions import Versions
from tests.factories.mining import config, detector, home, samples, source, write_tar  # noqa: F401  (fixtures are used by name)

PACK = PackConfig(image_size=16, threshold=0.1, min_area_px=None, gate=QualityConfig(max_failed=None))


def keys(version, home):
    """The number of samples of a version, which must be whole."""
    versions = Versions(Store(home))
    assert versions.verify(version) == []
    return version.counts["images"]


def while_mining(detector, change):
    """Call `change` once, when the first image is looked at."""
    changes = [change]
    detector.refuse = lambda images: changes.pop()() if changes else None


def test_with_a_steady_feeder_every_look_makes_a_version(source, home, detector):
    mine, fed = config(source), []

    def feed(images):
        if len(images) > 1:  # once a unit
            fed.append(f"0000{len(fed) + 2}.tar")
            write_tar(source / fed[-1], samples(2, start=20 + 2 * len(fed)))

    detector.refuse = feed
    for looks, units in ((1, 2), (2, 4), (3, 6)):
        assert mine_all(mine, Home(home), InProcess())["units"] == units, "what it was when the look began"
        with pytest.raises(ValueError, match=r"are not mined .* run mine with this config first"):
            pack(mine, PACK, Home(home))
        version = pack(mine, PACK, Home(home), mined_only=True)
        assert keys(version, home) == 9 + 2 * (units - 2)
        assert len(Versions(Store(home)).names()) == looks
    assert len(plan(mine, Home(home)).pending) == len(fed) - 4, "what came meanwhile is the next one's"


def test_a_unit_that_is_removed_while_its_neighbour_is_mined_is_left_out(source, home, detector):
    mine = config(source)
    while_mining(detector, (source / "00001.tar").unlink)
    found = mine_all(mine, Home(home), InProcess())
    assert (found["units"], found["units_done"], found["images"]) == (1, 1, 5)
    assert keys(pack(mine, PACK, Home(home)), home) == 5


def test_a_unit_that_is_replaced_is_not_mined_under_the_name_of_the_old_one(source, home, detector):
    mine = config(source)
    before = {unit.name for unit in open_source(source).units()}
    while_mining(detector, lambda: write_tar(source / "00001.tar", samples(3, start=30)))
    assert mine_all(mine, Home(home), InProcess())["images"] == 5
    assert keys(pack(mine, PACK, Home(home), mined_only=True), home) == 5
    (new,) = plan(mine, Home(home)).pending
    assert new.path == "00001.tar" and new.name not in before
    assert mine_all(mine, Home(home), InProcess())["images"] == 8
    assert keys(pack(mine, PACK, Home(home)), home) == 8


def test_nothing_is_yielded_of_a_file_that_changes_while_it_is_read(tmp_path):
    write_tar(tmp_path / "0.tar", [("bad", b"no image", {"captions": ["x"]}), *samples(2)])
    write_tar(tmp_path / "1.tar", samples(2, start=7))
    opened = open_source(tmp_path)
    unit, other = opened.units()

    def replace(failure):  # called in the middle of reading
        shutil.copy(tmp_path / "1.tar", tmp_path / "0.tar")

    with pytest.raises(UnitGoneError, match=r"0\.tar was removed or changed"):
        next(opened.samples(unit, replace))
    (tmp_path / "1.tar").unlink()
    with pytest.raises(UnitGoneError, match=r"1\.tar was removed or changed"):
        next(opened.samples(other, lambda failure: None))


def test_the_listing_passes_over_a_file_that_vanishes_under_it(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", samples(1, start=number))
    opened = open_source(tmp_path)
    (tmp_path / "0.tar").unlink()
    assert [unit.path for unit in opened.units()] == ["1.tar"]


def test_a_jsonl_whose_images_still_come_is_the_next_looks(tmp_path, home, detector):
    folder = tmp_path / "lines"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        "".join(f'{{"image": "{n}.png", "caption": "a red block"}}\n' for n in "01")
    )
    made = dict(zip("01", samples(2), strict=True))
    (folder / "0.png").write_bytes(made["0"][1])
    mine = config(folder, error_budget=1.0)
    (unit,) = plan(mine, Home(home)).pending
    (folder / "1.png").write_bytes(made["1"][1])
    with pytest.raises(UnitGoneError, match=r"a\.jsonl was removed or changed"):
        mine_shard(mine, Home(home), unit)
    assert mine_all(mine, Home(home), InProcess())["images"] == 2


def test_a_file_of_another_kind_that_comes_meanwhile_stops_no_unit_of_the_listing(source, home, detector):
    mine = config(source)
    while_mining(detector, (source / "note.jsonl").touch)
    assert mine_all(mine, Home(home), InProcess())["images"] == 9


@pytest.mark.parametrize("when", ["before packing", "while packing"])
def test_a_unit_that_is_removed_before_it_is_packed_is_left_out(source, home, detector, when, monkeypatch):
    mine, real = config(source), packing.pack_shard
    mine_all(mine, Home(home), InProcess())

    def packed(*args, **options):
        (source / "00001.tar").unlink(missing_ok=True)
        return real(*args, **options)

    if when == "before packing":
        (source / "00001.tar").unlink()
    else:
        monkeypatch.setattr(packing, "pack_shard", packed)
    assert keys(pack(mine, PACK, Home(home)), home) == 5


def test_a_unit_that_is_packed_stays_in_the_version_of_this_look(source, home, detector, monkeypatch):
    """Packed already, so its images are needed no more: the listing that packing began with holds."""
    mine, real = config(source), packing.publish
    mine_all(mine, Home(home), InProcess())

    def publish(*args, **options):
        (source / "00001.tar").unlink(missing_ok=True)
        write_tar(source / "00002.tar", samples(1, start=40))
        return real(*args, **options)

    monkeypatch.setattr(packing, "publish", publish)
    assert keys(pack(mine, PACK, Home(home)), home) == 9


def test_when_nothing_is_mined_packing_says_so(source, home, detector):
    with pytest.raises(ValueError, match="2 of 2 units are not mined"):
        pack(config(source), PACK, Home(home), mined_only=True)


def test_the_report_of_mining_is_of_what_was_mined(source, home, detector):
    mine = config(source)
    mine_all(mine, Home(home), InProcess())
    told = [(key, image, {**meta, "objects": []}) for key, image, meta in samples(2, start=50)]
    write_tar(source / "00000-new.tar", told)  # sorts among the others
    assert phrase_quality(mine, Home(home))["images"] == 0, (
        "labels of a unit that is not mined are not asked for"
    )
    assert summary(mine, Home(home))["units_done"] == 2
    (source / "00001.tar").write_bytes(b"torn")
    assert phrase_quality(mine, Home(home))["images"] == 0
