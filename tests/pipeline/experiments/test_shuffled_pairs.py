"""Shuffled pairs that are true: against scenes where every shuffled pair is known."""

from hyco.pipeline.evaluation.scenes import Region, Scene
from hyco.pipeline.experiments.shuffled_pairs import both, main, mined, rates


def region(phrase, caption=0):
    """A mined part without its box."""
    return Region(((phrase, caption),), image=b"")


def scene(*things, captions=None):
    """A scene with one caption of these (leaf, colour, phrase), each in a box of its own."""
    objects = [
        {"leaf": leaf, "color": color, "phrase": phrase, "caption": 0, "box": [n / 9, 0.0, 1.0, 1.0]}
        for n, (leaf, color, phrase) in enumerate(things)
    ]
    text = captions or " and ".join(phrase for _, _, phrase in things)
    return {"captions": [text], "objects": objects}


def test_two_scenes_of_one_thing_are_shuffled_into_each_other():
    """Kind and colour decide; a phrase that names no colour fits any."""
    cases = {
        "the same thing": (("duck", "red", "a red duck"), ("duck", "red", "one red duck"), (1, 1, 1, 1)),
        "another colour, named": (
            ("duck", "red", "a red duck"),
            ("duck", "blue", "a blue duck"),
            (0, 0, 0, 0),
        ),
        "another colour, not named": (("duck", "red", "a duck"), ("duck", "blue", "the duck"), (1, 1, 0, 1)),
        "another kind": (("duck", "red", "a duck"), ("car", "red", "a red car"), (0, 0, 0, 0)),
    }
    for name, (one, other, expected) in cases.items():
        found = rates([scene(one), scene(other)])
        assert [true / 2 for true, _ in found.values()] == list(expected), name
        assert {pairs for _, pairs in found.values()} == {2}


def test_a_caption_needs_all_its_things():
    duck, car = ("duck", None, "a duck"), ("car", None, "a car")
    found = rates([scene(duck, captions="a duck"), scene(duck, car)])
    assert found["text>image"] == (1, 2), "the duck's caption fits both, the other one only its own"


def test_texts_of_both_kinds_are_counted():
    duck, car = ("duck", None, "a duck"), ("car", None, "a car")
    assert both([scene(duck, captions="A  duck"), scene(duck, car)]) == (1 / 2, 2 / 3)


def test_a_source_without_objects_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_parts_of_photographs_are_classes_or_last_words():
    """A woman and a man are persons and two words; dogs of any colour are one of each."""
    for phrases, expected in ((("a woman", "a man"), (2, 0)), (("the Dog", "a brown dog"), (2, 2))):
        said = [Scene(phrase, b"", (phrase,), (region(phrase),)) for phrase in phrases]
        for kind, count in zip(mined(said), expected, strict=True):
            assert set(rates(kind).values()) == {(count, 2)}, phrases


def test_scenes_or_a_home(capsys):
    assert main([]) == 2 and main(["here", "--home", "there"]) == 2
    assert "and not both" in capsys.readouterr().err
