"""Numbers of published data sets in metrics.csv and the tables of the report."""

import csv
import io

from hyco.pipeline.evaluation.metrics.document import COLUMNS, csv_text, upgrade
from hyco.pipeline.evaluation.report.page import page
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.summary import rows
from hyco.pipeline.evaluation.report.tables import suite_name, tables


def metrics() -> dict:
    return {
        "run": "r",
        "zero_shot": {
            "top1": 0.5,
            "top5": 0.9,
            "chance": 0.1,
            "chance_top5": 0.5,
            "images": 20,
            "classes": 10,
        },
        "retrieval": {
            "chance": {"image_to_text": {"r1": 0.02}},
            "image_to_text": {"r1": 1.0},
            "images": 30,
            "distinct": 9,
        },
        "geometry": {"curvature": 1.0},
        "suite": {
            "tiny_imagenet": {
                "hierarchy": {"tie": 2.5, "chance": {"tie": 5.0}, "n": 40, "nodes": 9},
                "probe_softmax": {"top1": 0.25, "penalty": 0.1, "chance": {"top1": 0.1}, "n": 40},
                "source": "data/tiny",
                "seconds": 1.5,
            }
        },
        "intervals": {"zero_shot.top1": [0.4, 0.6], "suite.tiny_imagenet.hierarchy.tie": [2.25, 2.75]},
        "skipped": {},
        "assessed": {"source": "held out", "images": 30},
        "seconds": 3.5,
    }


def test_figures_and_csv() -> None:
    got = list(csv.reader(io.StringIO(csv_text(upgrade(metrics())))))
    assert all(row[-2:] == ["", ""] for row in got[1:]), "of and gallery, which older metrics do not tell"
    assert [row[:-2] for row in got] == [
        list(COLUMNS[:-2]),
        ["zero_shot.top1", "0.5", "0.4", "0.6", "0.1", "20", "held out"],
        ["zero_shot.top5", "0.9", "", "", "0.5", "20", "held out"],
        ["retrieval.image_to_text.r1", "1.0", "", "", "0.02", "30", "held out"],
        ["suite.tiny_imagenet.hierarchy.tie", "2.5", "2.25", "2.75", "5.0", "40", "data/tiny"],
        ["suite.tiny_imagenet.probe_softmax.top1", "0.25", "", "", "0.1", "40", "data/tiny"],
    ]
    assert csv_text(upgrade({"suite": {}, "zero_shot": None})).splitlines() == [",".join(COLUMNS)]


def test_table() -> None:
    suite = {k: v for k, v in metrics().items() if k not in ("zero_shot", "retrieval", "geometry")}
    (table,) = tables(upgrade(suite))
    assert table["note"].startswith("1 data set;")
    tie, top1 = table["rows"]
    assert (tie["name"], tie["value"], tie["interval"]) == (
        "Tiny-ImageNet: tree distance (TIE)",
        "2.50",
        "2.25 to 2.75",
    )
    assert (
        tie["note"] == "lower is better, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}40"
        and tie["gain"] == "2.5 below"
    )
    assert top1["name"] == "Tiny-ImageNet: linear probe top-1" and top1["gain"] == "2.5 times"
    assert tables(upgrade({"suite": {}})) == []
    assert suite_name("suite.tiny_imagenet.probe") == "Tiny-ImageNet: linear probe"
    assert suite_name("suite.dtd") == "Describable Textures"
    skipped = page({"skipped": {"suite.dtd": "why", "parts": "so"}}, Exhibits())["skipped"]
    assert skipped == [("Describable Textures", "why"), ("Part and phrase retrieval", "so")]
    assert rows(upgrade(suite))[0][0].startswith("Tiny-ImageNet: tree distance (TIE) (lower")
