# ruff: noqa: F811  (fixtures)
"""Recall and precision of mined boxes against a labelled source."""

import pytest

from hyco.pipeline.evaluation.mined_boxes import phrase_quality
from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.runtime.executor import InProcess
from hyco.storage.home import Home
from tests.factories.mining import BOX, config, detector, home, picture, write_tar  # noqa: F401  (fixtures are used by name)


def test_quality_against_a_labelled_source(tmp_path, home, detector):
    def label(phrase, box):
        return {
            "phrase": phrase,
            "caption": 0,
            "span": [0, len(phrase)],
            "box": box,
            "leaf": "block",
            "color": None,
        }

    red, blue = label("a red block", BOX), label("A blue block", BOX)
    shifted = label("a red block", [0.5, 0.5, 0.9, 0.9])
    write_tar(
        tmp_path / "s" / "0.tar",
        [
            ("a", picture("red"), {"captions": ["a red block"], "objects": [red]}),
            ("b", picture("blue"), {"captions": ["A blue block", "a blue block"], "objects": [blue, blue]}),
            (
                "c",
                picture("red", 1),
                {"captions": ["a red block"], "objects": [shifted]},
            ),  # looked in the wrong place
            ("d", picture("green"), {"captions": ["a green block"], "objects": []}),  # a box nobody labelled
            ("e", picture("green", 1), {"captions": ["a green block"]}),  # not labelled at all: left out
        ],
    )
    mine = config(tmp_path / "s")
    with pytest.raises(ValueError, match=r"0\.tar is not mined"):
        phrase_quality(mine, Home(home))
    mine_all(mine, Home(home), InProcess())
    found = phrase_quality(mine, Home(home))
    counts = {"labelled": 3, "boxes": 4, "right": 2, "images": 4, "labelled_images": 4}
    assert found == {"recall": 2 / 3, "precision": 2 / 4, **counts}
    assert phrase_quality(mine, Home(home), threshold=0.1, nms_iou=None)["boxes"] == 8
    assert phrase_quality(mine, Home(home), threshold=0.95)["precision"] is None


@pytest.mark.parametrize(
    "objects",
    [
        [{"bbox": [0, 0, 9, 9], "category": "dog"}],
        ["dog"],
        [{"phrase": "a red block", "box": None}],
        [{"phrase": None, "box": BOX}],
        [{"phrase": "a red block", "box": [0, 0, 60, 40]}],  # pixels
    ],
)
def test_objects_of_another_form_are_no_labels(tmp_path, home, detector, objects):
    known = {"captions": ["a red block"], "objects": [*objects, {"phrase": "A red block", "box": BOX}]}
    foreign = {"captions": ["a red block"], "objects": objects}
    write_tar(tmp_path / "s" / "0.tar", [("a", picture("red"), known), ("b", picture("red", 1), foreign)])
    mine = config(tmp_path / "s")
    mine_all(mine, Home(home), InProcess())
    found = phrase_quality(mine, Home(home))
    counts = {"labelled": 1, "boxes": 1, "right": 1, "images": 1, "labelled_images": 1}
    assert found == {"recall": 1.0, "precision": 1.0, **counts}
