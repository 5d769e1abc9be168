"""What a run has to tell: numbers that were counted, nothing from data taken for markup."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.mining.mine import MineConfig, results, summary
from hyco.pipeline.packing.dataset_gate import Check
from hyco.pipeline.sources.source import open_source
from hyco.pipeline.ui import artifact_pages as stories
from hyco.pipeline.ui import markdown
from hyco.storage.detections import SCHEMA, write_detections, write_failures
from hyco.storage.home import Home
from hyco.storage.model_registry import Decision
from hyco.storage.sample import Failure
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.files import tarred
from tests.factories.training import sample

BAD = "a | b <img src=x onerror=alert(1)> `c` [d](javascript:e)\nnext"
LABELS = [
    {"phrase": "a red square", "box": [0.1, 0.1, 0.5, 0.5]},
    {"phrase": "a fish", "box": [0.6, 0.6, 0.9, 0.9]},
]


@pytest.fixture
def mined(tmp_path: Path) -> tuple[MineConfig, Home]:
    """One labelled image with two boxes of one phrase, one of them right, and a failure with an evil message."""
    source, home = tmp_path / "source", tmp_path / "home"
    source.mkdir()
    made = sample(1)
    texts = {"0.jpg": made.image, "0.txt": "a red square", "0.json": json.dumps({"objects": LABELS})}
    tarred(source / "00000.tar", texts)
    config = MineConfig(source=str(source), grounder="transformers:none", weights="w1")
    (unit,) = open_source(config.source).units()
    (read,) = open_source(config.source).samples(unit, lambda failure: None)
    row = {"key": read.key, "caption": 0, "text": "a red square", "image_sha256": "0", "width": 24, "height": 24,
           "phrase": "a red square", "span_start": 0, "span_end": 12, "rule": "chunk", "expression": "a red square",
           "detector": "d", "rules": "r"}  # fmt: skip
    boxes = [((0.1, 0.1, 0.5, 0.5), 0.92), ((0.5, 0.5, 0.9, 0.9), 0.41)]
    rows = [
        {**row, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)), "score": score}
        for box, score in boxes
    ]
    unbelieved = {"phrase": "a fish", "span_start": 13, "span_end": 19, "score": 0.05}
    rows.append({**rows[0], **unbelieved})
    mined = results(config, Home(home))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    written = mined.store.commit(mined.objects, ".parquet", lambda file: write_detections(file, table))
    failed = mined.store.commit(
        mined.objects, ".parquet", lambda file: write_failures(file, [Failure("k7", "decode", "torn", BAD)])
    )
    record = {"detections": {"path": written.path}, "failures": {"path": failed.path}, "images": 1, "captions": 1,
              "phrases": 2, "boxes": 3, "phrases_with_boxes": 2, "failed": 1, "failed_by_code": {"torn": 1},
              "started": 0.0, "finished": 2.0, "seconds": {"total": 2.0}}  # fmt: skip
    mined.commit(unit.name, record)
    return config, Home(home)


def test_a_mining_tells_rates_quality_scores_and_failures(mined: tuple[MineConfig, Home]) -> None:
    text = stories.mining(*mined, summary(*mined))
    assert "| boxes per image, before any threshold | 3.00 |" in text
    assert "| boxes per image with a score of 0.35 or more, of 1 images | 2.00 |" in text
    assert "| phrases with such a box, of 1 images | 50.0% |" in text and "(1 below 0.1 are left out)" in text
    assert "| recall of boxes, by the labels of 1 images (score 0.35, IoU 0.5) | 50.0% |" in text
    assert "| precision of boxes, by the labels of 1 images (score 0.35, IoU 0.5) | 50.0% |" in text
    assert f"| 0.90 to 0.95 | 1 | {'█' * markdown.BAR} |" in text and "| 0.00 to 0.05 |" not in text
    assert "| phrases of unknown tokens only, not asked | 0 |" in text
    assert "| captions with hardly any word that the tokenizer knows | not counted |" in text
    counted = {**summary(*mined), "phrases_unknown": 1234, "captions_unknown": 1, "captions_read": 8}
    text = stories.mining(*mined, counted)
    assert "| phrases of unknown tokens only, not asked | 1,234 |" in text
    assert "| captions with hardly any word that the tokenizer knows | 1 of 8 (12.5%) |" in text
    assert "| torn | 1 | k7: a \\| b" in text


def test_nothing_from_data_is_markup(mined: tuple[MineConfig, Home]) -> None:
    text = stories.mining(*mined, summary(*mined))
    assert "<img" not in text and "[d](" not in text and "`c`" not in text
    (line,) = [line for line in text.splitlines() if "k7" in line]
    assert line.replace("\\|", "").count("|") == 4, "a row of three cells stays one"


def test_a_quarantined_version_says_why_and_how_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYCO_SERVE_URL", "https://hyco.example.org/")
    counts = {"images": 3, "parts": 6, "train_images": 3}
    samples = [sample(n) for n in range(3)]
    written = Store(tmp_path).commit("shards/objects", ".tar", lambda file: write_shard(file, samples))
    shards = {"train": [shard_ref(written, 3, 6)]}
    made = Versions(Store(tmp_path)).publish({}, {"mine": "m", "pack": "p"}, shards, counts)
    checks = [
        Check("boxes per image", 0.5, 2.0, "within 50%", False, "0.50 boxes per image after 2.00"),
        Check("damaged shards", 0.0, None, 0.0, True),
    ]
    text = stories.version(made, checks, Home(tmp_path))
    assert "is in quarantine" in text and "- 0.50 boxes per image after 2.00" in text
    assert f"    hyco release {made.name} --home {tmp_path}" in text
    assert "| boxes per image | 0.5 | 2 | within 50% | failed: 0.50 boxes per image after 2.00 |" in text
    page = f"https://hyco.example.org/versions/{made.name}"
    row = f"| ![2]({page}/samples/2/whole.jpg) | ![{samples[2].parts[0].phrase}]({page}/samples/2/0.jpg) |"
    assert text.count("/whole.jpg)") == 3 and row in text
    assert "hyco release" not in stories.version(made, checks[1:], Home(tmp_path))


def test_training_shows_its_last_steps_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    lines = [
        {"step": n, "loss": 9.0 - n, "terms": {"contrast": 1.5}, "samples_per_second": 40.0}
        for n in range(1, 9)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = stories.training({"loss_last": 1.0, "config": {}}, folder, Home(tmp_path))
    steps = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ") and "1.5" in line]
    assert steps == [[f"| {n}", str(9 - n)] for n in range(4, 9)]
    assert "/runs/one/curves.svg)" in text


def test_an_assessment_is_shown_beside_the_champion(tmp_path: Path) -> None:
    def metrics(r1: float) -> dict[str, Any]:
        both: dict[str, Any] = {"r1": r1, "r5": r1, "r10": r1, "median_rank": 1.0}
        found: dict[str, Any] = {
            "images": 9,
            "captions": 9,
            "distinct": 9,
            "image_to_text": both,
            "text_to_image": both,
        }
        found["chance"] = {"image_to_text": both, "text_to_image": both}
        return {"retrieval": found, "intervals": {}, "skipped": {"zero_shot": BAD}}

    champion = Decision("promoted", "c" * 16, [], "first", metrics=json.dumps(metrics(0.25)))
    alone = stories.assessment(upgrade(metrics(0.75)), tmp_path, Home(tmp_path), None)
    beside = stories.assessment(upgrade(metrics(0.75)), tmp_path, Home(tmp_path), champion)
    assert "| measure | this run | champion | chance | 95 % interval |" in beside and "champion" not in alone
    row = next(line for line in beside.splitlines() if "75.0" in line)
    older = replace(champion, metrics="{}")
    assert "75.0" in stories.assessment(upgrade(metrics(0.75)), tmp_path, Home(tmp_path), older)
    assert "25.0" in row.split(" | ")[2] and "<img" not in beside


def test_a_lineage_links_version_and_report() -> None:
    row = Decision(
        "rolled_back", "m" * 16, [], "drill", before="n" * 16, version="v-2", run="/h/runs/two", source=BAD
    )
    text = stories.lineage([row], Home("/h"))
    assert "[v-2](http://127.0.0.1:8300/versions/v-2)" in text and "/runs/two/report.html)" in text
    assert "| rolled back | " + "m" * 16 in text and "<img" not in text


def test_a_decision_shows_both_and_links_the_report() -> None:
    metric = "retrieval.image_to_text.r5"
    compared = {
        "metric": metric,
        "challenger": 0.0667,
        "interval": [0, 0.1333],
        "champion": 0.1667,
        "worse": True,
        "sees": 0.06664,
        "n": 30,
    }
    verdict = json.dumps({"comparisons": [compared]})
    row = Decision("refused", "m" * 16, [], BAD, version="v-2", run="/h/runs/two", verdict=verdict)
    text = stories.decision(row, Home("/h"))
    assert text.startswith("# Refused: " + "m" * 16) and "<img" not in text and "next" in text
    assert "| retrieval.image_to_text.r5 | 0.0667 | 0.1667 | yes | 0 to 0.1333 |  | 0.0666 | 30 |" in text
    assert "[report](http://127.0.0.1:8300/runs/two/report.html)" in text
