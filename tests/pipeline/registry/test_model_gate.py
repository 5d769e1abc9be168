"""The gate: beyond the interval refuses, within it does not, and what cannot be compared is said."""

import numpy as np
import pytest

from hyco.pipeline.config import ConfigError
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.document import upgrade
from hyco.pipeline.registry.model_gate import GateConfig, judge


def metrics(top1=0.5, span=(0.45, 0.55), tie=4.0, tie_span=(3.8, 4.2), images=40):
    old = {
        "assessed": {"source": "held", "images": images},
        "zero_shot": {"top1": top1},
        "hierarchy": {"tie": tie},
        "retrieval": None,
        "intervals": {"zero_shot.top1": list(span), "hierarchy.tie": list(tie_span)},
    }
    return upgrade(old)


GATE = GateConfig(metrics=("zero_shot.top1", "hierarchy.tie", "retrieval.image_to_text.r5"))


@pytest.mark.parametrize(
    ("challenger", "champion", "passed"),
    [
        (metrics(0.50), metrics(0.50), True),
        (metrics(0.50, (0.45, 0.55)), metrics(0.549), True),  # the champion lies within the interval
        (metrics(0.50, (0.45, 0.55)), metrics(0.551), False),
        (metrics(0.90, (0.85, 0.95)), metrics(0.551), True),
        (metrics(tie=5.0, tie_span=(4.1, 5.5)), metrics(tie=4.2), True),  # a distance: less is better
        (metrics(tie=5.0, tie_span=(4.3, 5.5)), metrics(tie=4.2), False),
        (metrics(tie=1.0, tie_span=(0.9, 1.1)), metrics(tie=4.2), True),
    ],
)
def test_the_interval_decides(challenger, champion, passed):
    verdict = judge(challenger, champion, GATE)
    assert verdict.passed is passed
    assert [one.metric for one in verdict.comparisons] == ["zero_shot.top1", "hierarchy.tie"]
    assert any(one.worse for one in verdict.comparisons) is not passed


def test_a_refusal_names_the_numbers():
    verdict = judge(metrics(0.2, (0.1, 0.3)), metrics(0.5), GATE)
    assert verdict.reason == "worse than the champion: zero_shot.top1 0.2, interval 0.1 to 0.3, champion 0.5"


def test_one_better_number_does_not_buy_off_a_worse_one():
    better = metrics(0.9, (0.8, 1.0), tie=6.0, tie_span=(5.5, 6.5))
    assert not judge(better, metrics(), GATE).passed


def test_tolerance_is_a_share_of_the_champions_number():
    challenger, champion = metrics(0.40, (0.35, 0.45)), metrics(0.49)
    assert not judge(challenger, champion, GATE).passed
    assert judge(challenger, champion, GATE.replace(tolerance=0.1)).passed


def test_a_metric_that_only_the_challenger_lacks_refuses():
    lacking = metrics()
    del lacking["metrics"]["zero_shot.top1"]
    verdict = judge(lacking, metrics(), GATE)
    assert not verdict.passed and "zero_shot.top1 was not measured" in verdict.reason
    assert judge(metrics(), lacking, GATE).passed


def test_without_a_champion_a_measured_challenger_passes():
    assert judge(metrics(), None, GATE).passed
    lost = r"none of the gate's metrics .*crop_to_phrase\.r5\) was measured: assess on held-out .*pack\.holdout above 0"
    with pytest.raises(ValueError, match=lost):
        judge(metrics(), None, GateConfig(metrics=("parts.crop_to_phrase.r5",)))


def test_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match="different images"):
        judge(metrics(images=40), metrics(images=41), GATE)


def test_the_same_images_under_another_spelling_are_compared():
    champion = metrics()
    champion["assessed"]["source"] = "/srv/held"
    assert judge(metrics(), champion, GATE).passed


def test_a_section_is_not_a_number():
    with pytest.raises(ConfigError, match="'zero_shot' has no known direction"):
        GateConfig(metrics=("zero_shot",))


@pytest.mark.parametrize("name", ["train.loss_last", "suite.imagenet.hierarchy.tie", "hierarchy.lca"])
def test_less_of_a_loss_or_a_distance_is_better(name):
    def told(value):
        for step in reversed(name.split(".")):
            value = {step: value}
        return upgrade(value)

    gate = GateConfig(metrics=(name,))
    assert judge(told(1.0), told(2.0), gate).passed
    assert not judge(told(2.0), told(1.0), gate).passed


