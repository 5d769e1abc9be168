"""Near and far sets: spelled one by one and in OpenOOD's layout, scored by logits and by features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyco.pipeline.classification.config import FitConfig
from hyco.pipeline.classification.evaluate import EvaluateConfig, evaluate
from hyco.pipeline.classification.in_memory import load_images
from hyco.pipeline.classification.model import curvature_of, load_classifier
from hyco.pipeline.classification.ood import SCORES
from hyco.pipeline.classification.strange import BENCHMARKS, load_strange, open_strange
from hyco.pipeline.classification.tables import tables
from hyco.pipeline.classification.train import fit, training_images
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.evaluation.metrics.ranked import NUMBERS
from tests.factories.files import lay, picture
from tests.oracle import classification_metrics as twin

SETS = {"near": ("cifar100", "tin"), "far": ("mnist", "svhn", "texture", "places365")}


def openood(root: Path, known: str = "cifar10", count: int = 3) -> Path:
    """Each set a grey of its own; mnist's pictures have one channel."""
    names = {name for group in BENCHMARKS[known].values() for name in group}
    for place, name in enumerate(sorted(names)):
        lines = []
        for n in range(count):
            key = f"{name}/test/{n}.png"
            lay(root / "images_classic", {key: picture(20 * place + n)})
            if name == "mnist":
                Image.fromarray(np.full((8, 8), 7, np.uint8)).save(root / "images_classic" / key)
            lines.append(f"{key} -1\n")
        lay(root / "benchmark_imglist", {f"{known}/test_{name}.txt": "".join(lines)})
    return root


def test_openood_as_published(tmp_path: Path) -> None:
    sets = open_strange(f"openood:{openood(tmp_path)}", "cifar10")
    assert {group: tuple(one.name for one in sets if one.group == group) for group in SETS} == SETS
    images, counts = load_strange(sets[0], 8, 2, 0, 0.95)
    assert len(images) == 2 and counts == {"listed": 3}
    (tmp_path / "images_classic" / "tin" / "test" / "1.png").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 3 images of .*test_tin\.txt .1 missing.* below min_coverage 0\.95"
    ):
        open_strange(f"openood:{tmp_path}", "cifar10", 0.95)
    tin = open_strange(f"openood:{tmp_path}", "cifar10", 0.5)[1]
    assert load_strange(tin, 8, 9, 0, 0)[1] == {"listed": 3, "missing": 1}
    lay(tmp_path / "benchmark_imglist/cifar10", {"test_svhn.txt": "svhn/0.png 1\nsvhn/1.png\n"})
    with pytest.raises(
        ValueError, match=r"test_svhn\.txt, line 2: 'svhn/1\.png' is not the path of an image"
    ):
        open_strange(f"openood:{tmp_path}", "cifar10")
    with pytest.raises(
        FileNotFoundError, match=r"test_cifar10\.txt does not exist: give the folder that holds"
    ):
        open_strange(f"openood:{tmp_path}", "cifar100")


def test_spellings(squares: Path) -> None:
    (one,) = open_strange(f"near/blobs=folder:{squares}", "folder")
    assert (one.name, one.group) == ("blobs", "near")
    assert open_strange(f"folder:{squares}", "folder")[0].group is None
    for spec in ("folder", f"near=folder:{squares}", f"middle/folder:{squares}"):
        with pytest.raises(ValueError, match="is not NAME:DIR"):
            open_strange(spec, "folder")
    with pytest.raises(ValueError, match=r"sets for cifar10, cifar100, not for folder: give sets one by one"):
        open_strange(f"openood:{squares}", "folder")
    with pytest.raises(ValueError, match="has near and far sets with names of their own"):
        open_strange(f"near/openood:{squares}", "cifar10")


@pytest.fixture(scope="module")
def run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strange") / "run"
    config = FitConfig(
        model="poincare_resnet20",
        data=f"folder:{squares}",
        widths=(2, 2, 4),
        image_size=8,
        batch_size=24,
        steps=15,
        lr=0.02,
    )
    fit(folder, config)
    return folder


def test_every_score_of_near_and_far_sets(run: Path, squares: Path, tmp_path: Path) -> None:
    for n in range(4):
        lay(tmp_path / "grey" / "test" / "grey", {f"{n}.png": picture(60 * n)})
    ood = (
        f"near/test=folder:{squares}",
        f"near/grey=folder:{tmp_path / 'grey'}",
        f"far/other=folder:{tmp_path / 'grey'}",
    )
    found = evaluate(run, EvaluateConfig(ood=ood, scores=SCORES, neighbours=3, draws=20))
    held = found["metrics"]
    assert found["ood"]["near"]["sets"] == ["test", "grey"] and found["ood"]["far"]["sets"] == ["other"]
    assert found["ood"]["grey"]["group"] == "near" and found["ood"]["grey"]["images"] == 4
    for score in SCORES:
        assert held[f"ood.test.{score}.auroc"]["value"] == 0.5, "the test set itself"
        for key in NUMBERS:
            each = [held[f"ood.{name}.{score}.{key}"]["value"] for name in ("test", "grey")]
            assert held[f"ood.near.{score}.{key}"]["value"] == pytest.approx(np.mean(each))
            assert held[f"ood.far.{score}.{key}"]["value"] == held[f"ood.other.{score}.{key}"]["value"]
    model, config, _ = load_classifier(run / "model")
    train, _ = training_images(config)
    with torch.no_grad():
        known, grey, rows = (
            model.features(images.pixels.float() / 255).double().numpy()
            for images in (
                load_images(open_labelled(config.data, "test"), 8),
                load_images(open_labelled(f"folder:{tmp_path / 'grey'}", "test"), 8),
                train,
            )
        )
    assert curvature_of(model, config) == config.curvature
    scores = {
        "knn": lambda row: twin.nearest_neighbour(rows, row, 3),
        "distance": lambda row: twin.class_distance(rows, train.labels.numpy(), row, config.curvature),
    }
    for name, score in scores.items():
        expected = twin.auroc([score(row) for row in known], [score(row) for row in grey])
        assert held[f"ood.grey.{name}.auroc"]["value"] == pytest.approx(
            expected, abs=0.02
        )  # float32 features
    text = tables(
        {"a": {"fit": config.model_dump(), "train": {**TRAIN}, "metrics": found}},
        run.parent,
        EvaluateConfig(),
    )
    assert "| near | knn |" in text and "| far | distance |" in text


TRAIN = {"images": 1, "steps": 1, "epochs": 1.0, "parameters": 1, "loss_last": 1.0, "samples_per_second": 1.0}


def test_two_sets_of_one_name_and_missing_training_images_are_refused(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    twice = EvaluateConfig(ood=(f"folder:{squares}", f"folder:{squares}"))
    with pytest.raises(ValueError, match="two out-of-distribution sets are called folder: name one of them"):
        evaluate(run, twice)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "test").symlink_to(squares / "test")
    config = EvaluateConfig(data=f"folder:{tmp_path / 'half'}", ood=(f"folder:{squares}",), scores=("knn",))
    with pytest.raises(
        FileNotFoundError, match=r"need the training images .*: add them, or leave out distance, knn"
    ):
        evaluate(run, config)
