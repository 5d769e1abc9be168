"""The catalog of metrics, and metrics.json: what is written now, and how a file of schema 1 is read."""

import csv
import io
import json
from pathlib import Path

import pytest

from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.catalog import CATALOG, find
from hyco.pipeline.evaluation.metrics.document import csv_text, measured, new, put, read_metrics, upgrade
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.report import render
from hyco.pipeline.evaluation.report.summary import rows
from hyco.pipeline.registry.model_gate import GateConfig, judge

STORED = Path(__file__).parent / "stored" / "metrics-schema-1.json"  # of a run that an earlier Hyco assessed


def numbers_of(block, name):
    """Every float of a stored file by its dotted name."""
    for key, value in block.items():
        if isinstance(value, dict) and not key.startswith("chance"):
            yield from numbers_of(value, f"{name}.{key}")
        elif isinstance(value, float) and not key.startswith("chance"):
            yield f"{name}.{key}", value


def test_each_metric_has_one_row():
    assert len({row.path for row in CATALOG}) == len({row.title for row in CATALOG}) == len(CATALOG)
    row = find("suite.imagenet.zero_shot.top1")
    assert row is find("zero_shot.top1") and row is not None and row.title == "zero-shot top-1"
    foil = find("suite.sugarcrepe.swap_att.accuracy")
    assert foil is not None and foil.title == "foils: swap att" and foil.higher_is_better
    assert find("geometry.curvature") is find("zero_shot.images") is find("zero_shot") is None


def test_a_result_is_written_in_one_shape():
    metrics = new("r", "boxes")
    block = {"map": 0.5, "chance": {"map": 0.1}, "n": 9, "boxes": 30}
    put(metrics, "boxes", MetricResult({"detection": block}, {"detection.map": (0.4, 0.6)}))
    assert metrics["boxes"] == {"detection": {"n": 9, "boxes": 30}} and metrics["schema"] == 2
    assert metrics["metrics"] == {
        "boxes.detection.map": {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1, "n": 9}
    }
    with pytest.raises(AssertionError, match="no row in the catalog for some of boxes"):
        put(metrics, "boxes", MetricResult({"nameless": 0.5}, {"nameless": (0.4, 0.6)}))


def test_a_stored_file_of_schema_1_is_read_whole():
    old, found = json.loads(STORED.read_text()), read_metrics(STORED)
    assert "schema" not in old and found["schema"] == 2 and "intervals" not in found
    for name, (low, high) in old["intervals"].items():
        held = found["metrics"][name]
        assert (held["low"], held["high"]) == (low, high) and low <= held["value"] <= high
    sections = ("zero_shot", "retrieval", "hierarchy", "parts", "boxes", "compositional", "traversal")
    values = {k: v for section in sections for k, v in numbers_of(old[section], section)}
    assert {name: held["value"] for name, held in found["metrics"].items()} == values
    top5, recall = (found["metrics"][name] for name in ("zero_shot.top5", "retrieval.image_to_text.r5"))
    assert top5["chance"] == old["zero_shot"]["chance_top5"] and top5["n"] == 3
    assert recall["chance"] == old["retrieval"]["chance"]["image_to_text"]["r5"] and recall["n"] == 6
    assert found["parts"]["phrase_to_crop"] == {"n": 17, "gallery": 19}
    for section in ("train", "geometry", "skipped", "assessed", "versions", "created"):
        assert found[section] == old[section]
    assert upgrade(found) is found


def test_every_reader_takes_the_stored_file():
    found = read_metrics(STORED)
    assert len(rows(found)) == sum(held["chance"] is not None for _, _, held in measured(found))
    page = render(found, Exhibits())
    assert "Image to caption R@5" in page and "one over the number of classes" in page
    assert judge(found, upgrade(json.loads(STORED.read_text())), GateConfig(above_chance=False)).passed
    table = {row["name"]: row for row in csv.DictReader(io.StringIO(csv_text(found)))}
    assert table.keys() == found["metrics"].keys()
    row = table["retrieval.text_to_image.r5"]
    assert (row["n"], row["source"], row["gallery"]) == ("6", "scenes/heldout", "6")


def test_a_newer_schema_is_refused():
    with pytest.raises(ValueError, match="schema 3, this Hyco reads up to 2: update it"):
        upgrade({"schema": 3})


def test_runs_shown_beside_are_upgraded():
    numbers = {"zero_shot.top1": {"value": 0.5, "interval": [0.4, 0.6], "n": 9, "gallery": None}}
    (beside,) = upgrade({"beside": [{"run": "a", "numbers": numbers}]})["beside"]
    held = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": None, "n": 9, "gallery": None}
    assert beside["numbers"]["zero_shot.top1"] == held


def test_a_classifiers_file_of_schema_1_is_read_whole():
    old = {
        "run": "f",
        "chance": {"classification.accuracy": 0.1, "ood.strange.energy.aupr": 0.5},
        "intervals": {"classification.accuracy": [0.7, 0.8], "ood.strange.energy.aupr": [0.4, 0.6]},
        "classification": {"accuracy": 0.75, "nll": 1.5, "images": 40, "few": 0.5, "few_classes": 3},
        "ood": {"strange": {"energy": {"fpr95": 0.9, "auroc": 0.6, "aupr": 0.5}, "images": 20}},
        "attack": {"clean": 0.7, "fgsm": 0.1, "pgd": 0.0, "images": 8},
        "config": {"draws": 20},
    }
    found = upgrade(old)
    assert "chance" not in found and "intervals" not in found and found["config"] == {"draws": 20}
    assert found["classification"] == {"images": 40, "few_classes": 3}
    held = found["metrics"]["classification.accuracy"]
    assert held == {"value": 0.75, "low": 0.7, "high": 0.8, "chance": 0.1, "n": 40}
    assert found["metrics"]["ood.strange.energy.aupr"]["chance"] == 0.5
    assert found["metrics"]["attack.pgd"]["value"] == 0.0 and found["metrics"]["attack.pgd"]["n"] == 8
    assert {name for name, _, _ in measured(found)} == set(found["metrics"])
    assert upgrade(found) is found


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '{"classification": {"accuracy": 1.0}, "chance": 1}', "\xff"]
)
def test_a_file_of_something_else_is_named(tmp_path, text):
    """One such file in a home must not stop `hyco status`, nor --beside with a stack trace."""
    (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"metrics\.json is (not JSON|no document of metrics) .* again"):
        read_metrics(tmp_path / "metrics.json")
