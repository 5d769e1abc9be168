"""Images and boxes that a person marked as bad are left out by the next packing, and come back with the mark."""

import pytest

from hyco.pipeline.config import digest
from hyco.pipeline.curation.delete import delete
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.marks import without_marked
from hyco.pipeline.packing.pack import pack, plan
from hyco.pipeline.packing.select_parts import select_parts
from hyco.storage.detections import read_detections
from hyco.storage.home import Home
from hyco.storage.marks import box_name
from hyco.storage.objects import open_object
from hyco.storage.sample import TrainingSample
from hyco.storage.versions import Version
from tests.pipeline.packing.test_pack import RED, SIZE, Mined, made, packing_config, samples_of  # noqa: F401

CONFIG = packing_config(image_size=SIZE, nms_all_iou=None)


def packed(mined: Mined, home: str) -> tuple[Version, dict[str, TrainingSample]]:
    version = pack(mined, CONFIG, Home(home))
    return version, {sample.key: sample for sample in samples_of(home, version)}


@pytest.fixture
def before(made: tuple[Mined, str]) -> tuple[Mined, str, Version, dict[str, TrainingSample]]:  # noqa: F811
    mined, home = made
    return mined, home, *packed(mined, home)


def test_marks_pack_only_their_units_again_and_taking_them_back_gives_the_same_version(before) -> None:
    mined, home, version, samples = before
    image, other, *_ = samples
    assert [part.phrase for part in samples[other].parts] == ["a red square", "a blue square", "two squares"]
    marks = Home(home).marks
    marks.put(image, version=version.name)
    marks.put(other, "A red square", RED)
    assert len(plan(mined, CONFIG, Home(home))) == 1, "both images are of the first unit"
    marked, left = packed(mined, home)
    assert marked.name != version.name and marked.digests == version.digests, "the same configuration"
    assert image not in left and len(left) == len(samples) - 1
    assert [part.phrase for part in left[other].parts] == ["a blue square", "two squares"], (
        "of one box, one phrase"
    )
    assert (marked.counts["marked"], marked.counts["marked_parts"]) == (1, 1)
    assert marked.counts["images"] == version.counts["images"] - 1
    assert plan(mined, CONFIG, Home(home)) == [] and packed(mined, home)[0] == marked
    for name in marks.names():
        marks.undo(name)
    assert packed(mined, home)[0].name == version.name, "without marks every digest is that of before"


def test_a_home_without_marks_has_neither_counts_nor_records_of_them(before) -> None:
    _, home, version, _ = before
    assert not {"marked", "marked_parts"} & version.counts.keys()
    records = Home(home).packs(version.digests["pack"]).records().values()
    assert all("marks" not in record and record["without"] == "" for record in records)


def test_marks_of_images_that_are_not_there_pack_nothing_again(before) -> None:
    mined, home, version, _ = before
    Home(home).marks.put("f" * 32)
    assert plan(mined, CONFIG, Home(home)) == [] and packed(mined, home)[0].name == version.name


def test_a_mark_holds_for_the_phrase_and_its_expression(before) -> None:
    mined, home, version, _ = before
    unit = next(iter(Home(home).packs(version.digests["pack"]).records()))
    record = Home(home).detections(digest(mined)).record(unit)
    assert record is not None
    with open_object(Home(home).store, record["detections"]["path"]) as file:
        table = read_detections(file)
    place = table.column_names.index("expression")
    longer = [f"{text} on grey" for text in table["phrase"].to_pylist()]
    table = table.set_column(place, "expression", [longer])
    key = table["key"][0].as_py()
    for phrases in ("chunk", "expression", "both"):
        chosen = select_parts(table, CONFIG.model_copy(update={"phrases": phrases}))
        had = len(chosen[key])
        removed = without_marked(table, chosen, {key: [box_name(key, "a red square on grey", RED)]})
        assert removed == (2 if phrases == "both" else 1) and len(chosen[key]) == had - removed
        assert not any(part.phrase.startswith("a red") for part in chosen[key])


def test_when_everything_is_marked_the_remedy_is_named(before) -> None:
    mined, home, _, samples = before
    for key in samples:
        Home(home).marks.put(key)
    with pytest.raises(
        ValueError,
        match="10 images and boxes are marked as bad: take marks back at /marks of hyco serve --marks",
    ):
        packed(mined, home)


def test_a_mark_that_is_made_while_it_packs_is_for_the_next_packing(before, monkeypatch) -> None:
    mined, home, _, samples = before
    keys, real = list(samples), packing.pack_shard
    Home(home).marks.put(keys[0])

    def shard(*given, **named):
        Home(home).marks.put(keys[1])
        return real(*given, **named)

    monkeypatch.setattr(packing, "pack_shard", shard)
    _, left = packed(mined, home)
    assert set(keys) - set(left) == {keys[0]}
    monkeypatch.undo()
    assert set(keys) - set(packed(mined, home)[1]) == set(keys[:2])


def test_a_deletion_takes_the_marks_of_its_image_along_and_keeps_the_others(before) -> None:
    mined, home, _, samples = before
    keys = list(samples)
    marks = Home(home).marks
    marks.put(keys[0])
    marks.put(keys[1], "a red square", RED)
    marks.put(keys[5], "a red square", RED)
    packed(mined, home)
    unseen = keys[6]
    marks.put(unseen)  # after the packing: the deletion must not take it for honoured
    delete(Home(home), keys=[keys[0], keys[1], keys[7]])
    assert {name.partition("-")[0] for name in marks.names()} == {keys[5], unseen}
    version, left = packed(mined, home)
    assert set(keys) - set(left) == {keys[0], keys[1], keys[7], unseen}
    assert (version.counts["marked"], version.counts["marked_parts"]) == (1, 1)
    assert [part.phrase for part in left[keys[5]].parts] == ["a blue square", "two squares"]
