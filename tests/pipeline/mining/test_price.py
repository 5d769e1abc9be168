"""The price of a run before it starts, beside what the run then does."""

import dataclasses

import pytest

from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import mine_all, plan, results
from hyco.pipeline.mining.price import lines, price
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.home import Home
from tests.factories.mining import config, picture, samples, write_tar


def run(made, home):
    mining._known.cache_clear()
    return mine_all(made, Home(home), InProcess())


def test_a_run_does_what_it_was_priced_at(source, home, detector):
    made = config(source)
    first = price(made, Home(home))
    assert (first.units, first.units_new, first.units_read) == (2, 2, 2) and not first.estimated
    assert (first.images_new, first.images_known, first.detector_images) == (9, 0, 9)
    assert first.bytes_to_read == sum(path.stat().st_size for path in source.iterdir())
    assert first.hours is first.images_per_second is first.bytes_to_write is None
    assert "mine a little first" in "\n".join(lines(first))
    assert detector.calls == 0 and plan(made, Home(home)).done == []
    run(made, home)
    again = price(made, Home(home))
    assert (again.units_new, again.images_new, again.detector_images, again.bytes_to_read) == (0, 0, 0, 0)
    assert lines(again) == ["source    2 units are mined, 0 are new (0.0 MB to read)"]

    write_tar(source / "00000.tar", [*samples(5), *samples(3, start=30)])
    write_tar(source / "00002.tar", [*samples(2, start=30), *samples(1, start=40)])
    asked, found = len(detector.asked), price(made, Home(home))
    assert (found.units_new, found.images_new, found.images_known, found.detector_images) == (2, 11, 7, 4)
    assert found.images_per_second and found.hours == pytest.approx(
        4 / found.images_per_second / 3600, abs=1e-4
    )
    assert found.bytes_to_write and "detector  4 images" in "\n".join(lines(found))
    run(made, home)
    assert len(detector.asked) - asked == 4


def test_units_beyond_the_seconds_are_estimated_by_their_bytes(source, home, detector):
    write_tar(source / "00002.tar", samples(20, start=40))
    found = price(config(source), Home(home), seconds=0)
    sizes = [path.stat().st_size for path in sorted(source.iterdir())]
    assert found.estimated and found.units_read == 1
    assert found.images_new == found.detector_images == round(5 * sum(sizes) / sizes[0])
    assert "estimated from 1 of the new units" in "\n".join(lines(found))


def test_other_rules_are_priced_at_the_captions_that_change_and_the_rate_of_the_earlier_ones(
    source, home, detector
):
    run(config(source), home)
    found = price(config(source, nouns={"max_phrases": 1}), Home(home))
    assert (found.images_known, found.detector_images) == (0, 9) and found.images_per_second
    found = price(config(source, max_captions=1), Home(home))
    assert (found.images_known, found.detector_images, found.hours) == (9, 0, 0.0)


def test_loose_images_and_files_that_cannot_be_read(tmp_path, home, detector):
    folder = tmp_path / "loose"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture("red", number))
        (folder / f"{number}.txt").write_text("a red block")
    found = price(config(folder), Home(home))
    assert found.images_new == 3 and found.bytes_to_read == sum(
        one.stat().st_size for one in folder.iterdir()
    )
    torn = tmp_path / "torn"
    write_tar(torn / "0.tar", samples(3))
    (torn / "1.tar").write_bytes((torn / "0.tar").read_bytes()[:700])
    found = price(config(torn), Home(home))
    assert (found.units_new, found.units_read) == (2, 1) and dataclasses.asdict(found)["images_new"] >= 3
    assert results(config(torn), Home(home)).units() == []
