"""The trainer: it learns, resumes on the same curve, refuses another configuration, and keeps the classes it should."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from hyco.models.heads.balanced_prototypes import embed_hierarchy
from hyco.models.heads.cosine import nonl, ntce
from hyco.models.heads.max_separation import MaximumSeparation, equal_radius
from hyco.pipeline.classification import train
from hyco.pipeline.classification.config import FitConfig, fit_recipe
from hyco.pipeline.classification.evaluate import EvaluateConfig, evaluate
from hyco.pipeline.classification.in_memory import Epoch, statistics
from hyco.pipeline.classification.model import MLR_SLOPE, class_prototypes, load_classifier, make_classifier
from hyco.pipeline.classification.train import fit, make_optimiser, training_images
from hyco.pipeline.cli.app import app
from hyco.pipeline.config import ConfigError
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.evaluation.metrics.document import read_metrics
from hyco.pipeline.runtime.stop import TerminatedError
from hyco.pipeline.training.run_protocol import learning_rate
from hyco.pipeline.training.step_log import StepLog, read_log
from hyco.pipeline.ui.status import report
from hyco.storage.checkpoint import Checkpoints
from hyco.storage.home import Home
from tests.oracle.classification_metrics import published_draw

ROOT = Path(__file__).parents[3]
ATTACKED = 12


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(run)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    """A run of forty steps with the separation head on a long tail, never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(run, whole(squares))
    return run


def whole(squares: Path) -> FitConfig:
    return FitConfig(
        model="resnet20",
        data=f"folder:{squares}",
        head="separation",
        radius="learned",
        imbalance=0.5,
        widths=(4, 4, 8),
        image_size=8,
        batch_size=24,
        steps=40,
        lr=0.01,
        crop=1,
        log_every=1,
        checkpoint_steps=10,
    )


def test_the_published_draw_needs_the_published_order(squares: Path, tmp_path: Path) -> None:
    """CIFAR's binary files have it: the shares below are those of their first class, in their order."""
    config = whole(squares).replace(imbalance_draw="published")
    with pytest.raises(ValueError, match="needs the binary version of CIFAR"):
        training_images(config)
    rng = np.random.default_rng(0)
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    labels = rng.permutation(np.repeat(np.arange(10), 20)).astype(np.uint8)
    pixels = rng.integers(0, 255, (200, 3072), dtype=np.uint8)
    rows = np.concatenate([labels[:, None], pixels], 1)
    for at, part in enumerate(np.split(rows, 5)):
        (tmp_path / f"data_batch_{at + 1}.bin").write_bytes(part.tobytes())
    config = config.replace(data=f"cifar10:{tmp_path}", imbalance=0.1, image_size=32)
    images, facts = training_images(config.replace(imbalance_profile="step"))
    assert facts["counts"] == [20] * 5 + [2] * 5
    kept = published_draw(labels.tolist(), 10, 0.1, "step")
    theirs = pixels[kept].reshape(-1, 3, 32, 32)
    assert np.array_equal(
        np.sort(images.pixels.reshape(110, -1).sum(1)), np.sort(theirs.reshape(110, -1).sum(1))
    )
    with pytest.raises(ValueError, match="leave out known=4"):
        training_images(config.replace(known=4))


