"""The YOLOX backend on a made-up network that always answers the same, and on the real one where it is at hand."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hyco.models.grounding.vocabulary import Vocabulary, coco_names
from hyco.models.grounding.yolox_onnx import YoloxOnnx, digest, letterbox

SHARED = Path(__file__).parents[4] / "shared" / "data"
REAL = SHARED / "detectors" / "yolox_nano.onnx"
SIDE, CELLS = 64, 64 + 16 + 4


def save_network(folder, cells, names=("person", "duck", "traffic light"), shape=(1, 3, SIDE, SIDE)):
    """An ONNX file that answers {cell: (x, y, w, h, objectness, *classes)} in raw outputs, 0 elsewhere."""
    answer = np.zeros((1, CELLS, 5 + len(names)), np.float32)
    for cell, values in cells.items():
        answer[0, cell] = values
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "always the same",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(answer.shape))],
        [numpy_helper.from_array(answer, "answer"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    (folder / "net.names").write_text("\n".join(names) + "\n")
    return folder / "net.onnx"


BLANK = np.zeros((64, 64, 3), np.uint8)


def test_cells_are_decoded_by_stride_and_scored_by_objectness_times_class(tmp_path):
    # cell 10: stride 8, column 2, row 1; cell 64 + 5: stride 16, column 1, row 1
    cells = {
        10: (0.5, 0.25, np.log(2), np.log(1), 0.8, 0.5, 0.1, 0),
        69: (0, 0, 0, 0, 0.5, 0, 1.0, 0),
    }
    detector = YoloxOnnx(save_network(tmp_path, cells), per_phrase=1)
    (found,) = detector([BLANK], [["a man", "the wall", "two ducks"]])
    assert found.phrases.tolist() == [0, 2]
    np.testing.assert_allclose(found.scores, [0.4, 0.5], rtol=1e-5)
    person = np.array([20 - 8, 10 - 4, 20 + 8, 10 + 4]) / 64
    duck = np.array([16 - 8, 16 - 8, 16 + 8, 16 + 8]) / 64
    np.testing.assert_allclose(found.boxes, [person, duck], atol=1e-6)


def test_boxes_are_shares_of_the_image_not_of_the_letterbox(tmp_path):
    detector = YoloxOnnx(save_network(tmp_path, {10: (0.5, 0.25, np.log(2), 0, 1, 1, 0, 0)}), per_phrase=1)
    (found,) = detector([np.zeros((100, 200, 3), np.uint8)], [["a man"]])  # fills the upper 32 of 64 rows
    np.testing.assert_allclose(found.boxes[0], [12 / 64, 6 / 32, 28 / 64, 14 / 32], atol=1e-6)


def test_the_best_by_rank_without_near_copies_and_without_a_threshold(tmp_path):
    same = (0, 0, np.log(4), np.log(4))
    cells = {27: (*same, 1, 0.9, 0, 0), 28: (-0.9, 0, *same[2:], 1, 0.8, 0, 0), 60: (*same, 1, 0.001, 0, 0)}
    (found,) = YoloxOnnx(save_network(tmp_path, cells), per_phrase=3)([BLANK], [["a man"]])
    np.testing.assert_allclose(found.scores, [0.9, 0.001], rtol=1e-4)  # cell 28 is cell 27 once more
    (found,) = YoloxOnnx(save_network(tmp_path, cells), per_phrase=1)([BLANK], [["a man"]])
    assert len(found.scores) == 1


def test_a_phrase_of_no_class_costs_no_run(tmp_path):
    detector = YoloxOnnx(save_network(tmp_path, {}))
    detector.session = None  # would fail if it ran
    assert [len(found.scores) for found in detector([BLANK, BLANK], [["the sky"], []])] == [0, 0]


def test_letterbox_keeps_the_shape_fills_with_grey_and_speaks_bgr():
    image = np.zeros((10, 20, 3), np.uint8)
    image[..., 0] = 200  # red
    pixels, scale = letterbox(image, 64)
    assert scale == pytest.approx(3.2) and pixels.shape == (1, 3, 64, 64) and pixels.dtype == np.float32
    assert (pixels[0, :, :32, :] == np.array([0, 0, 200])[:, None, None]).all() and (
        pixels[0, :, 32:] == 114
    ).all()


@pytest.mark.parametrize(
    "phrase,names",
    [
        ("a red fire hydrant", ["fire hydrant"]),
        ("Two small DOGS", ["dog"]),
        ("the puppies", ["dog"]),
        ("a hot dog", ["hot dog"]),
        ("a dog house", []),
        ("three young women", ["person"]),
        ("people", ["person"]),
        ("a dirt bike", ["motorcycle"]),
        ("his mountain bike", ["bicycle"]),
        ("a traffic light", ["traffic light"]),
        ("light", []),
        ("wooden benches", ["bench"]),
        ("knives", ["knife"]),
        ("skis", ["skis"]),
        ("the bus", ["bus"]),
        ("a catcher's mitt", ["baseball glove"]),
        ("fruit", ["banana", "apple", "orange"]),
        ("a tv-monitor", ["tv"]),
        ("grass", []),
        ("", []),
        ("...", []),
    ],
)
def test_phrases_to_classes(phrase, names):
    coco = coco_names()
    assert len(coco) == 80 and coco[0] == "person" and coco[79] == "toothbrush"
    assert sorted(coco[number] for number in Vocabulary(coco)(phrase)) == sorted(names)


def test_other_spellings_and_other_classes():
    look = Vocabulary(["aeroplane", "pottedplant", "Lighthouse"])
    assert [look(text) for text in ("a plane", "the potted plants", "two lighthouses", "a dog")] == [
        (0,),
        (1,),
        (2,),
        (),
    ]


def test_every_synonym_means_one_class():
    import json

    from hyco.models.grounding.vocabulary import SYNONYMS

    table = json.loads(SYNONYMS.read_text())
    words = [word for name, others in table["synonyms"].items() for word in (name, *others)]
    assert len(words) == len(set(words)) > 400
    assert all(set(members) <= set(table["synonyms"]) for members in table["groups"].values())


def test_digest_covers_weights_and_names(tmp_path):
    weights = save_network(tmp_path, {})
    first = digest(weights)
    (tmp_path / "net.names").write_text("person\nduck\nlamp\n")
    assert digest(weights) != first and YoloxOnnx(weights).digest == digest(weights)


def test_wrong_files_are_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx.*does not exist"):
        YoloxOnnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is not a model onnxruntime can load") as caught:
        YoloxOnnx(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
    weights = save_network(tmp_path, {})
    (tmp_path / "net.names").unlink()
    with pytest.raises(ValueError, match=r"80 classes of COCO.*net\.names"):
        YoloxOnnx(weights)
    with pytest.raises(ValueError, match="fixed multiple of 32"):
        YoloxOnnx(save_network(tmp_path, {}, shape=(1, 3, "side", "side")))


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/detectors")
def test_real_photographs():
    from hyco.pipeline.imaging.decode import decode
    from hyco.pipeline.sources.source import open_source

    detector = YoloxOnnx(REAL, per_phrase=4)
    source = open_source(SHARED / "flickr8k")
    samples = list(itertools.islice(source.samples(source.units()[0], lambda failure: None), 40))
    asked = [["a dog", "a man", "the sky"] for _ in samples]
    found = detector([decode(sample.image) for sample in samples], asked)

    def said(sample, *words):
        return any(word in caption.lower().split() for caption in sample.captions for word in words)

    for number, words in enumerate([("dog", "dogs"), ("man", "woman", "boy", "girl", "people")]):
        scores = np.array([result.scores[result.phrases == number].max() for result in found])
        told = np.array([said(sample, *words) for sample in samples])
        assert told.sum() > 5 and scores[told].mean() > 2 * scores[~told].mean()
    assert not any((result.phrases == 2).any() for result in found)
