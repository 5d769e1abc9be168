"""Challenges, refusals and rollbacks over real (tiny, untrained) models and a real assessment."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hyco.models.clip import DualEncoder
from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.cli import registry as commands
from hyco.pipeline.evaluation.evaluate import AssessConfig, EvaluationSpec, evaluate
from hyco.pipeline.integrity.repair import repair
from hyco.pipeline.registry import promotion as registries
from hyco.pipeline.registry.model_gate import GateConfig
from hyco.pipeline.registry.promotion import challenge, examine, refuse, rollback
from hyco.pipeline.training.run_dir import prepare
from hyco.storage.home import Home
from hyco.storage.model_registry import fingerprint
from hyco.storage.shard import write_shard
from hyco.storage.store import Store
from hyco.storage.versions import Versions, shard_ref
from tests.factories.mining import write_tar
from tests.factories.training import sample, tiny_recipe

GATE = GateConfig(
    metrics=("retrieval.image_to_text.r5", "retrieval.text_to_image.r5"), above_chance=False
)  # models of a few steps


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with a version that has a val split, and three runs of untrained models, the first one assessed."""
    home = tmp_path_factory.mktemp("registry") / "home"
    store, refs = Store(home), {}
    for split, numbers in {"train": range(8), "val": range(8, 24)}.items():
        samples = [sample(n) for n in numbers]
        committed = store.commit("shards/objects", ".tar", lambda file, s=samples: write_shard(file, s))
        refs[split] = [shard_ref(committed, len(samples), sum(len(s.parts) for s in samples))]
    config = {"mine": {"source": "s3://captions"}}
    version = Versions(store).publish(config, {"mine": "abc"}, refs, {"images": 24}, ["det1"]).name
    recipe = tiny_recipe()
    tokenizer = Tokenizer.train([text for n in range(24) for text in sample(n).captions], 560, 16)
    for number, name in enumerate(("a", "b", "c")):
        folder = home / "runs" / name
        prepare(folder, Home(home), version, recipe)
        torch.manual_seed(number)
        text = replace(recipe.model.text, vocab_size=len(tokenizer), end_token=tokenizer.end)
        DualEncoder(replace(recipe.model, text=text)).save_pretrained(folder / "model")
        tokenizer.save(folder / "model")
    spec = EvaluationSpec(version=version, config=AssessConfig(draws=100, samples=0, answers=0))
    metrics = evaluate(home / "runs" / "a", Home(home), spec)
    return home, spec, metrics


@pytest.fixture
def home(made, tmp_path):
    """A copy, so that each test has a registry of its own."""
    shutil.copytree(made[0], tmp_path / "home")
    return tmp_path / "home"


def worse(metrics):
    """The same answers, but wrong."""
    bad = json.loads(json.dumps(metrics))
    for way in ("image_to_text", "text_to_image"):
        bad["metrics"][f"retrieval.{way}.r5"] |= {"value": 0.0, "low": 0.0, "high": 0.0}
    return bad


def served(home):
    registry = Home(home).registry
    return registry.path(registry.champion().model)


def take(home, made, name, change=lambda metrics: metrics, **options):
    _, spec, metrics = made
    return challenge(home / "runs" / name, Home(home), spec, GATE, change(metrics), **options)


def test_the_first_model_is_promoted_with_its_lineage(home, made):
    row = take(home, made, "a", key="k1")
    assert (row.kind, row.before, row.number) == ("promoted", None, 1)
    assert (row.source, row.detections, row.detectors) == ("s3://captions", "detections/abc", ["det1"])
    assert row.version == made[1].version and row.run == str(home / "runs" / "a")
    assert (home / row.report).read_bytes() == (home / "runs" / "a" / "report.html").read_bytes()
    assert json.loads(row.metrics)["retrieval"] == made[2]["retrieval"]
    assert fingerprint(served(home)) == fingerprint(home / "runs" / "a" / "model")


def another_exam(made):
    """An evaluation on which no model was judged."""
    return made[1].replace(config=made[1].config.replace(seed=3))


def test_the_champion_is_asked_the_same_questions_once(home, made, monkeypatch):
    row = take(home, made, "a")
    shutil.rmtree(home / "runs" / "a")  # the registry does not need the run any more
    metrics = examine(row, Home(home), another_exam(made))
    known = made[2]["metrics"]
    assert {name: one["value"] for name, one in metrics["metrics"].items()} == {
        name: one["value"] for name, one in known.items()
    }
    assert metrics["metrics"] != known, "intervals of another seed"
    assert metrics["assessed"] == made[2]["assessed"]
    monkeypatch.setattr(registries, "evaluate", None)
    assert examine(row, Home(home), another_exam(made)) == metrics


def test_the_champion_is_not_asked_what_it_was_judged_on(home, made, monkeypatch):
    row = take(home, made, "a")
    monkeypatch.setattr(registries, "evaluate", None)
    assert examine(row, Home(home), made[1]) == made[2]
    take(home, made, "b")
    back = rollback(Home(home))
    assert back.model == row.model and examine(back, Home(home), made[1]) == made[2]