def test_cifar_100_lt_is_the_published_draw_of_the_published_files(tmp_path: Path) -> None:
    """The binary version has a coarse and a fine label in front of the pixels."""
    rng = np.random.default_rng(1)
    (tmp_path / "cifar-100-binary").mkdir()
    (tmp_path / "cifar-100-binary" / "fine_label_names.txt").write_text("apple\nbaby\nbear\nbee\n")
    labels = rng.permutation(np.repeat(np.arange(4), 25)).astype(np.uint8)
    pixels = rng.integers(0, 255, (100, 3072), dtype=np.uint8)
    rows = np.concatenate([labels[:, None] // 2, labels[:, None], pixels], 1)
    (tmp_path / "cifar-100-binary" / "train.bin").write_bytes(rows.tobytes())
    config = fit_recipe("poincare", "resnet20", f"cifar100:{tmp_path}").replace(
        imbalance=0.1, imbalance_draw="published", batch_size=2
    )
    images, facts = training_images(config)
    assert facts["counts"] == [25, 11, 5, 2] and facts["classes"] == ["apple", "baby", "bear", "bee"]
    kept = published_draw(labels.tolist(), 4, 0.1, "exponential")
    assert np.array_equal(images.pixels.numpy().reshape(43, -1), pixels[kept])
    assert images.labels.tolist() == labels[kept].tolist()


def test_it_learns_and_says_what_it_did(finished: Path, squares: Path) -> None:
    result = json.loads((finished / "train.json").read_text())
    assert result["counts"] == [40, 28, 20] and result["images"] == 88
    assert result["steps"] == 40 and result["epochs"] == pytest.approx(40 / 3)
    assert result["radius"] != pytest.approx(equal_radius(3), abs=1e-4)
    curve = [loss for _, loss in losses(finished)]
    assert len(curve) == 40 and np.mean(curve[-5:]) < 0.6 * np.mean(curve[:5])

    measured = evaluate(
        finished, EvaluateConfig(attacked=ATTACKED, ood=(f"strange=folder:{squares}",), draws=50)
    )
    held = measured["metrics"]
    assert held["classification.accuracy"]["value"] >= 0.6  # by chance once in a thousand
    assert held["classification.accuracy"]["chance"] == pytest.approx(1 / 3)
    assert measured["attack"]["images"] == held["attack.pgd"]["n"] == ATTACKED
    assert held["attack.pgd"]["value"] <= held["attack.clean"]["value"]
    # The out-of-distribution set is the test set itself: nothing can tell them apart.
    assert held["ood.strange.energy.auroc"]["value"] == 0.5
    for name in ("classification.accuracy", "attack.pgd", "ood.strange.energy.auroc"):
        assert held[name]["low"] <= held[name]["value"] <= held[name]["high"]
    assert (
        json.loads((finished / "metrics.json").read_text())
        == measured
        == read_metrics(finished / "metrics.json")
    )
    table = (finished / "metrics.csv").read_text()
    assert f"classification.accuracy,{held['classification.accuracy']['value']}," in table
    assert f",folder:{squares}," in table, "the source of the images"
    before = [path.stat().st_mtime_ns for path in sorted(finished.glob("model/*"))]
    assert fit(finished) == result, "a finished run is not trained again"
    assert before == [path.stat().st_mtime_ns for path in sorted(finished.glob("model/*"))]


def test_group_accuracies_are_those_of_their_classes(finished: Path) -> None:
    measured = evaluate(finished, EvaluateConfig(draws=20))
    held = measured["metrics"]
    assert "classification.few" not in held and measured["classification"]["many_classes"] == 3  # 20 of 40
    assert held["classification.many"]["value"] == held["classification.accuracy"]["value"]


def test_a_broken_run_goes_on_along_the_same_curve(
    finished: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StepLog.write

    def break_at_25(log: StepLog, step: int, values: dict) -> None:
        write(log, step, values)
        if step == 25:
            raise RuntimeError("cable pulled")

    monkeypatch.setattr(train.StepLog, "write", break_at_25)
    with pytest.raises(RuntimeError, match="cable"):
        fit(tmp_path, whole(squares))
    monkeypatch.undo()
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-000000010",
        "step-000000020",
    ]
    fit(tmp_path)  # 20 lies within an epoch of three batches
    assert losses(tmp_path) == losses(finished)
    ours, theirs = (load_classifier(run / "model")[0].state_dict() for run in (tmp_path, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.chaos
def test_kill_9_costs_no_step_of_the_curve(finished: Path, squares: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hyco.pipeline",
        "fit",
        "resnet20",
        "--data",
        f"folder:{squares}",
        "--home",
    ]
    command += [str(tmp_path), "--run", "killed", "--head", "separation", "--imbalance", "0.5"]
    for name, value in json.loads((finished / "config.json").read_text())["fit"].items():
        if name not in ("model", "data", "head", "imbalance", "known"):
            command += ["--set", f"{name}={json.dumps(value)}"]
    run = tmp_path / "fits" / "killed"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any((run / "checkpoints").glob("step-*")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / "checkpoints").is_dir() and not (run / "train.json").exists(), (
        "the kill came too late to be a test"
    )
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert losses(run) == losses(finished)


@pytest.mark.parametrize(("head", "radius"), [("softmax", "equal"), ("linear", "equal"), ("separation", 0.5)])
def test_a_poincare_net_takes_each_head(
    tiny: FitConfig, tmp_path: Path, head: str, radius: str | float
) -> None:
    config = tiny.replace(model="poincare_resnet20", head=head, radius=radius, steps=2, batch_size=8)
    result = fit(tmp_path, config)
    model, again, facts = load_classifier(tmp_path / "model")
    assert again == config and facts["classes"] == ["blue", "green", "red"]
    assert np.isfinite(result["loss_last"])
    pixels = torch.rand(3, 3, 8, 8)
    assert model(pixels).shape == (3, 3)
    # In eval mode an image does not depend on its batch.
    torch.testing.assert_close(model(pixels)[:1], model(pixels[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "slope"), [("resnet20", 1.0), ("poincare_resnet20", MLR_SLOPE)])
def test_equal_radius_is_the_temperature_of_the_softmax_head(
    tiny: FitConfig, model: str, slope: float
) -> None:
    """At the origin the softmax head's logits are slope * <w, u>: the constant is read off the layer itself."""
    mean, std = [0.5] * 3, [0.2] * 3
    softmax = make_classifier(tiny.replace(model=model), 3, mean, std).net.head
    features = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(softmax(features)[0, 0], features)
    torch.testing.assert_close(gradient[0], slope * softmax.weight[0].detach())
    separated = make_classifier(tiny.replace(model=model, head="separation"), 3, mean, std).net.head
    assert isinstance(separated, MaximumSeparation)
    assert separated.radius.item() == pytest.approx(slope * equal_radius(3))


def test_the_initialisation_is_that_of_the_configuration(tiny: FitConfig) -> None:
    """Taps beside the centre are zero in an identity and not in a normal kernel."""
    beside = {}
    for init in ("identity", "normal"):
        model = make_classifier(tiny.replace(model="poincare_resnet20", init=init), 3, [0.5] * 3, [0.2] * 3)
        kernels = [p for p in model.parameters() if p.shape[2:] == (3, 3) and p.shape[0] == p.shape[1]]
        beside[init] = sum(k.detach()[..., 0, 0].abs().sum().item() for k in kernels)
    assert beside["identity"] == 0 < beside["normal"]


def test_known_classes_are_drawn_and_the_rest_is_open_set(tiny: FitConfig, tmp_path: Path) -> None:
    config = tiny.replace(known=2, steps=4)
    fit(tmp_path, config)
    facts = load_classifier(tmp_path / "model")[2]
    assert len(facts["known"]) == 2 and facts["counts"] == [40, 40]
    images, _ = training_images(config)
    held = open_labelled(config.data, "train")
    kept = np.flatnonzero(np.isin(held.labels, facts["known"]))
    assert [facts["known"][label] for label in images.labels] == held.labels[kept].tolist()
    measured = evaluate(tmp_path, EvaluateConfig(draws=20))
    assert measured["classification"]["images"] == 20
    assert 0 <= measured["metrics"]["open_set.max_softmax.auroc"]["value"] <= 1
    assert measured["metrics"]["open_set.energy.aupr"]["chance"] == pytest.approx(20 / 30)
    with pytest.raises(ValueError, match="known 3 leaves none of 3 classes unknown"):
        training_images(config.replace(known=3))


def test_another_configuration_is_refused_but_data_may_move(
    finished: Path, squares: Path, tmp_path: Path
) -> None:
    config = whole(squares)
    with pytest.raises(ConfigError, match=r"was started with lr 0\.01, not 0\.02"):
        fit(finished, config.replace(lr=0.02))
    with pytest.raises(ConfigError, match="data folder, not cifar10"):
        fit(finished, config.replace(data="cifar10:x"))
    moved = tmp_path / "moved"
    moved.symlink_to(squares)
    assert fit(finished, config.replace(data=f"folder:{moved}", log_every=7))["steps"] == 40
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        fit(tmp_path / "empty")


def test_mistakes_are_named(tiny: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'model' of FitConfig is 'resnet21': .*; did you mean 'resnet\d+'\?"
    ):
        tiny.replace(model="resnet21")
    with pytest.raises(ConfigError, match=r"'radius' of FitConfig is -1\.0: it must be positive"):
        tiny.replace(radius=-1.0)
    with pytest.raises(ValueError, match="widen the net to 2"):
        fit(tmp_path, tiny.replace(head="separation", widths=(1, 1, 1)))
    with pytest.raises(ValueError, match="120 training images do not fill a batch of 500"):
        fit(tmp_path / "b", tiny.replace(batch_size=500))
    with pytest.raises(ConfigError, match="unknown recipe 'seperation'; did you mean 'separation'"):
        fit_recipe("seperation", "resnet20", "cifar10:x")
    with pytest.raises(ValueError, match="out-of-distribution set 'tiny' is not NAME:DIR"):
        fit(tmp_path / "c", tiny.replace(steps=1))
        evaluate(tmp_path / "c", EvaluateConfig(ood=("tiny",)))


def test_diverged_runs_stop_without_a_checkpoint(tiny: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss is nan at step"):
        fit(tmp_path, tiny.replace(optimiser="sgd", lr=1e30))
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_rates_and_decay(tiny: FitConfig) -> None:
    config = tiny.replace(schedule="cosine", warmup_steps=5)
    rates = [
        learning_rate(step, 30, config.lr, config.warmup_steps, config.schedule) / config.lr
        for step in range(30)
    ]
    assert rates[0] == pytest.approx(0.2) and rates[4] == rates[5] == 1
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 0.01
    assert learning_rate(29, 30, tiny.lr, tiny.warmup_steps, tiny.schedule) == tiny.lr
    learned = tiny.replace(
        head="separation", radius="learned", model="poincare_resnet20", learn_curvature=True
    )
    model = make_classifier(learned, 3, [0.5] * 3, [0.2] * 3)
    decayed, spared = make_optimiser(model, learned).param_groups
    assert decayed["weight_decay"] == learned.weight_decay and spared["weight_decay"] == 0
    assert len(spared["params"]) == 2
    assert len(decayed["params"]) + 2 == len(list(model.parameters()))


def test_the_command_trains_measures_and_is_listed(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["widths=[2,2,4]", "image_size=8", "batch_size=24", "steps=2", "log_every=1", "crop=1"]
    words = [
        "fit",
        "resnet20",
        "--data",
        f"folder:{squares}",
        "--home",
        str(tmp_path),
        "--head",
        "separation",
    ]
    command = get_command(app)
    command.main([*words, *(f"--set={field}" for field in sets)], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"] == 2 and shown["classification"]["images"] == 30
    assert Path(shown["run_dir"]).name.startswith("folder-resnet20-separation-")
    (line,) = report(Home(tmp_path))
    assert line.startswith("fit ") and "on 30 test images" in line
    with pytest.raises(ValueError, match="did you mean 'separation'"):
        command.main([*words, "--recipe", "seperation"], standalone_mode=False)
    absent = [*words, "--run", "new", "--ood", f"near/none=folder:{tmp_path / 'none'}"]
    with pytest.raises(FileNotFoundError, match="none does not exist: give the folder"):
        command.main(absent, standalone_mode=False)
    assert not (tmp_path / "fits" / "new").exists(), "named before the training"


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, TerminatedError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_the_running_step_and_the_run_goes_on_from_there(
    tiny: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BaseException]
) -> None:
    write = StepLog.write

    def signalled(self, step, values):
        write(self, step, values)
        if step == 7:
            os.kill(os.getpid(), number)

    heard = []
    with monkeypatch.context() as patched, pytest.raises(kind, match="at step 7 of 30"):
        patched.setattr(StepLog, "write", signalled)
        fit(tmp_path, tiny.replace(checkpoint_steps=10**6), listener=heard.append)
    assert [step for step, _ in Checkpoints(tmp_path / "checkpoints").list()] == [7]
    assert heard[-1]["stopped"] and not heard[-1]["finished"]
    assert fit(tmp_path)["steps"] == 30


TREE = {
    "root": "thing",
    "nodes": [
        {"id": "cold", "parent": "thing", "names": []},
        {"id": "red", "parent": "thing", "names": []},
        {"id": "blue", "parent": "cold", "names": []},
        {"id": "green", "parent": "cold", "names": []},
    ],
}


@pytest.mark.parametrize("head", ["cosine", "ntce", "nonl", "balanced"])
def test_heads_of_prototypes_are_trained_and_loaded(
    head: str, tiny: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = partial(embed_hierarchy, steps=10)
    monkeypatch.setattr("hyco.pipeline.classification.model.embed_hierarchy", embed)
    tree = tmp_path / "taxonomy.json"
    tree.write_text(json.dumps(TREE))
    hierarchy = {"hierarchy": str(tree), "prototype_dim": 4} if head == "balanced" else {}
    config = tiny.replace(head=head, known=2, steps=6, **hierarchy)
    result = fit(tmp_path / "run", config)
    assert result["head"] == head and np.isfinite(result["loss_last"])
    tree.unlink()  # the prototypes are stored with the weights
    model, _, facts = load_classifier(tmp_path / "run" / "model")
    pixels = torch.rand(5, 3, 8, 8)
    logits = model(pixels)
    assert logits.shape == (5, 2)
    if head == "balanced":
        tangents = embed([-1, 0, 0, 1, 1], 4, seed=config.seed)
        leaves = {"red": 2, "blue": 3, "green": 4}
        names = [facts["classes"][n] for n in facts["known"]]
        kept = model.net.get_submodule("head").prototypes
        torch.testing.assert_close(kept, tangents[[leaves[name] for name in names]].float())
        assert (logits < 0).all(), "minus a distance"
    else:
        assert logits.abs().max() <= 1 / config.temperature + 1e-4


def test_the_loss_of_the_head_is_trained(tiny: FitConfig, tmp_path: Path) -> None:
    """The first logged loss is that of the untrained net on the first batch, by the head's own loss."""
    for head, loss in {"ntce": ntce, "nonl": nonl}.items():
        config = tiny.replace(head=head, steps=1)
        fit(tmp_path / head, config)
        ((_, logged),) = losses(tmp_path / head)
        images, _ = training_images(config)
        torch.manual_seed(config.seed)
        model = make_classifier(config, 3, *statistics(images.pixels)).train()
        epoch = Epoch.draw(images, config.seed, 0, batch_size=24, crop=config.crop, flip=config.flip)
        pixels, labels = epoch.batch(0)
        assert logged == pytest.approx(loss(model(pixels), labels).item(), abs=1e-4)


def test_a_hierarchy_has_to_fit_the_classes(tiny: FitConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the tree of its classes: give --hierarchy taxonomy\.json"):
        class_prototypes(tiny.replace(head="balanced"), ["red"])
    with pytest.raises(ValueError, match="hierarchy is for the head 'balanced', not 'softmax': leave it out"):
        class_prototypes(tiny.replace(hierarchy="t.json"), ["red"])
    (tmp_path / "t.json").write_text(json.dumps(TREE))
    config = tiny.replace(head="balanced", hierarchy=str(tmp_path / "t.json"))
    with pytest.raises(
        ValueError, match=r"has no leaf 'cold' \(1 of 2 classes\): the ids of its leaves have to be"
    ):
        class_prototypes(config, ["red", "cold"])
    with pytest.raises(FileNotFoundError, match="no taxonomy at"):
        class_prototypes(config.replace(hierarchy=str(tmp_path / "none.json")), ["red"])
