"""Phrases that are absent from an image: drawn, asked, counted, judged by the gate, and used to calibrate."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from hyco.models.grounding.boxes import competed, iou
from hyco.models.grounding.detector import Detection
from hyco.pipeline.cli.app import app
from hyco.pipeline.config import digest
from hyco.pipeline.evaluation.calibrate import Judged, calibrate, judge
from hyco.pipeline.mining.absence import (
    Absence,
    AbsenceConfig,
    Related,
    accepted_fraction,
    best_scores,
    histogram,
)
from hyco.pipeline.mining.mine import MineConfig, mine_all, summary
from hyco.pipeline.mining.noun_phrases import Phrase
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError
from hyco.pipeline.packing.dataset_gate import judge as verdict
from hyco.pipeline.packing.pack import PackConfig, pack
from hyco.pipeline.packing.select_parts import SelectionConfig, select_parts
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.ui import artifact_pages
from hyco.storage.home import Home
from hyco.storage.sample import Sample
from tests.factories.mining import BOX, COLOURS, picture, rows_of, write_tar

THINGS = ("ball", "cup", "hat", "pen")


def samples(count):
    """Blocks of one colour called by one of four names, labelled."""
    for number in range(count):
        colour = list(COLOURS)[number % 3]
        caption = f"a {colour} {THINGS[number % 4]} on the wall"
        label = {"phrase": caption.removesuffix(" on the wall"), "box": BOX, "caption": 0}
        yield f"{number:05d}", picture(colour, number), {"captions": [caption], "objects": [label]}


@pytest.fixture
def source(tmp_path):
    write_tar(tmp_path / "source" / "00000.tar", samples(24))
    return tmp_path / "source"


def config(source, **options):
    return MineConfig(source=str(source), grounder="onnx:counting", **options)


def phrase(text):
    head = text.split()[-1]
    return Phrase(text, 0, len(text), head, text, 0, len(text), True)


def sample(*captions, **meta):
    return Sample("k", b"", captions, meta)


def test_absent_phrases_have_no_noun_of_the_captions_or_labels():
    pool = [phrase(f"a {noun}") for noun in ("dog", "puppies", "cat", "ball", "men", "car", "tree")]
    asked = sample("a man throws balls to a puppy", objects=[{"phrase": "the tree", "box": [0, 0, 1, 1]}])
    drawn = Absence(AbsenceConfig(images=1)).draw(asked, [phrase("a man"), phrase("a puppy")], pool)
    assert set(drawn) == {"a dog", "a cat", "a men", "a car"}, "only the words are compared"
    assert drawn == Absence(AbsenceConfig(images=1)).draw(asked, [], pool), "equal for equal images"
    two = Absence(AbsenceConfig(images=1, phrases=2)).draw(asked, [], pool)
    assert len(two) == 2 and set(two) < set(drawn)


SYNSETS = {"thing": (), "animal": ("thing",), "dog hound": ("animal",), "puppy": ("dog hound",),
           "cat": ("animal",), "car auto": ("thing",)}  # fmt: skip


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """Synsets in the format of data.noun, each with its byte offset."""
    line = "{} 03 n {:02x} {} {:03d} {} | gloss\n"
    offsets, text = {}, "  1 a licence\n"
    for words, above in SYNSETS.items():
        offsets[words] = f"{len(text):08d}"
        told = " ".join(f"{word} 0" for word in words.split())
        pointers = " ".join(f"@ {offsets[one]} n 0000" for one in above)
        text += line.format(offsets[words], len(words.split()), told, len(above), pointers)
    path = tmp_path_factory.mktemp("wordnet") / "data.noun"
    path.write_text(text)
    return path


def test_synonyms_hypernyms_and_hyponyms_are_related(wordnet):
    related = Related(wordnet)
    for a, b in (
        ("dog", "hound"),
        ("puppy", "animal"),
        ("animal", "puppy"),
        ("auto", "car"),
        ("dog", "thing"),
    ):
        assert related.any({a}, {b}) and related.any({b}, {a}), (a, b)
    for a, b in (("dog", "cat"), ("puppy", "car"), ("unheard", "dog")):
        assert not related.any({a}, {b}) and not related.any({b}, {a}), (a, b)


def test_with_wordnet_related_nouns_are_not_absent(wordnet):
    pool = [phrase(f"a {noun}") for noun in ("hound", "animal", "cat", "auto")]
    drawn = Absence(AbsenceConfig(images=1, wordnet=str(wordnet))).draw(
        sample("a puppy"), [phrase("a puppy")], pool
    )
    assert set(drawn) == {"a cat", "a auto"}


def test_best_scores_and_their_histogram():
    found = Detection(
        np.zeros((3, 4), np.float32), np.array([0.9, 0.4, 0.3]), np.array([0, 2, 2]), unknown=(3,)
    )
    assert best_scores(found, 1, 3) == [0.0, 0.4], "phrase 3 was not asked"
    bins = {str(place): n for place, n in histogram([0.0, 0.4, 1.0]).items()}
    assert accepted_fraction([{"absent": {"asked": 3, "scores": bins}}, {}], 0.4) == (2 / 3, 3)
    assert accepted_fraction([{}], 0.4) is None


def test_mining_counts_absent_phrases_and_changes_no_detection(source, home, detector):
    plain = mine_all(config(source), Home(home), InProcess())
    [mined] = Home(home).all_detections()
    before = rows_of(mined.records().popitem()[1], home)
    calls = len(detector.asked)
    wanted = config(source, absent=AbsenceConfig(images=0.5, phrases=2))
    assert digest(wanted) != digest(config(source))
    assert mine_all(wanted, Home(home), InProcess())["boxes"] == plain["boxes"]
    record = Home(home).detections(digest(wanted)).records().popitem()[1]
    assert rows_of(record, home).equals(before)
    again = detector.asked[calls:]
    assert 4 < len(again) < 20, "half of the images, and the others are known"
    assert record["absent"]["asked"] == 2 * len(again) and all(len(texts) == 4 for texts in again)
    false = accepted_fraction([record], 0.35)
    assert false is not None and 0.1 < false[0] < 0.9, "a thing of the same colour is found"
    page = artifact_pages.mining(wanted, Home(home), summary(wanted, Home(home)))
    assert f"given an absent phrase, fraction with a box of score 0.35 or more, of {false[1]}" in page


def test_the_gate_tells_and_limits_the_absent_phrases(source, home, detector):
    mine = config(source, absent=AbsenceConfig(images=1.0, phrases=2))
    mine_all(mine, Home(home), InProcess())
    options = PackConfig(image_size=16, min_area_px=None)
    version = pack(mine, options, Home(home))
    [told] = [check for check in verdict(Home(home), version, QualityConfig()) if "absent" in check.name]
    assert told.passed and told.limit == "none" and 0 < float(told.value) < 1
    with pytest.raises(
        QualityError, match=r"absent phrases have a box of score 0.35, more than max_absent 0.01"
    ):
        pack(mine, options.replace(threshold=0.35, gate=QualityConfig(max_absent=0.01)), Home(home))
    plain = config(source)
    mine_all(plain, Home(home), InProcess())
    checks = verdict(Home(home), pack(plain, options, Home(home)), QualityConfig())
    assert not [check for check in checks if "absent" in check.name]


def test_calibration_chooses_on_one_half_and_measures_on_the_other(source, detector):
    found = calibrate(config(source), "recall", 0.9, absent=AbsenceConfig(phrases=2))
    assert found["threshold"] == 0.8999, "of a score of 0.9 in float32"
    on, off = found["chosen_on"], found["measured_on"]
    assert on["images"] + off["images"] == on["labelled"] + off["labelled"] == 24
    assert on["recall"] == off["recall"] == 1.0 and off["absent_phrases"] == 2 * off["images"]
    assert 0 < off["precision"] < 1, "boxes of absent phrases are wrong"
    with pytest.raises(ValueError, match=r"no threshold has a precision of 1.0: the highest .* is 0\.\d+"):
        calibrate(config(source), "precision", 1.0, absent=AbsenceConfig(phrases=2))
    none = calibrate(config(source), "absent", 0.0, absent=AbsenceConfig(phrases=2))
    assert none["measured_on"]["absent"] == 0 and none["threshold"] == 0.9


def test_calibration_from_the_command_line(source, detector):
    where = ["calibrate", "--source", str(source), "--grounder", "onnx:counting", "-q"]
    told = CliRunner().invoke(app, [*where, "--recall", "0.9"])
    assert json.loads(told.stdout)["threshold"] == 0.8999 and "--set pack.threshold=0.8999" in told.stderr
    for wrong in ([], ["--recall", "0.9", "--precision", "0.9"]):
        assert "give one of --recall" in str(CliRunner().invoke(app, [*where, *wrong]).exception)


def test_thresholds_of_a_judged_set():
    judged = Judged(
        np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True]), 4, np.array([0.5, 0.1, 0.0])
    )
    assert judged.threshold("recall", 0.5) == 0.7 and judged.at(0.7) == {
        "recall": 0.5,
        "precision": 2 / 3,
        "absent": 0.0,
    }
    assert judged.threshold("precision", 0.75) == 0.6
    assert judged.at(judged.threshold("absent", 0.34))["absent"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"the highest recall of any threshold is 0\.750"):
        judged.threshold("recall", 0.9)
    with pytest.raises(ValueError, match="needs a source that labels its phrases"):
        Judged(judged.scores, judged.right, 0, judged.absent).threshold("recall", 0.5)


def test_a_labelled_box_counts_once_and_absent_phrases_are_wrong():
    box = [0.0, 0.0, 0.5, 0.5]
    other = [0.5, 0.5, 1.0, 1.0]
    found = Detection(np.array([box, other, box], np.float32), np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]))
    judged = judge([{"phrase": "A dog", "box": box}], ["a dog", "a cat"], 1, found)
    assert judged.right.tolist() == [True, False, False] and judged.labelled == 1
    assert judged.absent.tolist() == [pytest.approx(0.7)]
    assert judge(None, ["a dog", "a cat"], 1, found, competition=1).absent.tolist() == [
        pytest.approx(0.7 * 0.7 / 0.9)
    ]


def plain_competed(boxes, scores, phrases, images, exponent):
    """Reference implementation, one box at a time."""
    result = []
    for i in range(len(scores)):
        rivals = [scores[j] for j in range(len(scores)) if images[j] == images[i] and phrases[j] != phrases[i]
                  and iou(boxes[i], boxes[j]) >= 0.7]  # fmt: skip
        best = max(rivals, default=0.0)
        result.append(scores[i] * (scores[i] / best) ** exponent if best > scores[i] else scores[i])
    return np.array(result)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("count", [0, 1, 2, 37])
def test_competition_equals_its_reference(count, exponent):
    rng = np.random.default_rng(count)
    low = rng.integers(0, 3, (count, 2)) / 10
    boxes = np.concatenate([low, low + 0.5], axis=1)
    scores, phrases, images = (
        rng.uniform(0.01, 1, count),
        rng.integers(0, 4, count),
        rng.integers(0, 3, count),
    )
    found = competed(boxes, scores, phrases, images, exponent)
    np.testing.assert_allclose(found, plain_competed(boxes, scores, phrases, images, exponent))


def test_packing_lets_phrases_compete_before_the_threshold(source, home, detector):
    detector._look = lambda image, texts: Detection(
        np.array([[0, 0, 0.5, 0.5]] * len(texts), np.float32),
        np.array([0.8, 0.5][: len(texts)], np.float32),
        np.arange(len(texts)),
    )
    mine_all(config(source), Home(home), InProcess())
    [mined] = Home(home).all_detections()
    table = rows_of(mined.records().popitem()[1], home)
    options = SelectionConfig(nms_all_iou=None, min_area_px=None)
    assert {len(parts) for parts in select_parts(table, options).values()} == {2}
    rivals = select_parts(table, options.replace(competition=1.0))  # 0.5 * 0.5 / 0.8 is below 0.35
    assert {tuple(part.score for part in parts) for parts in rivals.values()} == {(np.float32(0.8),)}
    assert {
        len(parts) for parts in select_parts(table, options.replace(competition=1.0, threshold=0.3)).values()
    } == {2}
    assert (
        digest(options)
        == digest(options.replace(competition=0.0))
        != digest(options.replace(competition=1.0))
    )


def test_captions_in_another_language_are_counted_and_reported(tmp_path, home, detector):
    texts = ("a red ball on the wall", "ein roter Ball liegt auf der Wand", "un ballon rouge sur le mur")
    rows = [(f"{n}", picture("red", n), {"captions": [text]}) for n, text in enumerate(texts)]
    write_tar(tmp_path / "source" / "00000.tar", rows)
    mine = config(tmp_path / "source")
    found = mine_all(mine, Home(home), InProcess())
    [mined] = Home(home).all_detections()
    assert mined.records().popitem()[1]["captions_foreign"] == 2
    page = artifact_pages.mining(mine, Home(home), found)
    assert "captions likely in another language than the parser's, of 3 | 2 (66.7%)" in page
