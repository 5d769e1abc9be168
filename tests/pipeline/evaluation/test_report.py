"""The page: complete in itself, safe against what captions may hold, whole when sections are missing."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hyco.pipeline.evaluation.answers import Answers
from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.evaluation.report.charts import Line, decades, line_chart, number, ridges, share, ticks
from hyco.pipeline.evaluation.report.curves import curves
from hyco.pipeline.evaluation.report.examples import mined_samples, pieces
from hyco.pipeline.evaluation.report.page import page
from hyco.pipeline.evaluation.report.panels import Exhibits
from hyco.pipeline.evaluation.report.projection import View
from hyco.pipeline.evaluation.report.report import render
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.training.step_log import read_log
from hyco.storage.sample import Part, TrainingSample

EVIL = "<script>alert(1)</script> \"' onerror=x {{ 7*7 }} \u202e鴨と猫 \U0001f986 &lt;"
JPEG = encode_jpeg(np.full((40, 60, 3), 90, np.uint8))
BESIDE = ("metrics.csv", "metrics.json", "answers.json")  # files in the same folder
VOID = {"meta", "link", "img", "path", "rect"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def recalls(*names):
    values = {"r1": 0.2, "r5": 0.4, "r10": 0.6}
    return {**dict.fromkeys(names, values), "chance": {name: dict.fromkeys(values, 0.01) for name in names}}


def metrics():
    ways = recalls("image_to_text", "text_to_image")
    return {
        "run": EVIL,
        "mining": {"images": 10, "recall": 0.9, "failures_by_code": {"x": 1}, "precision": None},
        "train": {"steps": 3, "samples_seen": 30, "loss_first": 5.0, "loss_last": None},
        "zero_shot": {
            "top1": 0.5, "top5": 0.8, "mean_per_class": 0.45, "chance": 0.01, "chance_top5": 0.05,
            "images": 20, "classes": 100, "classes_seen": 9,
        },
        "retrieval": ways | {"images": 20, "captions": 50, "distinct": 48},
        "hierarchy": {
            "tie": 1.5, "lca": 1.4, "jaccard": 0.7, "p_h": 0.8, "r_h": 0.8, "images": 20,
            "chance": {"tie": 5.0, "lca": 2.9, "jaccard": 0.2, "p_h": 0.3, "r_h": 0.3},
        },
        "parts": recalls("crop_to_phrase", "phrase_to_crop") | {"crops": 30, "phrases": 25},
        "boxes": {
            block: {
                **dict.fromkeys(keys, 0.3), "chance": dict.fromkeys(keys, 0.02),
                "n": 20, "boxes": 30, "classes": 50,
            }
            for block, keys in (
                ("classification", ("top1", "mean_per_class")), ("detection", ("map", "map_distance"))
            )
        },
        "compositional": {
            kind: {"accuracy": 0.6, "chance": {"accuracy": 0.5}, "n": 20, "pairs": 40}
            for kind in ("color", EVIL, "mean")
        },
        "traversal": {
            "texts": {
                "distinct": 5.4, "phrases_near_image": 0.2, "phrases_near_root": 0.9, "root": 0.1, "n": 20,
                "chance": {"phrases_near_image": 0.5, "phrases_near_root": 0.5},
            },
            "pictures": {"distinct": 1.2, "root": 1.0, "chance": {}, "n": 20},
        },
        "geometry": {
            "curvature": 1.2, "k": 0.1, "saturated": {"text": 0.1, "image": 0.0},
            "radius": {n: dict.fromkeys(("q05", "q25", "q50", "q75", "q95", "mean"), 0.4) for n in ("text", "image")},
            "satisfied": {"text>image": {"eta": 0.7, "pairs": 9, "true": 0.9, "true_angle": 3.0, "aperture": 30.0}},
            "order": {"text<image": {"holds": False, "pairs": 0.4}},
        },
        "intervals": {"zero_shot.top1": [0.4, 0.6], "hierarchy.tie": [1.2, 1.8]},
        "skipped": {},
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 12.0,
    }  # fmt: skip


def exhibits():
    part = Part(JPEG, EVIL[:20], (0.1, 0.1, 0.5, 0.5), 0.7, (0, 20), 0, "chunk")
    other = Part(JPEG, "a duck", (0.6, 0.6, 0.9, 0.9), 0.5, (-1, -1), 0, "chunk")
    sample = TrainingSample("k", JPEG, (EVIL, "quiet"), (part, other), {})
    log = [
        {"step": s, "loss": 5.0 / s, f"terms/contrast/{EVIL}>text": 1.0 / s, "radius/image/mean": 0.1 * s}
        for s in (1, 2, 3)
    ]
    return Exhibits(
        samples=mined_samples([sample], 4, 64),
        neighbours=[
            {"image": "data:,", "captions": [EVIL], "rank": "7", "results": [{"text": EVIL, "right": False}]}
        ],
        radii={"text": np.array([0.2, 0.3]), "image": np.array([0.5, 0.6])},
        log=log,
        depths={"model": [0.5, 0.2, 0.3], "chance": [0.01, 0.9, 0.09]},
        depth_examples=[EVIL, "animal"],
        families=((EVIL, "tool"), np.array([[3, 1], [0, 0]])),
        mistakes=[{"image": "data:,", "true": EVIL, "predicted": "saw", "meet": ""}],
        strips=[
            {
                "image": "data:,",
                "caption": EVIL,
                "texts": [{"text": EVIL, "kind": "phrase", "own": True, "steps": "1", "width": 2.0}],
                "pictures": [{"image": "", "alt": "the root", "own": False, "steps": "1", "width": 2.0}],
                "names": [{"text": EVIL, "steps": "1", "width": 2.0}],
            }
        ],
        plane=View({"image": np.array([[0.1, 0.2]]), "text": np.array([[0.0, 0.1]])}, 0.2),
        config={"recipe": {"name": EVIL}},
        lineage=[("Source", EVIL)],
    )


def test_hostile_text_stays_text():
    html = render(upgrade(metrics()), exhibits())
    reader = read(html)
    scripts = [attrs for tag, attrs in reader.tags if tag == "script"]
    assert scripts == [{}]
    assert html.count("<script") == 1
    assert not any(name.startswith("on") for _, attrs in reader.tags for name in attrs)
    assert "{{ 7*7 }}" in html
    assert any(EVIL in text for text in reader.text)
    assert "鴨と猫 \U0001f986" in html


@pytest.mark.parametrize("full", [True, False])
def test_the_page_asks_nothing_of_the_network(full):
    html = render(upgrade(metrics()), exhibits()) if full else render({"run": "r"}, Exhibits())
    for url in re.findall(r"(?:src|href|srcset|action|poster)=\"([^\"]*)\"", html):
        assert url.startswith(("data:", "#")) or url in BESIDE
    assert not re.findall(r"https?://|url\(|@import|//cdn", html.replace("http-equiv", ""))
    attrs = next(a for tag, a in read(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    script = html[html.index("<script>") + 8 : html.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in attrs["content"]
    assert "default-src 'none'" in attrs["content"]


def test_missing_sections_leave_their_reason():
    empty = {"run": "r", **dict.fromkeys(("zero_shot", "retrieval", "geometry", "train", "mining"))}
    html = render(empty | {"skipped": {"zero_shot": "no taxonomy was given", "mining": "<b>"}}, Exhibits())
    reader = read(html)
    text = " ".join(reader.text)
    assert "Zero-shot classification: not measured" in text and "no taxonomy was given" in text
    assert "Nothing could be measured." in text
    links = {attrs["href"] for tag, attrs in reader.tags if tag == "a"}
    targets = {link[1:] for link in links - set(BESIDE)}
    assert targets <= {attrs.get("id") for _, attrs in reader.tags}


@pytest.mark.parametrize("missing", [name for name in metrics() if isinstance(metrics()[name], dict)][:-2])
def test_any_one_section_may_be_missing(missing):
    found = metrics() | {missing: None, "skipped": {missing: "because"}}
    for shown in (Exhibits(), exhibits()):
        assert "because" in render(upgrade(found), shown)


def test_every_id_is_there_once_and_every_picture_has_words():
    reader = read(render(upgrade(metrics()), exhibits()))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs.get("alt") for tag, attrs in reader.tags if tag == "img")
    charts = [attrs for tag, attrs in reader.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) >= 3 and all(attrs["aria-label"] for attrs in charts)
    tables = [attrs for tag, attrs in reader.tags if tag == "th"]
    assert tables and all("scope" in attrs for attrs in tables)


def test_numbers_stand_beside_chance_and_interval():
    shown = page(upgrade(metrics()), Exhibits())
    card = shown["cards"][0]
    assert (card["value"], card["chance"], card["gain"]) == ("50.0", "1.0\xa0%", "50 times chance")
    assert card["interval"] == "40.0 to 60.0\xa0%"
    assert all(row["chance"] for table in shown["tables"] for row in table["rows"])
    assert [table["name"] for table in shown["tables"]] == [
        "Zero-shot", "Retrieval", "Parts", "Ground-truth boxes", "Compositional", "Walks", "Hierarchy"
    ]  # fmt: skip
    assert [row["name"].rpartition(", ")[2] for row in shown["tables"][5]["rows"]] == [
        "close to the image",
        "close to the root",
    ]


def test_walks_and_the_plane_say_what_they_show():
    shown = page(upgrade(metrics()), exhibits())
    assert (
        "5.4 different texts" in shown["walks"]["lead"] and "close to the root 90.0" in shown["walks"]["lead"]
    )
    assert "last of these equal steps" not in shown["walks"]["lead"]
    far = metrics()
    far["geometry"]["radius"]["text"] = dict.fromkeys(far["geometry"]["radius"]["text"], 0.02)
    lead = page(upgrade(far), exhibits())["walks"]["lead"]
    assert "within 0.0200 of the origin and the median picture at 0.400, so the last of these" in lead
    assert "HoroPCA" in shown["plane"]["note"] and "20.0" in shown["plane"]["note"]
    assert {"walks", "space"} <= {entry["id"] for entry in shown["sections"]}
    flat = dataclasses.replace(exhibits(), plane=dataclasses.replace(exhibits().plane, flat=True))
    text = render(metrics() | {"geometry": None}, flat)
    assert "The model is Euclidean" in text and "principal directions" in text
    factor = dataclasses.replace(exhibits(), plane=dataclasses.replace(exhibits().plane, factor=3))
    assert "factor 4 of the product" in page(upgrade(metrics()), factor)["plane"]["note"]


def test_captions_are_cut_at_their_phrases():
    assert pieces("a red duck swims", [(0, 10, 0), (2, 5, 1)]) == [("a red duck", 0), (" swims", None)]
    assert pieces("ab", [(0, 1, 2), (1, 2, 3)]) == [("a", 2), ("b", 3)]
    assert pieces("ab", [(-1, -1, 0), (1, 9, 0), (1, 1, 0)]) == [("ab", None)]
    assert pieces("", []) == []


def test_phrases_of_one_thing_share_a_colour():
    boxes = {
        "a duck": (0.1, 0.1, 0.5, 0.5),
        "the bird": (0.11, 0.1, 0.5, 0.52),
        "a saw": (0.6, 0.6, 0.9, 0.9),
    }
    parts = tuple(Part(JPEG, phrase, box, 0.9, (-1, -1)) for phrase, box in boxes.items())
    nowhere = Part(JPEG, "a cloud")
    shown = mined_samples([TrainingSample("k", JPEG, ("x",), (*parts, nowhere))], 1, 32)[0]
    assert {chip["phrase"]: chip["group"] for chip in shown["chips"]} == {
        "a duck": 0,
        "the bird": 0,
        "a saw": 1,
    }
    assert [box["group"] for box in shown["boxes"]] == [0, 0, 1]
    assert (shown["width"], shown["height"]) == (48, 32)
    assert mined_samples([TrainingSample("k", JPEG, ("x",), (nowhere,))], 1, 32) == []


def test_log_is_read_past_torn_and_repeated_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [
        {"step": 2, "terms": {"contrast/image>text": 3.0}},
        {"step": 1, "loss": 4},
        {"step": 2, "loss": 2},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    path.write_bytes(path.read_bytes() + b'\n[4]\n{"loss": 1}\n"x"\n{"step": null}\n')
    log = read_log(tmp_path)
    assert log == [{"step": 1, "loss": 4}, {"step": 2, "loss": 2}]
    assert [curve["name"] for curve in curves(log)] == ["Loss"]
    assert read_log(tmp_path / "nowhere") == []


def test_the_terms_of_polar_cones_are_named_by_their_nodes() -> None:
    terms = {"member/text_box>image_box": 0.5, "member/image_box>image": 0.4, "norm/text": 2.0}
    made = curves([{"step": step, "terms": terms} for step in (1, 2, 3)])
    names = {chart["name"]: [entry["name"] for entry in chart["legend"]] for chart in made}
    assert names == {
        "Membership in the cones": ["part holds image", "phrase holds part"],
        "Cost of the radii": ["caption"],
    }
    assert len({entry["tone"] for chart in made for entry in chart["legend"]}) == 3


def test_terms_of_a_new_kind_are_drawn() -> None:
    log = [{"step": step, "terms": {"spread/image": 1.0 / step}} for step in (1, 2, 3)]
    (chart,) = curves(log)
    assert chart["name"] == "Other terms of the loss" and chart["legend"][0]["name"] == "spread/image"


def test_charts_hold_their_numbers():
    chart = line_chart([Line("a", "image", list(range(1000)), [float(v) for v in range(1000)])], "label")
    data = json.loads(read(chart).tags[0][1]["data-lines"])
    assert len(data["lines"][0]["x"]) <= 240
    assert line_chart([Line("a", "image", [1], [2.0])], "label") == ""
    assert line_chart([Line("a", "image", [1, 2], [float("nan"), 1.0])], "label") == ""
    flat = line_chart([Line("a", "image", [1, 2, 3], [2.0, 2.0, 2.0])], "label")
    assert "nan" not in flat and "inf" not in flat
    assert "nan" not in ridges([("a", "image", np.zeros(5), 0.2)], "label")


def test_one_edge_crosses_all_rows_and_several_stand_in_their_own():
    """A polar model's radii differ by factors of ten, and so do the edges of its cones: a logarithmic axis."""
    near, far = np.full(9, 0.012), np.full(9, 1.9)
    edges = [attributes["d"] for tag, attributes in read(ridges(
        [("phrase", "text_box", near, 0.01), ("caption", "text", 10 * near, 0.1), ("image", "image", far, None)],
        "label",
    )).tags if tag == "path" and attributes.get("class") == "edge"]  # fmt: skip
    assert len(edges) == 2 and len({edge.split(" ")[0] for edge in edges}) == 2
    text = read(ridges([("phrase", "text_box", near, 0.01), ("image", "image", far, None)], "label")).text
    assert "2K = 0.01" in text and "0.02" in text, "decades are marked on a logarithmic axis"
    plain = ridges([("text", "text", far / 2, 0.2), ("image", "image", far, 0.2)], "label")
    assert plain.count('class="edge"') == 1 and "0.02" not in read(plain).text


