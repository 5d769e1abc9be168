"""Records are found by the unit's content, whatever the file was called when it was done."""

from storage.manifest import Manifest
from storage.store import Store

UNIT, OTHER = "0123456789ab", "ffffffffffff"


def manifest(folder):
    return Manifest(Store(folder), "detections/x/records")


def test_a_record_of_an_older_home_bears_the_stem_before_the_unit(tmp_path):
    records = manifest(tmp_path)
    records.commit(f"shard-00000-{UNIT}", {"images": 3})
    records.commit(OTHER, {"images": 5})
    assert records.units() == [UNIT, OTHER]
    assert records.record(UNIT) == {"images": 3} and records.record(OTHER) == {"images": 5}
    assert records.records() == {UNIT: {"images": 3}, OTHER: {"images": 5}}
    assert records.record("aaaaaaaaaaaa") is None
    assert records.forget(UNIT) and not records.forget(UNIT) and records.units() == [OTHER]


def test_the_new_name_stands_where_both_are(tmp_path):
    records = manifest(tmp_path)
    for stem in ("zz", "00"):
        records.commit(f"{stem}-{UNIT}", {"images": 1})
    records.commit(UNIT, {"images": 2})
    assert records.records() == {UNIT: {"images": 2}} and records.units() == [UNIT]


def test_other_names_are_left_as_they_are(tmp_path):
    records = manifest(tmp_path)
    records.commit("shard-00000", {"images": 1})
    assert records.units() == ["shard-00000"] and records.record("00000") is None
