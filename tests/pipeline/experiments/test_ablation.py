"""The ablation: which runs, resumed how, and sentences that follow from the numbers."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from hyco.pipeline.config import ConfigError
from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.experiments import ablation
from hyco.pipeline.experiments.comparison import MEASURES, difference, section, statements
from hyco.pipeline.experiments.grid import write_section
from hyco.pipeline.training.recipes import by_name
from hyco.storage.home import Home
from tests.factories.training import make_home


def metrics(top1, recall=0.5, tie=3.0, geometry=None, width=0.02):
    """The part of metrics.json that a comparison reads."""
    chance = {"image_to_text": {"r5": 0.01}, "text_to_image": {"r5": 0.01}}
    recalls = {"image_to_text": {"r5": recall}, "text_to_image": {"r5": recall}}
    found = {
        "zero_shot": {"top1": top1, "chance": 0.01},
        "retrieval": {**recalls, "chance": chance},
        "parts": None,
        "hierarchy": {"tie": tie, "chance": {"tie": 5.0}},
        "geometry": geometry,
    }
    values = {"zero_shot.top1": top1, "hierarchy.tie": tie}
    values |= dict.fromkeys(("retrieval.image_to_text.r5", "retrieval.text_to_image.r5"), recall)
    return upgrade(found | {"intervals": {name: [v - width, v + width] for name, v in values.items()}})


def shape(true=0.9, shuffled=0.1, saturated=0.0, radius=0.5):
    nodes = ("text_box", "image_box", "text", "image")
    return {
        "curvature": 0.7,
        "radius": {n: {"q50": radius} for n in nodes},
        "saturated": dict.fromkeys(nodes, saturated),
        "satisfied": {"text>image": {"true": true, "shuffled": shuffled}},
        "order": {"text<image": {"holds": True, "pairs": 0.75}},
    }


RUNS = {
    "clip": [metrics(0.10), metrics(0.12), metrics(0.11)],
    "clip_boxes": [metrics(0.16, 0.51), metrics(0.18, 0.49), metrics(0.17, 0.5)],
    "hycoclip": [metrics(0.19, 0.5, 2.0, shape()), metrics(0.20, 0.5, 2.0, shape()), metrics(0.21, 0.5, 2.0, shape())],
}  # fmt: skip


@pytest.mark.parametrize("seeds", [2, 10, 11, 31, 80])
def test_the_interval_is_student_s(seeds):
    tops = [0.1 + 0.01 * (n % 2) for n in range(seeds)]
    runs = {"clip": [metrics(0.0)] * seeds, "clip_boxes": [metrics(top) for top in tops]}
    found = difference(runs, MEASURES[0], "clip", "clip_boxes")
    reach = student.ppf(0.975, seeds - 1) * np.std(tops, ddof=1) / seeds**0.5
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.03 if seeds > 31 else 1e-3)
    assert (found.high - found.low) / 2 > reach * 0.9995, "never narrower than the level"


def test_differences_are_paired_over_seeds():
    found = difference(RUNS, MEASURES[0], "clip", "clip_boxes")
    assert found.value == pytest.approx(0.06) and found.low == pytest.approx(0.06) and found.counts
    noisy = difference(RUNS, MEASURES[1], "clip", "clip_boxes")
    assert noisy.low == pytest.approx(-4.303 * 0.01 / 3**0.5) and not noisy.counts
    one = {model: seeds[:1] for model, seeds in RUNS.items()}
    found = difference(one, MEASURES[0], "clip", "clip_boxes")
    assert (found.low, found.high) == (pytest.approx(0.02), pytest.approx(0.10)) and found.counts
    wide = {
        model: [metrics(m[0]["metrics"]["zero_shot.top1"]["value"], width=0.04)] for model, m in RUNS.items()
    }
    assert not difference(wide, MEASURES[0], "clip", "clip_boxes").counts


def test_sentences_follow_from_the_numbers():
    said = "\n".join(statements(RUNS, [m for m in MEASURES if not m.startswith("parts")]))
    assert (
        "Boxes (CLIP to CLIP + part queries): zero-shot top-1 better by 6.0 points; image to caption R@5 no"
        in said
    )
    assert "tree distance (TIE) better by 1.00 edges" in said
    assert "gain over CLIP in zero-shot top-1 (9.0), boxes alone give 67%" in said
    assert "In caption to image R@5 HyCoCLIP has no significant gain over CLIP" in said
    assert (
        "HyCoCLIP: the largest median sqrt(c)|x| of a node type is 0.50, at most 1: the space is nearly"
        in said
    )
    assert (
        "caption entails image: 90% of true pairs, 10% of shuffled pairs; it separates true from shuffled pairs."
        in said
    )
    for change, sentence in (
        (shape(true=0.01, shuffled=0.0), "is not satisfied"),
        (shape(true=0.3, shuffled=0.2), "hardly separates true from shuffled pairs"),
        (shape(saturated=0.8), "80% of its cones are saturated"),
        (shape(radius=1.5), "the curvature has an effect"),
    ):
        assert sentence in "\n".join(statements({"meru": [metrics(0.1, geometry=change)]}, []))


def test_a_section_has_tables_and_leaves_out_what_was_not_measured():
    text = section("World", "How.", RUNS)
    assert "| HyCoCLIP | 20.0 [18.0, 22.0] (19.0-21.0) |" in text and "| chance | 1.0 |" in text
    assert "| boxes: CLIP to CLIP + part queries | +6.0 [+6.0, +6.0] |" in text
    assert "part to phrase" not in text and "product of factors" not in text
    assert "| HyCoCLIP | 0.70 | 0.50 / 0.50 / 0.50 / 0.50 | 0 / 0 / 0 / 0 | caption > image 90 / 10 |" in text


def test_a_section_takes_the_place_of_its_last(tmp_path):
    out = tmp_path / "docs" / "ablation.md"
    write_section(out, ablation.marks("demo"), "first", "# Title")
    write_section(out, ablation.marks("photos"), "second", "# Title")
    out.write_text(out.read_text() + "\nBy hand.\n")
    write_section(out, ablation.marks("demo"), "third", "# Another")
    text = out.read_text()
    assert text.startswith("# Title") and text.endswith("By hand.\n") and "first" not in text
    assert text.index("third") < text.index("second") and text.count("<!-- end of demo -->") == 1


def test_shorter_recipes_keep_the_shares_of_their_schedule():
    world = ablation.WORLDS["demo"]
    recipes = {model: ablation.recipe_of(world, model, 240, 2) for model in ablation.MODELS}
    assert {(r.steps, r.batch_size, r.seed, r.optimiser.warmup_steps) for r in recipes.values()} == {
        (240, 128, 2, 12)
    }
    assert recipes["hycoclip"].entailment_ramp == 120 and by_name("demo_hycoclip").entailment_ramp == 600
    assert recipes["phyclip"].model.factors == 16 and recipes["clip"].model.geometry == "euclid"
    with pytest.raises(ConfigError, match=r"unknown model 'mru'; did you mean 'meru'"):
        ablation.recipe_of(world, "mru", 240, 0)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A home, and training and assessment that only leave their files."""
    version = make_home(tmp_path / "home")
    called = []

    def train(folder, home, name, recipe, device):
        called.append(("train", folder.name))
        if len(called) == 7:
            raise KeyboardInterrupt
        found = {"seconds": 60.0, "epochs": 1.0, "device": "cpu", "version": name}
        (folder / "train.json").write_text(json.dumps(found))

    def evaluate(folder, home, spec):
        called.append(("assess", folder.name))
        found = metrics(0.1 + 0.01 * len(called)) | {
            "seconds": 5.0,
            "train": json.loads((folder / "train.json").read_text()),
            "assessed": {"images": 9, "captions": 18, "parts": 3},
        }
        (folder / "metrics.json").write_text(json.dumps(found))

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "evaluate", evaluate)
    return tmp_path / "home", tmp_path / "ablation.md", called, version