@pytest.mark.parametrize(("low", "high"), [(0.01, 2.0), (0.0117, 1.99), (3e-5, 40.0), (0.2, 0.3)])
def test_decades_are_round_and_span(low, high):
    marks = decades(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 10
    assert {f"{mark:e}"[:8] for mark in marks} <= {"1.000000", "2.000000", "5.000000"}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0134), (-5, 7e6), (2, 2), (0, 0)])
def test_ticks_are_round_and_span(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


def test_numbers_read_well():
    assert [number(v) for v in (0.5, 12.345, 1234.5, 3, 0.00001, float("nan"), 0.0)] == [
        "0.500", "12.3", "1,234", "3", "1.0e-05", "not finite", "0"
    ]  # fmt: skip
    assert [share(v) for v in (0.0, 0.0063, 0.632, 0.9999, 1.0)] == [
        "0\xa0%", "0.63\xa0%", "63.2\xa0%", "100\xa0%", "100\xa0%"
    ]  # fmt: skip


def test_it_says_how_often_each_image_was_seen_by_what_and_for_how_long():
    seen = {"samples_seen": 30, "steps": 3, "images": 12, "seconds": 252.0, "machine": "A <CPU>, 2 cores"}
    found = page(upgrade(metrics() | {"train": seen}), exhibits())
    told = "was trained on 30 samples (12 images, 2.5 passes) in 3 steps, 4 min 12 s on A <CPU>, 2 cores."
    assert told in found["intro"]
    facts = {fact["name"]: fact["value"] for fact in found["training"]}
    assert (facts["passes over the images"], facts["duration"]) == ("2.5", "4 min 12 s")
    assert "passes" not in page(upgrade(metrics()), exhibits())["intro"], "a run of an earlier Hyco"


def test_each_n_says_what_it_counts():
    rows = {
        row["name"]: row for table in page(upgrade(metrics()), exhibits())["tables"] for row in table["rows"]
    }
    assert (rows["Zero-shot top-1"]["n"], rows["Zero-shot top-1"]["unit"]) == ("20", "images")
    assert rows["Phrase to part R@5"]["unit"] == "phrases"


def test_the_classes_are_listed_the_worst_first():
    told = Answers(["duck", "dog", "<cat>"], ["a", "b", "c"], [0, 1, 1], [0, 2, 1])
    html = render(upgrade(metrics()), dataclasses.replace(exhibits(), answers=told))
    text = " ".join(read(html).text)
    assert "All 2 classes, the worst first" in text and "<cat> (1)" in text
    assert text.index("50.0") < text.index("duck")
