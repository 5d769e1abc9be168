"""Zero-shot under each prompt by itself: mean, worst and range against a reference, and its place in the suite."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from hyco.pipeline.datasets.dataset_card import card
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.catalog import find
from hyco.pipeline.evaluation.metrics.prompt_regimes import ALL, BARE, prompt_sensitivity, regimes
from tests.oracle import ranking as plain
from tests.pipeline.evaluation.test_published_sets import ColourEmbedder, paint

FEW = Bootstrap(draws=200)


def test_numbers_and_intervals_are_the_twins() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(4, size=60)
    truth[:4] = np.arange(4)
    hits = {f"{n}": (random.random(60) < share).astype(float) for n, share in enumerate((0.4, 0.5, 0.7))}
    found = prompt_sensitivity(hits, truth, 9, FEW)
    rows = [row.astype(int).tolist() for row in hits.values()]
    names = ("mean", "worst", "range")
    expected = dict(zip(names, plain.over_prompts(rows, truth.tolist()), strict=True))
    assert {name: found.numbers[name] for name in names} == pytest.approx(expected, abs=1e-12)
    assert found.numbers["chance"] == {"mean": 1 / 9, "worst": 1 / 9} and found.numbers["n"] == 60
    drawn = []
    for weight in FEW.weights(60):
        for row in weight.astype(int):
            index = np.repeat(np.arange(60), row)
            drawn.append(
                plain.over_prompts([np.array(r)[index].tolist() for r in rows], truth[index].tolist())
            )
    for name, low, high in zip(names, *np.quantile(drawn, [0.025, 0.975], axis=0), strict=True):
        assert found.intervals[name] == pytest.approx((low, high), abs=1e-12)


def test_regimes_are_the_bare_name_each_prompt_and_all() -> None:
    found = regimes(("a photo of a {}.", "art of a {}."))
    assert found == {
        BARE: (BARE,),
        "a photo of a {}.": ("a photo of a {}.",),
        "art of a {}.": ("art of a {}.",),
        ALL: ("a photo of a {}.", "art of a {}."),
    }
    assert ALL not in regimes(("a photo of a {}.",))


class Misled(ColourEmbedder):
    """Reads nothing but blue in a text with "blurry"; its image tower gives the colour itself."""

    def __init__(self):
        super().__init__()
        self.model.visual = nn.Identity()

    def encode_pixels(self, images):
        return self.model.visual(super().encode_pixels(images))

    def project_text(self, texts, report=lambda n: None):
        return super().project_text(["blue" if "blurry" in text else text for text in texts])


def test_the_suite_finds_the_prompt_that_misleads(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        for n in range(3):
            paint(tmp_path / "cifar10" / "test" / colour / f"{n}.png", colour)
    without = run_suite(Misled(), "cifar10", tmp_path, FEW, least=0)["suite"]["cifar10"]
    assert "prompts" not in without
    found = run_suite(Misled(), "cifar10", tmp_path, FEW, least=0, prompt_sensitivity=True)
    block = found["suite"]["cifar10"]["prompts"]
    each = dict(block["regimes"])
    assert set(each) == {BARE, ALL, *card("cifar10").prompts}
    misleading = [name for name in each if "blurry" in name]
    assert misleading and all(each[name] < 1 for name in misleading) and each[BARE] == 1
    assert block["worst"] == min(each.values()) and block["range"] == 1 - block["worst"]
    assert block["mean"] == pytest.approx(np.mean(list(each.values())))
    assert len(found["intervals"]["suite.cifar10.prompts.worst"]) == 2
    for name in ("mean", "worst", "range"):
        assert find(f"suite.cifar10.prompts.{name}") is not None
    assert find("prompts.range").higher_is_better is False  # pyright: ignore[reportOptionalMemberAccess]
