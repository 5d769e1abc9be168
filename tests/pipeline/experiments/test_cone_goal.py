"""The goal of the cones: recipes at equal samples, and verdicts that follow from the figures."""

import numpy as np
import pytest
import torch

from hyco.pipeline.config import ConfigError
from hyco.pipeline.evaluation.embedded import Embedded
from hyco.pipeline.evaluation.metrics.retrieval import Pairing
from hyco.pipeline.experiments import ablation, cone_goal, cone_probe
from hyco.pipeline.experiments.cone_goal import BASELINE, CONES, section, setting
from hyco.pipeline.runtime.stop import TerminatedError
from hyco.pipeline.training.recipes import by_name
from hyco.storage.home import Home


def metrics(true=0.9, shuffled=0.05, saturated=0.0, recall=0.5, tie=3.0, three=0.6, ancestor=0.2):
    """The part of metrics.json that the table reads."""
    values = dict.fromkeys(cone_goal.NO_LOSS, recall) | {"hierarchy.tie": tie}
    values |= {cone_goal.THREE_LEVELS: three, cone_goal.ANCESTOR: ancestor}
    return {
        "metrics": {
            name: {"value": value, "low": value - 0.01, "high": value + 0.01, "chance": 0.05}
            for name, value in values.items()
        },
        "geometry": {
            "satisfied": {cone: {"true": true, "shuffled": shuffled, "aperture": 61.0} for cone in CONES},
            "saturated": dict.fromkeys(("text_box", "image_box", "text", "image"), saturated),
        },
        "attribution": {"separation": {cone: {"score": 0.7} for cone in CONES}},
    }


def verdicts(**changed) -> str:
    runs = {BASELINE: [metrics(tie=4.0), metrics(tie=4.1)], "cones": [metrics(**changed)] * 2}
    text = section("table", "note", runs)
    return " ".join(text[text.index("- membership: true pairs") :].split())


def test_an_arm_that_reaches_everything_is_said_to():
    text = verdicts()
    assert text.count("reached.") == 9 and "missed" not in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"true": 0.79}, "true pairs at least 80%: missed: caption > image 79.0%, phrase > part 79.0%"),
        ({"shuffled": 0.11}, "shuffled pairs at most 10%: missed: caption > image 11.0%"),
        ({"saturated": 0.06}, "saturated cones at most 5%: missed: phrase 6.0%, part 6.0%, caption 6.0%"),
        ({"three": 0.49}, "three depths in half of the walks: missed: 49%"),
        ({"ancestor": 0.055}, "an ancestor named above chance: missed: 4.5% against 5.0%"),
        ({"recall": 0.3}, "no loss in retrieval.image_to_text.r5: missed: -20.0 [-20.0, -20.0]"),
        ({"tie": 4.05}, "TIE better than the baseline's: missed: +0.00"),
    ],
)
def test_every_part_of_the_goal_can_be_missed(changed, said):
    assert said in verdicts(**changed)


def test_the_worst_seed_decides_and_the_table_shows_the_range():
    runs = {BASELINE: [metrics()] * 2, "cones": [metrics(true=0.86), metrics(true=0.7)]}
    text = section("table", "note", runs)
    assert "caption > image 70.0%" in text and "78 (70-86) / 5 (5-5) [70 (70-70)]" in text


def test_arms_differ_in_their_rows_and_the_search_has_seeds_and_scenes_of_its_own():
    recipes = {name: setting(make(), 100, 3) for name, make in cone_goal.ARMS.items()}
    first = recipes[BASELINE]
    for recipe in recipes.values():
        assert recipe.steps * recipe.batch_size == first.steps * first.batch_size
        assert (recipe.optimiser, recipe.data, recipe.precision) == (
            first.optimiser,
            first.data,
            first.precision,
        )
        assert recipe.model.vision == first.model.vision
    assert first.optimiser.warmup_steps == round(by_name("demo_clip").optimiser.warmup_steps * 100 / 1200)
    table, search = cone_goal.PHASES["table"], cone_goal.PHASES["search"]
    assert table.heldout != search.heldout
    seeds = [set(range(phase.first_seed, phase.first_seed + phase.seeds)) for phase in (table, search)]
    assert not seeds[0] & seeds[1]


def test_an_unknown_arm_is_named(tmp_path):
    with pytest.raises(ConfigError, match="unknown arm 'cone'; did you mean 'cones'"):
        cone_goal.plan(Home(str(tmp_path)), "v-abcdefgh", ("cone",), "table", 10, 1)


def test_a_stopped_command_does_not_say_that_the_document_is_written(monkeypatch, capsys):
    """SIGTERM ends it at a checkpoint with code 0, and the document is not complete."""
    written = {"is": False}

    def stop(*args, **options):
        if not written["is"]:
            raise TerminatedError("at step 3 of 10")

    for module, work in ((cone_goal, "compare"), (ablation, "ablate")):
        monkeypatch.setattr(module, work, stop)
        for written["is"] in (False, True):
            assert module.main(["--home", "there"]) == 0
            told = capsys.readouterr()
            assert ("is written" in told.out) == written["is"] == ("stopped" not in told.err)


def features(count: int) -> Embedded:
    """Features of `count` images with a caption and a part each; true pairs have like features."""
    draw = torch.Generator().manual_seed(count)
    concept = torch.randn(count, 16, generator=draw)
    image, text, part, phrase = (concept + 0.3 * torch.randn(count, 16, generator=draw) for _ in range(4))
    words = [(f"caption {n}",) for n in range(count)]
    index = np.arange(count)
    return Embedded(
        (),
        image,
        Pairing.of(words),
        text,
        part,
        index,
        Pairing.of([(f"phrase {n}",) for n in range(count)]),
        phrase,
        np.stack([index, index], 1),
        (None,) * count,
        np.zeros((0, 3), np.int64),
        (),
        torch.zeros(0, 16),
        0,
    )


@pytest.mark.parametrize("name", ["CLIP + part queries", "polar, membership 1"])
def test_a_probe_learns_and_measures_its_arm(name):
    heads = cone_probe.train(cone_probe.ARMS[name], features(40), steps=40)
    start = cone_probe.train(cone_probe.ARMS[name], features(40), steps=0)
    before, after = (cone_probe.row(name, each, features(40)) for each in (start, heads))
    assert float(after[1]) > float(before[1]) + 15, "image to caption R@5"
    assert ("-" in after[7]) == (name == "CLIP + part queries")


def test_a_probe_needs_a_finished_run(tmp_path, capsys):
    assert cone_probe.main([str(tmp_path), "--home", str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err
