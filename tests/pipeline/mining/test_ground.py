import numpy as np
import pytest

from hyco.models.grounding.detector import Detection, best_boxes, join
from hyco.pipeline.mining.grounder import BACKENDS, Backend, grounder_digest, open_detector
from tests.factories.grounder import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("grounder"))


def test_opens_a_directory_and_knows_its_digest_beforehand(folder):
    detector = open_detector(f"transformers:{folder}", per_phrase=2)
    assert detector.digest == grounder_digest(f"transformers:{folder}")
    (found,) = detector([np.zeros((64, 64, 3), np.uint8)], [["a dog", "a cat"]])
    assert found.phrases.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "spec,error,text",
    [
        ("demo/weights/grounder", ValueError, "write BACKEND:PLACE"),
        ("transformers:", ValueError, "write BACKEND:PLACE"),
        ("transformer:x", ValueError, "unknown backend 'transformer'; did you mean 'transformers'"),
        ("transformers:/no/such/place", FileNotFoundError, "/no/such/place.*does not exist"),
        ("transformers:no_such_place", FileNotFoundError, "no_such_place.*does not exist"),
        ("onnx:/no/such/file.onnx", FileNotFoundError, "/no/such/file.onnx"),
        ("groundingdino:/no/such/place", FileNotFoundError, "/no/such/place"),
    ],
)
def test_a_wrong_grounder_is_one_line_with_the_way_out(spec, error, text):
    for attempt in (open_detector, grounder_digest):
        with pytest.raises(error, match=text) as caught:
            attempt(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_of_the_table_names_its_place_when_nothing_is_there(name):
    for attempt in (open_detector, grounder_digest):
        with pytest.raises(FileNotFoundError, match="/no/such/place"):
            attempt(f"{name}:/no/such/place")


def test_a_backend_is_one_module_and_one_row(tmp_path, monkeypatch):
    (tmp_path / "everything.py").write_text(
        "class Everything:\n"
        "    def __init__(self, place, *, per_phrase):\n"
        "        self.digest, self.per_phrase = digest(place), per_phrase\n"
        "def digest(place):\n"
        "    return place.name\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = Backend("DIR", "finds everything", "everything", "Everything", options=("per_phrase",))
    monkeypatch.setitem(BACKENDS, "everything", row)
    detector = open_detector("everything:a/b", per_phrase=3, device="cuda:99")
    assert (detector.digest, detector.per_phrase) == ("b", 3)
    assert grounder_digest("everything:a/b") == "b"


def test_a_hub_name_without_a_network_says_how_to_fetch_it():
    assert grounder_digest("transformers:IDEA-Research/no-such-model") == "hub:IDEA-Research/no-such-model"
    with pytest.raises(FileNotFoundError, match="hf download IDEA-Research/no-such-model") as caught:
        open_detector("transformers:IDEA-Research/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_directory_wins_over_a_hub_name_of_the_same_spelling(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    spelling = f"transformers:{folder.parent.name}/{folder.name}"
    assert grounder_digest(spelling) == grounder_digest(f"transformers:{folder}")


@pytest.mark.parametrize(
    "options,text",
    [
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "gpu"}, "'gpu' is unknown"),
        ({"dtype": "bf16"}, "did you mean 'bfloat16'"),
        ({"per_phrase": 0}, "per_phrase is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_options_are_named(folder, options, text):
    with pytest.raises(ValueError, match=text):
        open_detector(f"transformers:{folder}", **options)


def test_best_boxes_is_a_rank_cut_by_phrase():
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.5], [-0.5, 0, 2, 1], [0.3, 0.3, 0.3, 0.9]], np.float32)
    scores = np.array([[0.1, 0.9], [0.01, 0.8], [0.7, 0.0], [0.95, 0.95]], np.float32)
    found = best_boxes(boxes, scores, [4, 6], most=3)
    assert found.phrases.tolist() == [
        4,
        4,
        6,
        6,
    ]  # the box without width is dropped, the score 0 is no answer
    np.testing.assert_allclose(found.scores, [0.7, 0.1, 0.9, 0.8])
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 1, 1])
    assert best_boxes(boxes, scores, [0, 1], most=1).phrases.tolist() == []
    assert best_boxes(boxes, scores, [0, 1], most=2).scores.tolist() == pytest.approx([0.7, 0.9])


def test_join_sorts_by_phrase():
    def one(phrase, score):
        return Detection(
            np.full((1, 4), score, np.float32), np.array([score], np.float32), np.array([phrase])
        )

    joined = join([one(2, 0.5), one(0, 0.25)])
    assert joined.phrases.tolist() == [0, 2] and joined.scores.tolist() == [0.25, 0.5]
    assert len(join([]).boxes) == 0 and join([]).boxes.shape == (0, 4)
