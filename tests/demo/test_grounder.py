"""The shipped weights of the embedded grounder, measured again on scenes training never drew."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hyco.demo.grounder import FIXED_IDS, IMAGE_SIZE, SCORE_THRESHOLD, vocabulary
from hyco.demo.grounder_figures import Question, curve, judge, measure, questions
from hyco.demo.grounder_loss import corners, phrase_of_token, phrase_scores
from hyco.demo.grounder_prompts import prompt_text
from hyco.models.grounding.detector import Detection
from hyco.pipeline.mining.grounder import open_detector

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights" / "grounder"
RECALL, PRECISION = 0.90, 0.85  # what the demo promises; measured at one threshold for every scene


@pytest.fixture(scope="module")
def detector():
    return open_detector(f"transformers:{WEIGHTS}", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def asked():
    """Held-out scenes, each asked about every phrase of its captions and about 2 things it does not show."""
    return questions(150, absent=2, first=7_000_000)  # other scenes than those of figures.json


def test_recall_and_precision_on_heldout_scenes(detector, asked):
    points, _ = measure(detector, asked)
    at = points[f"{SCORE_THRESHOLD:g}"]
    assert at["recall"] >= RECALL and at["precision"] >= PRECISION, points
    figures = json.loads((WEIGHTS / "figures.json").read_text())["measured"]
    told = figures["at_threshold"]["heldout, 2 absent phrases"]
    assert figures["threshold"] == SCORE_THRESHOLD
    assert told["recall"] >= RECALL and told["precision"] >= PRECISION
    assert abs(at["recall"] - told["recall"]) < 0.05 and abs(at["precision"] - told["precision"]) < 0.05


def test_weights_are_small_and_match_their_figures():
    files = [f for f in WEIGHTS.iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 12e6
    assert not {f.suffix for f in files} - {".json", ".safetensors"}
    trained = json.loads((WEIGHTS / "figures.json").read_text())["training"]
    recipe = trained["recipe"]
    assert trained["step"] == recipe["steps"] + recipe["refine_steps"]  # a finished run, not a checkpoint
    assert trained["image_size"] == IMAGE_SIZE


def test_the_librarys_own_classes_read_the_same_boxes_from_the_folder(detector, asked):
    from PIL import Image
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    model = AutoModelForZeroShotObjectDetection.from_pretrained(
        WEIGHTS, local_files_only=True, dtype=torch.float32
    )
    processor = AutoProcessor.from_pretrained(WEIGHTS, local_files_only=True)
    for question in asked[:4]:
        image = Image.fromarray(question.image).resize((200, 160))  # any size: the processor knows its own
        inputs = processor(images=image, text=prompt_text(question.phrases), return_tensors="pt")
        assert inputs.pixel_values.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        scores = phrase_scores(outputs.logits[0], phrase_of_token(inputs.input_ids)[0], len(question.phrases))
        (found,) = detector([np.asarray(image)], [question.phrases])
        for phrase in range(len(question.phrases)):
            best = int(scores[:, phrase].argmax())
            mine = int(np.flatnonzero(found.phrases == phrase)[0])
            assert found.scores[mine] == pytest.approx(float(scores[best, phrase]), abs=2e-3)
            box = corners(outputs.pred_boxes[0, best]).clamp(0, 1).numpy()
            np.testing.assert_allclose(found.boxes[mine], box, atol=2e-3)


def test_an_answer_does_not_depend_on_what_else_is_asked_in_the_batch(detector, asked):
    together = detector([q.image for q in asked[:8]], [q.phrases for q in asked[:8]])
    alone = [detector([q.image], [q.phrases])[0] for q in asked[:8]]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.phrases, b.phrases)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


def test_vocabulary_keeps_the_fixed_ids_and_spells_unknown_words(detector):
    ids = vocabulary(["duck", "a", "red", "duck"])
    assert sorted(ids.values()) == list(range(len(ids)))
    assert all(ids[token] == number for token, number in FIXED_IDS.items())
    spelt, known = detector.encode(["zyzzyva quux42", "duck"])
    assert len(known) == 1 and len(spelt) == 7 + 6 and FIXED_IDS["[UNK]"] not in spelt


def test_judging_by_hand():
    image = np.zeros((8, 8, 3), np.uint8)
    true = np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    asked = Question(image, ["two ducks", "a car"], [true, np.zeros((0, 4))])
    found = Detection(
        np.array(
            [
                [0.0, 0.0, 0.5, 0.5],  # right
                [0.0, 0.0, 0.5, 0.4],  # the same duck again, IoU 0.8: suppressed
                [
                    0.0,
                    0.0,
                    0.5,
                    0.28,
                ],  # the same duck, IoU 0.56: it passes suppression, but the duck is taken
                [0.5, 0.5, 1.0, 1.0],  # right box, but for a phrase that is not there
            ],
            np.float32,
        ),
        np.array([0.9, 0.8, 0.6, 0.35], np.float32),
        np.array([0, 0, 0, 1]),
    )
    scores, right, count = judge(asked, found)
    assert count == 2
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.35]) and right.tolist() == [True, False, False]
    points = curve([(scores, right, count)])
    assert points["0.3"] == {"recall": 0.5, "precision": 0.3333}
    assert points["0.7"] == {"recall": 0.5, "precision": 1.0}