def test_metrics_of_a_decision_that_cannot_be_read_are_left_aside(home, made):
    row = take(home, made, "a")
    Home(home).registry.append(replace(row, metrics='{"schema": 99}'), 1)
    assert examine(row, Home(home), made[1]) == made[2]


def test_metrics_with_other_counts_than_the_challengers_are_measured_again(home, made, monkeypatch):
    """The same taxonomy at another path is the same exam, and the gate compares what the two sides say of it."""
    row = take(home, made, "a")
    other = json.loads(json.dumps(made[2]))
    other["assessed"]["taxonomy"] = "/elsewhere/taxonomy.json"
    asked = []
    monkeypatch.setattr(registries, "evaluate", lambda *given, **more: asked.append(given))
    monkeypatch.setattr(registries, "prove_folder", lambda folder: None)
    monkeypatch.setattr(registries, "read_metrics", lambda path: other)
    Home(home).registry.assessment(f"{made[1].digest(Home(home))}-{row.model}").write("metrics.json", b"{}")
    assert examine(row, Home(home), made[1], beside=other) == other and len(asked) == 1
    assert examine(row, Home(home), made[1], beside=made[2]) == made[2] and len(asked) == 1


def test_changed_answers_of_a_champion_are_not_believed(home, made):
    row = take(home, made, "a")
    metrics = examine(row, Home(home), another_exam(made))
    (kept,) = home.glob("registry/assessed/*/metrics.json")
    kept.write_text(kept.read_text().replace('"value": ', '"value": 9'))
    assert examine(row, Home(home), another_exam(made))["metrics"] == metrics["metrics"], "it was asked again"


