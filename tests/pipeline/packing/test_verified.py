"""Boxes that a second grounder must confirm: a re-filter with its own detections."""

import numpy as np
import pyarrow as pa
import pytest

from hyco.models.grounding.detector import Detection
from hyco.pipeline.cli.app import app
from hyco.pipeline.config import ConfigError, digest
from hyco.pipeline.curation.delete import delete
from hyco.pipeline.mining import grounder as ground
from hyco.pipeline.mining import mine as mining
from hyco.pipeline.mining.mine import MineConfig, mine_all
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.packing.select_parts import SelectionConfig
from hyco.pipeline.packing.verified import VerifyConfig, confirmed, refusals, verifying
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.detections import SCHEMA
from hyco.storage.home import Home
from hyco.storage.shard import read_shard
from tests.factories.mining import ColourDetector, samples, write_tar

GATE = QualityConfig(max_shrink=None, max_parts_drift=None, max_score_drift=None)


class RedOnly(ColourDetector):
    """Scores red things 0.6 and everything else 0.1."""

    digest = "fedcba9876543210"

    def _look(self, image, texts):
        found = super()._look(image, texts)
        red = np.array(["red" in texts[number] for number in found.phrases], bool)
        return Detection(found.boxes, np.where(red, 0.6, 0.1).astype(np.float32), found.phrases)


@pytest.fixture
def detectors(monkeypatch):
    by_name = {"onnx:first": ColourDetector(), "onnx:second": RedOnly()}
    monkeypatch.setattr(ground, "open_detector", lambda spec, *args, **options: by_name[spec])
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: by_name[spec].digest)
    mining._open_detector.cache_clear()
    yield by_name
    mining._open_detector.cache_clear()


@pytest.fixture
def mined(detectors, tmp_path):
    write_tar(tmp_path / "source" / "00000.tar", samples(5))
    write_tar(tmp_path / "source" / "00001.tar", samples(4, start=5))
    mine, home = MineConfig(source=str(tmp_path / "source"), grounder="onnx:first"), Home(tmp_path / "home")
    mine_all(mine, home, InProcess())
    return mine, home


def packing(**verify):
    return PackConfig(image_size=32, min_area_px=None, gate=GATE, verify=VerifyConfig(**verify))


def test_packs_confirmed_boxes_and_asks_the_verifier_once(mined, detectors):
    mine, home = mined
    config = packing(grounder="onnx:second")
    assert pack(mine, packing(), home).counts["images"] == 9
    with pytest.raises(
        ValueError, match=r"2 of 2 units are not mined by the verifier .*--verify onnx:second"
    ):
        pack(mine, config, home)
    mine_all(verifying(mine, config.verify), home, InProcess())
    calls = detectors["onnx:second"].calls
    version = pack(mine, config, home)
    assert version.counts["images"] == version.counts["parts"] == 3  # of nine, every third is red
    assert version.counts["partless"] == 6 and version.counts["unverified"] == 12  # in two captions each
    assert pack(mine, config, home).name == version.name
    everything = pack(mine, packing(grounder="onnx:second", threshold=0.05), home)
    assert everything.counts["images"] == 9 and "unverified" not in everything.counts
    assert detectors["onnx:second"].calls == calls


def test_packs_again_when_the_verifier_has_mined_again(mined, detectors):
    mine, home = mined
    config = packing(grounder="onnx:second")
    other = verifying(mine, config.verify)
    mine_all(other, home, InProcess())
    assert pack(mine, config, home).counts["images"] == 3
    records, firsts = home.detections(digest(other)), home.detections(digest(mine)).records()
    for name, record in list(records.records().items()):  # as if it had found what the first one did
        records.forget(name)
        records.commit(name, {**record, "detections": firsts[name]["detections"]})
    assert pack(mine, config, home).counts["images"] == 9


def test_a_deleted_image_leaves_both_detections_and_the_unit_is_packed_again(mined):
    mine, home = mined
    config = packing(grounder="onnx:second")
    mine_all(verifying(mine, config.verify), home, InProcess())
    version = pack(mine, config, home)
    with home.store.open(version.shards["train"][0].path) as file:
        (sample, *_) = read_shard(file, "shard", version.shards["train"][0].samples)
    delete(home, keys=[sample.key], reason="asked")
    left = pack(mine, config, home)
    assert left.counts["images"] == 2 and left.counts["mined_images"] == 8 and left.counts["unverified"] == 12


def table(*rows):
    names = ("key", "phrase", "x0", "y0", "x1", "y1", "score", "detector")
    plain = {"caption": 0, "text": "t", "image_sha256": "", "width": 9, "height": 9, "rules": ""}
    return pa.Table.from_pylist([{**plain, **dict(zip(names, row, strict=True))} for row in rows], SCHEMA)


def test_the_same_phrase_on_the_same_box_of_the_same_image_confirms():
    box, half, nothing = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.4), (None,) * 4
    first = table(
        ("a", "Dog", *box, 0.9, "d"),
        ("a", "cat", *box, 0.9, "d"),
        ("b", "dog", *box, 0.9, "d"),
        ("a", "dog", *half, 0.8, "d"),
        ("a", "dog", *half, 0.1, "d"),
        ("a", "cat", *box, 0.9, "source:objects"),
        ("a", None, *nothing, None, "d"),
    )
    second = table(
        ("a", "dog", *box, 0.3, "e"),
        ("a", "cat", *box, 0.1, "e"),
        ("b", "dog", *box, 0.9, "source:objects"),
        ("c", "dog", *nothing, None, "e"),
    )
    kept = confirmed(first, second, VerifyConfig(), 0.35)
    assert [score and round(score, 1) for score in kept["score"].to_pylist()] == [
        0.9,
        None,
        None,
        None,
        0.1,
        0.9,
        None,
    ]
    assert refusals(first, kept) == 3 and kept.drop("score") == first.drop("score")
    assert refusals(first, confirmed(first, second, VerifyConfig(min_iou=0.4), 0.35)) == 2
    assert refusals(first, confirmed(first, second.slice(0, 0), VerifyConfig(), 0.35)) == 4


def test_digests_without_a_verifier_stay_and_another_one_is_another_configuration(detectors):
    assert digest(SelectionConfig(verify=VerifyConfig())) == digest(SelectionConfig())
    assert (
        digest(packing(grounder="onnx:first")) != digest(packing(grounder="onnx:second")) != digest(packing())
    )


def test_boxes_of_the_source_have_no_verifier(mined, detectors):
    with pytest.raises(ConfigError, match="'source' is no detector"):
        packing(grounder="source")
    mine, _ = mined
    with pytest.raises(ValueError, match="taken as they are"):
        verifying(mine.model_copy(update={"grounder": "source"}), VerifyConfig(grounder="onnx:second"))


def test_the_command_runs_the_verifier_where_needed(mined, detectors, capsys):
    mine, home = mined
    command = [
        "pack",
        "--source",
        mine.source,
        "--grounder",
        "onnx:first",
        "--recipe",
        "demo",
        "--home",
        str(home),
    ]
    more = [
        "--workers",
        "0",
        "--verify",
        "onnx:second",
        "--set",
        "pack.min_area_px=null",
        "--set",
        "pack.holdout=0",
    ]
    app([*command, *more], standalone_mode=False)
    assert '"unverified": 12' in capsys.readouterr().out
    assert detectors["onnx:second"].calls