def test_a_killed_ablation_goes_on_and_repeats_nothing(work):
    home, out, called, _ = work
    options = {"models": ("clip", "hycoclip"), "steps": 10, "seeds": 2}
    say = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        ablation.ablate("demo", Home(home), out, **options, say=say)
    started = [name.split("-")[1:4:2] for kind, name in called if kind == "train"]
    assert started == [
        ["demo_clip", "s0"],
        ["demo_hycoclip", "s0"],
        ["demo_clip", "s1"],
        ["demo_hycoclip", "s1"],
    ]
    assert "1 seed;" in out.read_text() and "about 2 min left" in say.getvalue()
    done = len(called)
    runs = ablation.ablate("demo", Home(home), out, **options, say=say)
    again = [name for kind, name in called[done:] if kind == "train"]
    assert len(runs) == 4 and again == [runs[3].folder.name]
    assert "2 seeds" in out.read_text() and "2 paired seeds" in out.read_text()
    done = len(called)
    ablation.ablate("demo", Home(home), out, **options, say=say)
    assert len(called) == done


def test_a_directory_with_another_recipe_is_refused(work, monkeypatch):
    home, out, _, _ = work
    ablation.ablate("demo", Home(home), out, models=("clip",), steps=10, seeds=1)
    changed = replace(by_name("demo_clip").model, temperature=0.05)
    monkeypatch.setattr(ablation, "by_name", lambda name: by_name(name).replace(model=changed))
    with pytest.raises(ConfigError, match=r"recipe\.model\.temperature 0\.07, not 0\.05"):
        ablation.ablate("demo", Home(home), out, models=("clip",), steps=10, seeds=1)


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert ablation.main(["--home", str(tmp_path), "--out", str(tmp_path / "a.md")]) == 2
    assert "hyco: error:" in capsys.readouterr().err