@pytest.mark.parametrize("name", ["train.seconds", "geometry.radius.text.mean", "mining.boxes", "seconds"])
def test_a_number_that_is_neither_better_nor_worse_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' has no known direction"):
        GateConfig(metrics=("zero_shot.top1", name))


def test_a_gate_without_metrics_is_refused():
    with pytest.raises(ConfigError, match="at least one metric"):
        GateConfig(metrics=())


def measured(top1: float, span: tuple[float, float], chance: float = 0.1, n: int = 30):
    found = metrics(top1, span)
    found["metrics"]["zero_shot.top1"] |= {"chance": chance, "n": n}
    return found


ONE = GateConfig(metrics=("zero_shot.top1",))


@pytest.mark.parametrize(
    ("top1", "span", "passed"),
    [(0.12, (0.05, 0.2), False), (0.12, (0.1, 0.2), False), (0.2, (0.11, 0.3), True)],
)
def test_a_first_model_has_to_be_above_chance(top1, span, passed):
    verdict = judge(measured(top1, span), None, ONE)
    assert verdict.passed is passed
    if not passed:
        assert verdict.reason.startswith(
            f"at chance: zero_shot.top1 0.12, interval {span[0]} to 0.2, chance 0.1"
        )
        forced = judge(measured(top1, span), None, ONE.replace(above_chance=False))
        assert forced.passed and "at chance (gate.above_chance is off)" in forced.reason


def test_a_challenger_at_chance_is_refused_even_where_the_evaluation_cannot_tell():
    lost = measured(0.12, (0.05, 0.3))
    verdict = judge(lost, measured(0.2, (0.11, 0.3)), ONE)
    assert not verdict.passed and verdict.reason.startswith(
        "at chance: zero_shot.top1 0.12, interval 0.05 to 0.3"
    )
    allowed = judge(lost, measured(0.2, (0.11, 0.3)), ONE.replace(above_chance=False))
    assert allowed.passed and allowed.reason.startswith("cannot tell whether it is worse than the champion")


def test_one_metric_above_chance_is_enough_for_a_first_model():
    found = measured(0.12, (0.05, 0.2))
    found["metrics"]["hierarchy.tie"]["chance"] = 5.0  # less is better, and 4.2 is less
    assert judge(found, None, GATE).passed


def test_an_evaluation_that_is_too_small_to_tell_is_said_so():
    small = measured(0.2, (0.11, 0.4))
    verdict = judge(small, measured(0.25, (0.1, 0.45)), ONE)
    assert verdict.passed and verdict.reason == (
        "cannot tell whether it is worse than the champion: "
        "zero_shot.top1, n = 30: only a difference above 0.2 shows"
    )
    assert verdict.comparisons[0].sees == pytest.approx(0.2) and verdict.comparisons[0].n == 30
    mixed = judge(small, measured(0.25, (0.1, 0.45)), GATE)
    assert mixed.reason.startswith(
        "no worse than the champion in 1 of 2 metrics; cannot tell in the others: zero"
    )
    large = judge(measured(0.5, (0.45, 0.55), n=1000), measured(0.5, (0.45, 0.55)), ONE)
    assert large.reason == (
        "no worse than the champion in 1 of 1 metrics; a loss would show from 0.05 (zero_shot.top1)"
    )


def test_no_hit_does_not_show_that_one_is_better():
    """0 of 78 images beside 1 of 78: the bootstrap alone gives no hit an interval without width."""
    span = Bootstrap(draws=50).hits(np.zeros((78, 1)))[0]
    verdict = judge(metrics(0.0, span), metrics(1 / 78), GateConfig(metrics=("zero_shot.top1",)))
    assert verdict.passed and not verdict.comparisons[0].worse


def test_who_is_better_than_a_champion_at_chance_is_told_so():
    """No loss could show where the champion is at chance; that is no doubt about a gain."""
    gate = GateConfig(metrics=("zero_shot.top1",))
    known = {"low": 0.32, "high": 0.45, "chance": 0.025, "n": 200}
    found = {"zero_shot.top1": {"value": 0.385, **known}}
    verdict = judge(
        {"metrics": found}, {"metrics": {"zero_shot.top1": {**found["zero_shot.top1"], "value": 0.025}}}, gate
    )
    assert verdict.reason.startswith("no worse than the champion in 1 of 1 metrics, better in 1")
