"""Other runs beside this one: what is read of them, the table, and that the page stays whole."""

import json
import re

import pytest

from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.evaluation.report.compare_runs import beside_table, read_beside, summary
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.report import render


def metrics(name, top1, source="held-out"):
    return {
        "run": name,
        "zero_shot": {"top1": top1, "chance": 0.1, "images": 5, "classes": 10},
        "hierarchy": {"tie": 4 - top1, "chance": {"tie": 5.0}, "images": 5},
        "intervals": {"zero_shot.top1": [top1 - 0.1, top1 + 0.1]},
        "train": {"samples_seen": 61_440, "seconds": 61.5},
        "assessed": {"source": source},
    }


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, top1, kind in (("ours", 0.3, "poincare_resnet"), ("<b>vit", 0.4, "vit")):
        folder = tmp_path / str(len(folders))
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(metrics(name, top1)))
        recipe = {"name": f"demo_{kind}", "model": {"vision": {"kind": kind}}}
        (folder / "config.json").write_text(json.dumps({"recipe": recipe}))
        folders.append(folder)
    return folders


def test_rows_facts_and_the_best_of_each(runs):
    table = beside_table({"beside": read_beside(runs)})
    assert table["columns"] == ["ours", "<b>vit"] and table["note"].endswith("all on held-out")
    facts = {row["name"]: row["cells"] for row in table["facts"]}
    assert facts["image tower"] == ["poincare_resnet", "vit"]
    assert facts["samples seen in training"] == ["61,440", "61,440"]
    rows = {row["name"]: [cell["best"] for cell in row["cells"]] for row in table["rows"]}
    assert rows == {
        "Zero-shot top-1": [False, True],
        "Tree distance (TIE)": [False, True],
    }  # a lower tree distance is better
    assert re.sub(r"\s", " ", table["rows"][0]["cells"][0]["interval"]) == "20.0 to 40.0 %"


def test_other_images_are_said_and_numbers_that_one_run_lacks_are_empty(runs):
    other = upgrade(metrics("other", 0.5, "another source") | {"hierarchy": None})
    table = beside_table({"beside": [*read_beside(runs), summary(other, runs[0])]})
    assert "NOT on the same" in table["note"]
    assert [row["cells"][2]["value"] for row in table["rows"]][1:] == [""]
    assert beside_table({}) is None


def test_the_page_shows_the_table_with_names_escaped(runs):
    shown = metrics("ours", 0.3) | {"zero_shot": None, "hierarchy": None}
    html = render(upgrade(shown) | {"beside": read_beside(runs)}, Exhibits())
    assert "Comparison with other runs" in html and "<b>vit" not in html and "&lt;b&gt;vit" in html


def test_a_run_that_was_not_assessed_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere has no metrics\.json"):
        read_beside([tmp_path / "nowhere"])


def test_runs_of_other_numbers_of_images_are_not_ranked(runs):
    """A run measured on what was left of a set looked best, beside one measured on all of it."""
    whole, part = (
        {"run": name, "suite": {"coco": {way: {"r1": value, "chance": {"r1": 0.1}, "n": n, "gallery": n}}}}
        for name, value, n, way in (("whole", 0.2, 283, "text_to_image"), ("part", 0.9, 43, "text_to_image"))
    )
    table = beside_table({"beside": [summary(upgrade(held), runs[0]) for held in (whole, part)]})
    assert [cell["best"] for cell in table["rows"][0]["cells"]] == [False, False]
    assert [cell["interval"] for cell in table["rows"][0]["cells"]] == [
        " n = 283, among 283",
        " n = 43, among 43",
    ]
    assert "different numbers of images" in table["note"]
    other = whole | {"zero_shot": {"top1": 0.5, "chance": 0.1}}
    table = beside_table({"beside": [summary(upgrade(held), runs[0]) for held in (whole, other)]})
    assert "1 metrics that only one run has are left out" in table["note"]


def test_runs_asked_by_another_protocol_are_not_ranked(runs):
    def held(**more: str) -> dict:
        block = {"zero_shot": {"top1": 0.2 + 0.1 * len(more), "chance": {"top1": 0.1}, "n": 50}}
        return {"run": "x", "suite": {"cifar10": block | more}}

    ours, paper = held(), held(protocol="published")
    table = beside_table({"beside": [summary(upgrade(one), runs[0]) for one in (ours, paper)]})
    assert [cell["best"] for cell in table["rows"][0]["cells"]] == [False, False]
    assert [cell["interval"] for cell in table["rows"][0]["cells"]] == [
        " n = 50",
        " n = 50, published protocol",
    ]
    assert "by another protocol" in table["note"]
    table = beside_table({"beside": [summary(upgrade(one), runs[0]) for one in (paper, paper)]})
    assert any(cell["best"] for cell in table["rows"][0]["cells"])
