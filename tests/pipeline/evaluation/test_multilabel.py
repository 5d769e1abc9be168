"""VOC 2007 and COCO's labels: their layouts, and average precision against a plain reference and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from hyco.pipeline.evaluation.benchmarks.multilabel import read_coco_labels, read_voc
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.multilabel import DIFFICULT, multilabel
from tests.oracle import ranking as plain
from tests.pipeline.evaluation.test_published_sets import ColourEmbedder, coco, paint

FEW = Bootstrap(draws=100)
SHOWN = {"000001": ("red",), "000002": ("green", "blue"), "000004": ("blue",), "000008": ("black",)}


def voc(folder: Path) -> Path:
    """Four photographs; "aeroplane" is no colour, and its list marks the image that the set is found by."""
    base = folder / "VOCdevkit" / "VOC2007"
    (base / "ImageSets" / "Main").mkdir(parents=True)
    for key, colours in SHOWN.items():
        paint(base / "JPEGImages" / f"{key}.jpg", *colours)
    for name in ("aeroplane", "red", "green", "blue"):
        lines = [f"{key} {' 1' if name in own else '-1'}" for key, own in SHOWN.items()]
        if name == "red":
            lines[1] = "000002  0"  # difficult
        (base / "ImageSets" / "Main" / f"{name}_test.txt").write_text("\n".join(lines) + "\n")
    (base / "ImageSets" / "Main" / "test.txt").write_text("\n".join(SHOWN) + "\n")
    return base


def test_voc_as_published(tmp_path: Path) -> None:
    base = voc(tmp_path)
    found = run_suite(ColourEmbedder(), "voc2007", tmp_path, FEW)["suite"]["voc2007"]
    block = found["multilabel"]
    assert block["map"] == block["map_11"] == 1.0 and block["n"] == 4
    assert (block["classes"], block["classes_seen"], block["labels"], block["difficult"]) == (4, 3, 4, 1)
    sets = read_voc(tmp_path)
    assert sets.names == ("aeroplane", "blue", "green", "red") and sets.labels[:, 3].tolist() == [
        1,
        DIFFICULT,
        0,
        0,
    ]
    main = base / "ImageSets" / "Main"
    (main / "red_test.txt").write_text("000001 1\n000002 yes\n")
    with pytest.raises(ValueError, match=r"red_test.txt, line 2: '000002 yes'"):
        read_voc(tmp_path)
    (main / "red_test.txt").write_text("000001 1\n")
    with pytest.raises(ValueError, match="lists other images than aeroplane_test"):
        read_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match="aeroplane_test"):
        read_voc(tmp_path / "none")


def test_labels_of_coco(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    found = run_suite(ColourEmbedder(), "coco_labels", tmp_path, FEW, least=0.5)["suite"]["coco_labels"]
    assert found["coverage"]["images"] == {"used": 4, "of": 5, "missing": 1, "unusable": 0}
    sets = read_coco_labels(folder)
    (black,) = [n for n, path in enumerate(sets.images) if path.name == "000004.jpg"]
    assert sets.labels[black].tolist() == [1, 1, 0, 0], "a box without area and a crowd are labels too"
    assert found["multilabel"]["classes_seen"] == 3 and found["unlabelled"] == 0
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] != 4]
    path.write_text(json.dumps(content))
    assert read_coco_labels(folder).unlabelled == 1
    path.write_text('{"categories": []}')
    with pytest.raises(ValueError, match="is not in COCO's format"):
        read_coco_labels(folder)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_the_twins(ties: bool) -> None:
    random = np.random.default_rng(3)
    labels = (random.random((70, 6)) < 0.2).astype(int)
    labels[random.random((70, 6)) < 0.1] = DIFFICULT
    labels[:, 4] = 0  # never shown
    scores = random.normal(size=(70, 6)) + 1.2 * (labels == 1)
    scores = scores.round() if ties else scores
    found = multilabel(scores, labels, FEW, ("map", "map_11"))
    averages = {"map": plain.average_precision, "map_11": plain.eleven_points}
    for name, average in averages.items():
        value = found.numbers[name]
        assert value == pytest.approx(plain.mean_over_classes(average, scores, labels), abs=1e-12)
        low, high = found.intervals[name]
        assert low < value < high and high - low < 0.5
    if not ties:
        each = [
            average_precision_score(labels[kept, c], scores[kept, c])
            for c in (0, 1, 2, 3, 5)
            for kept in [labels[:, c] != DIFFICULT]
        ]
        assert found.numbers["map"] == pytest.approx(np.mean(each), abs=1e-12)
    once = Bootstrap(draws=1)
    drawn = [multilabel(random.random(labels.shape), labels, once).numbers["map"] for _ in range(60)]
    assert found.numbers["chance"]["map"] == pytest.approx(np.mean(drawn), abs=0.02)


def test_an_image_drawn_twice_counts_twice() -> None:
    random = np.random.default_rng(5)
    labels = (random.random((40, 3)) < 0.3).astype(int)
    scores = random.normal(size=(40, 3)) + labels
    found = multilabel(scores, labels, Bootstrap(draws=300, seed=2))
    draws = []
    for weight in Bootstrap(draws=300, seed=2).weights(40):
        for row in weight.astype(int):
            rows = np.repeat(np.arange(40), row)
            draws.append(plain.mean_over_classes(plain.average_precision, scores[rows], labels[rows]))
    slow = np.quantile(draws, [0.025, 0.975]) - np.mean(draws) + found.numbers["map"]
    assert found.intervals["map"] == pytest.approx(
        slow, abs=0.02
    )  # copies share one precision here, not there


def test_nothing_to_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="no image shows any of the classes"):
        multilabel(np.zeros((3, 2)), np.zeros((3, 2), int), FEW)


@pytest.mark.filterwarnings("error")
def test_a_class_of_one_image_has_an_interval() -> None:
    """A draw without this image ranks nothing: it is left out of the interval, and not of all draws."""
    labels, scores = np.array([[0], [1], [0], [0]]), np.array([[3.0], [2.0], [1.0], [0.0]])
    found = multilabel(scores, labels, FEW, ("map", "map_11"))
    assert found.numbers["map"] == 0.5
    for low, high in found.intervals.values():
        assert 0 < low < 0.5 < high <= 1