def test_a_model_is_promoted_again_when_its_copy_was_set_aside(home, made):
    row = take(home, made, "a")
    path = Home(home).registry.path(row.model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert [damage.kind for damage in repair(Home(home))] == ["model"]
    assert take(home, made, "a") == row and Home(home).registry.problem(row.model, row.files) is None


def test_a_held_out_source_is_one_exam_however_its_path_is_spelt(home, made, tmp_path, monkeypatch):
    row = take(home, made, "a")
    monkeypatch.chdir(tmp_path)
    held = [sample(n) for n in range(8)]
    write_tar(Path("held.tar"), [(each.key, each.image, {"captions": list(each.captions)}) for each in held])
    examine(
        row, Home(home), made[1].replace(assess_source=str(tmp_path / "held.tar"))
    )  # as a deployment asks
    spec = made[1].replace(assess_source="held.tar")
    metrics = evaluate(home / "runs" / "b", Home(home), spec)
    monkeypatch.setattr(registries, "evaluate", None)  # the champion has answered already
    assert challenge(home / "runs" / "b", Home(home), spec, GATE, metrics).before == row.model


def test_what_is_decided_by_hand_is_told_with_its_home(home, made, monkeypatch):
    told = []
    monkeypatch.setattr(commands, "announcers", [lambda row, where: told.append((row.kind, where))])
    commands.promote(str(home / "runs" / "a"), str(home), force=True, metric=list(GATE.metrics))
    shutil.move(home / "runs" / "b", home.parent / "elsewhere")
    commands.reject(str(home.parent / "elsewhere"), "x", str(home))
    assert told == [("promoted", str(home)), ("refused", str(home))]


def test_a_promotion_without_options_asks_what_the_last_evaluation_did(home, made, tmp_path):
    """A journey with --assess-source packs no val split: an empty report must not replace the one that it made."""
    write_tar(
        tmp_path / "held.tar",
        [(each.key, each.image, {"captions": list(each.captions)}) for each in map(sample, range(8))],
    )
    nodes = [{"id": "thing"}, *({"id": name, "parent": "thing", "names": [name]} for name in ("red", "blue"))]
    (tmp_path / "taxonomy.json").write_text(json.dumps({"root": "thing", "nodes": nodes}))
    spec = made[1].replace(assess_source=str(tmp_path / "held.tar"), taxonomy=str(tmp_path / "taxonomy.json"))
    before = evaluate(home / "runs" / "b", Home(home), spec)["assessed"]
    commands.promote("b", str(home), force=True, metric=list(GATE.metrics))
    after = json.loads((home / "runs" / "b" / "metrics.json").read_text())["assessed"]
    assert after == before and after["source"].endswith("held.tar") and after["taxonomy"] == spec.taxonomy
    commands.promote("a", str(home), force=True, metric=list(GATE.metrics))
    assert json.loads((home / "runs" / "a" / "metrics.json").read_text())["assessed"]["source"].startswith(
        "val"
    )


def test_a_worse_challenger_is_refused_and_nothing_else_changes(home, made):
    take(home, made, "a")
    row = take(home, made, "b", worse)
    assert row.kind == "refused" and "retrieval.image_to_text.r5 0, interval 0 to 0" in row.reason
    assert Home(home).registry.champion().run.endswith("/a")
    assert len(list((home / "registry" / "models").glob("*/model.safetensors"))) == 1
    assert json.loads(row.verdict)["comparisons"][0]["worse"]


def test_a_worse_challenger_can_be_promoted_by_hand_and_the_log_says_so(home, made):
    take(home, made, "a")
    row = take(home, made, "b", worse, anyway=True)
    assert row.kind == "promoted" and row.reason.startswith("by hand, although worse")


def test_the_same_challenge_decides_once(home, made):
    first = take(home, made, "a", key="k1")
    second = take(home, made, "b", worse, key="k2")
    assert take(home, made, "a", key="k1") == first and take(home, made, "b", worse, key="k2") == second
    assert len(Home(home).registry.rows()) == 2


def test_a_challenge_that_was_overtaken_is_judged_again(home, made, monkeypatch):
    take(home, made, "a")
    judged = []

    def examined(row, *rest):
        if not judged:
            take_by_hand(home, made)
        judged.append(row.model)
        return made[2]

    def take_by_hand(home, made):
        monkeypatch.setattr(registries, "examine", lambda *rest: made[2])
        take(home, made, "b")
        monkeypatch.setattr(registries, "examine", examined)

    monkeypatch.setattr(registries, "examine", examined)
    row = take(home, made, "c")
    rows = Home(home).registry.rows()
    assert [one.run[-1] for one in rows] == ["a", "b", "c"]
    assert judged == [rows[0].model, rows[1].model] and row.before == rows[1].model


def killed_at_fsync(number, work):
    """Do some work in a child process that is killed at its `number`-th fsync; False when it ended before that."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    real, left = os.fsync, [number]

    def fsync(handle):
        real(handle)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    work()
    os._exit(0)


def test_kill_9_at_every_write_leaves_a_whole_promotion_or_none(home, made, monkeypatch):
    monkeypatch.setattr(registries, "examine", lambda *rest: made[2])
    take(home, made, "a")
    first, kills = Home(home).registry.champion(), 0
    while killed_at_fsync(kills + 1, lambda: take(home, made, "b", key="k2")):
        kills += 1
        now, rows = Home(home).registry.champion(), Home(home).registry.rows()
        assert Home(home).registry.problem(now.model, now.files) is None
        assert (now == first and rows == [first]) or (now.run.endswith("/b") and len(rows) == 2)
        if len(rows) == 2:  # killed behind the one write that counts: asked again, it decides nothing
            assert take(home, made, "b", key="k2") == rows[1]
    assert kills >= 5, "model, run, report and row are written in more steps than that"
    assert Home(home).registry.champion().run.endswith("/b") and len(Home(home).registry.rows()) == 2


def test_rollback_restores_the_very_bytes(home, made):
    original = fingerprint(home / "runs" / "a" / "model")
    take(home, made, "a")
    take(home, made, "b")
    take(home, made, "c")
    assert rollback(Home(home)).run.endswith("/b")
    row = rollback(Home(home), reason="b was bad too")
    assert (row.kind, row.run[-1], row.reason) == ("rolled_back", "a", "b was bad too")
    assert fingerprint(served(home)) == original == row.files
    with pytest.raises(ValueError, match="no earlier one"):
        rollback(Home(home))
    last = next(one for one in Home(home).registry.rows() if one.run.endswith("/c"))
    assert rollback(Home(home), last.model[:8]).run.endswith("/c")


def test_rollback_refuses_weights_that_have_changed(home, made):
    row = take(home, made, "a")
    take(home, made, "b")
    weights = Home(home).registry.path(row.model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValueError, match="changed since the promotion"):
        rollback(Home(home))
    assert Home(home).registry.champion().run.endswith("/b")


def test_a_run_can_be_refused_by_hand_but_not_the_champion(home, made):
    take(home, made, "a")
    row = refuse(home / "runs" / "b", Home(home), "trained on the wrong data")
    assert (row.kind, row.reason) == ("refused", "by hand: trained on the wrong data")
    with pytest.raises(ValueError, match="roll back instead"):
        refuse(home / "runs" / "a", Home(home), "no")


def test_unknown_targets_are_named(home, made):
    with pytest.raises(ValueError, match="has no champion"):
        rollback(Home(home))
    take(home, made, "a")
    with pytest.raises(ValueError, match="'zz' names 0 promoted models"):
        rollback(Home(home), "zz")


def test_another_source_is_another_exam(home, made):
    spec = made[1]
    assert spec.digest(Home(home)) == spec.replace(config=spec.config.replace(batch_size=3)).digest(
        Home(home)
    )
    assert spec.digest(Home(home)) != spec.replace(config=spec.config.replace(seed=3)).digest(Home(home))
