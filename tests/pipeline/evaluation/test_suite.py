"""The suite: what is found is measured and right, what is lacking or broken is named."""

import io
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyco.pipeline.cli.app import app, run_app
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.datasets.dataset_card import card
from hyco.pipeline.datasets.wordnet import WordNet
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks import suite as suites
from hyco.pipeline.evaluation.benchmarks.base import Evaluation, folder_called
from hyco.pipeline.evaluation.benchmarks.classification import class_names, embed, mean_of_paper_sets
from hyco.pipeline.evaluation.benchmarks.suite import chosen, evaluations
from hyco.pipeline.evaluation.evaluate import AssessConfig, EvaluationSpec, evaluate_model
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap, MetricResult
from hyco.pipeline.evaluation.metrics.hierarchy import NAMES, tree_metrics
from hyco.pipeline.evaluation.metrics.taxonomy import Taxonomy
from hyco.pipeline.evaluation.metrics.zero_shot import (
    mean_per_class,
    rank_and_answer,
    set_accuracy,
    vectors_of,
)
from hyco.pipeline.imaging.decode import encode_jpeg
from hyco.pipeline.runtime.progress import Progress
from tests.factories.files import lay
from tests.pipeline.evaluation.test_evaluate import run, tiny, wide_embedder, world

__all__ = ["world"]  # a fixture
FEW = Bootstrap(draws=100)
ANY = ("--set", "min_coverage=0")
COLOURS = {"airplane": (200, 60, 50), "bird": (60, 200, 50), "cat": (40, 60, 220)}


def run_suite(*given, **options):
    """The made sets hold a few images of what is published."""
    return suites.run_suite(*given, **{"least": 0.0} | options)


def coloured(kind: str, number: int) -> bytes:
    noise = np.random.default_rng(number).integers(-40, 40, (20, 24, 3))
    return encode_jpeg(np.clip(np.array(COLOURS[kind]) + noise, 0, 255).astype(np.uint8), 95)


def wordnet() -> tuple[bytes, list[str]]:
    """data.noun with three classes: two are kinds of animal, one is a thing."""
    kinds = {"thing": "", "animal": "thing", "bird": "animal", "cat": "animal", "airplane": "thing"}
    text, place = "", {}
    for word, above in kinds.items():
        place[word] = f"{len(text):08d}"
        pointers = f"001 @ {place[above]} n 0000" if above else "000"
        text += f"{len(text):08d} 03 n 01 {word} 0 {pointers} | gloss  \n"
    return lzma.compress(text.encode()), ["n" + place[word] for word in ("bird", "cat", "airplane")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 with a training part, Tiny-ImageNet without one, WordNet, a broken Food-101, STL-10 nowhere."""
    root = tmp_path_factory.mktemp("data")
    for split, count in {"train": 15, "test": 9}.items():
        numbers = range(count) if split == "train" else range(100, 100 + count)
        lay(
            root / "CIFAR10",
            {
                f"{split}/{kind}/{n}.jpg": coloured(kind, n)
                for kind in COLOURS
                for n in numbers
                if n % 2 or kind > "b"
            },
        )
    (root / "CIFAR10/test/cat/torn.jpg").write_bytes(b"\xff\xd8 torn")
    packed, wnids = wordnet()
    lines = [f"v{n}.JPEG\t{wnids[n % 3]}\t0\t0\t1\t1\n" for n in range(12)]
    pictures = {f"val/images/v{n}.JPEG": coloured(("bird", "cat", "airplane")[n % 3], n) for n in range(12)}
    words = "".join(f"{w}\t{k}\n" for w, k in zip(wnids, ("bird", "cat", "airplane"), strict=True))
    lay(root / "wordnet", {"data.noun.xz": packed})
    lay(
        root / "tiny_imagenet",
        {
            "wnids.txt": "\n".join(wnids),
            "words.txt": words,
            "val/val_annotations.txt": "".join(lines),
            **pictures,
        },
    )
    lay(root / "food-101", {"meta/classes.txt": "pie\n", "meta/train.txt": "", "meta/test.txt": "pizza/1\n"})
    return root


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return wide_embedder()


def test_zero_shot_equals_the_plain_way(data: Path, embedder: Embedder) -> None:
    found = run_suite(embedder, "cifar10", data, FEW)
    numbers = found["suite"]["cifar10"]["zero_shot"]
    test = open_labelled(f"cifar10:{data / 'CIFAR10'}")
    kept = [i for i in range(len(test)) if "torn" not in test.keys[i]]  # pyright: ignore[reportAttributeAccessIssue]
    images = embedder.encode_image([test.image(i) for i in kept])
    sentences = [
        [p.replace("{}", name) for p in card("cifar10").prompts] for name in ("AIRPLANE", "bird", "cat")
    ]
    sentences[0] = [s.replace(" a AIR", " an AIR").replace("AIRPLANE", "airplane") for s in sentences[0]]
    means = torch.stack([embedder.project_text(own).mean(0) for own in sentences])
    scores = embedder.score(images, embedder.lift_text(means)).numpy()
    assert len(set(scores.argmax(1))) > 1
    right = scores.argmax(1) == test.labels[kept]
    per_class = [right[test.labels[kept] == label].mean() for label in range(3)]
    counts = found["suite"]["cifar10"]["coverage"]["images"]
    assert numbers["n"] == counts["used"] == len(kept) and counts["unusable"] == 1
    assert numbers["top1"] == pytest.approx(right.mean())
    assert numbers["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert numbers["chance"] == {"top1": 1 / 3, "top5": 1.0, "mean_per_class": 1 / 3}
    low, high = found["intervals"]["suite.cifar10.zero_shot.mean_per_class"]
    assert low <= numbers["mean_per_class"] <= high


def test_tower_features_ride_along(data: Path, embedder: Embedder) -> None:
    test = open_labelled(f"tiny_imagenet:{data / 'tiny_imagenet'}")
    with Progress(None, "x", stream=io.StringIO()) as progress:
        seen = embed(embedder, test, np.array([1, 5, 6, 7, 11]), progress)
    assert seen.features.shape == (5, embedder.model.config.vision.width)
    lifted = embedder.model.lift_image(embedder.model.visual_projection(seen.features))
    torch.testing.assert_close(lifted, seen.points, rtol=1e-4, atol=1e-4)
    assert not embedder.model.visual._forward_hooks


def test_hierarchy_of_imagenet_classes(data: Path, embedder: Embedder) -> None:
    found = run_suite(embedder, "tiny_imagenet", data, FEW, heads=("softmax",))
    tree = found["suite"]["tiny_imagenet"]["hierarchy"]
    assert tree["nodes"] == 5 and tree["n"] == 12 and set(tree["chance"]) == set(NAMES)
    # Leaves bird, cat under animal under thing, airplane under thing: distances 2 and 3, each class as often.
    assert tree["chance"]["tie"] == pytest.approx((2 * (0 + 2 + 3) + (3 + 3 + 0)) / 9)
    assert "no training part" in found["skipped"]["suite.tiny_imagenet.probe"]
    assert "suite.tiny_imagenet.hierarchy.tie" in found["intervals"]


def test_the_real_sets_run_through_their_adapters(embedder: Embedder) -> None:
    shared = Path(__file__).parents[4] / "shared/data"
    if not (shared / "cifar10").is_dir():
        pytest.skip(f"no real data in {shared}")
    found = run_suite(embedder, "cifar10,tiny_imagenet", shared, FEW, limit=12)["suite"]
    assert found["cifar10"]["zero_shot"]["classes"] == 10 and found["cifar10"]["zero_shot"]["n"] == 12
    assert found["tiny_imagenet"]["zero_shot"]["classes"] == 200
    assert found["tiny_imagenet"]["hierarchy"]["nodes"] == 299


def test_without_wordnet_the_hierarchy_is_skipped(data: Path, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "tiny-imagenet-200").symlink_to(data / "tiny_imagenet")
    found = run_suite(embedder, "tiny_imagenet", tmp_path, FEW)
    assert set(found["suite"]["tiny_imagenet"]) == {"zero_shot", "coverage", "source", "seconds"}
    assert "put data.noun" in found["skipped"]["suite.tiny_imagenet.hierarchy"]


def test_imagenet_takes_its_names_from_wordnet(data: Path, embedder: Embedder, tmp_path: Path) -> None:
    _, wnids = wordnet()
    lay(tmp_path, {f"imagenet/val/{w}/{n}.JPEG": coloured("cat", n) for w in wnids for n in range(2)})
    found = run_suite(embedder, "imagenet", tmp_path, FEW)
    assert "the names of its classes are unknown" in found["skipped"]["suite.imagenet"]
    (tmp_path / "wordnet").symlink_to(data / "wordnet")
    found = run_suite(embedder, "imagenet", tmp_path, FEW)
    assert found["suite"]["imagenet"]["hierarchy"]["nodes"] == 5


@pytest.mark.parametrize("train", [("bird", "cat", "airplane"), ("bird", "airplane"), ("bird", "dog")])
def test_a_training_part_of_other_classes_costs_the_probe_alone(
    train: tuple[str, ...], embedder: Embedder, tmp_path: Path
) -> None:
    for split, kinds in {"train": train, "test": ("bird", "cat")}.items():
        lay(
            tmp_path / f"eurosat/{split}",
            {f"{k}/{n}.jpg": coloured("cat", n) for k in kinds for n in range(9)},
        )
    found = run_suite(embedder, "eurosat", tmp_path, FEW, heads=("softmax",))
    assert set(found["suite"]["eurosat"]) == {"zero_shot", "coverage", "source", "seconds"}
    odd = ", ".join(sorted({"bird", "cat"} ^ set(train)))
    said = found["skipped"]["suite.eurosat.probe"]
    assert said == f"the training part has other classes than the test part ({odd})"


def test_a_broken_training_part_costs_the_probe_alone(embedder: Embedder, tmp_path: Path) -> None:
    root = tmp_path / "food101"
    pictures = {f"images/{k}/{n}.jpg": coloured("cat", n) for k in ("pie", "tart") for n in range(2)}
    test = "".join(f"{k}/{n}\n" for k in ("pie", "tart") for n in range(2))
    lists = {"meta/classes.txt": "pie\ntart\n", "meta/test.txt": test, "meta/train.txt": "pizza/1\n"}
    lay(root, lists | pictures)
    found = run_suite(embedder, "food101", tmp_path, FEW, heads=("softmax",))
    assert found["suite"]["food101"]["zero_shot"]["n"] == 4
    assert "'pizza', which is not in the list of classes" in found["skipped"]["suite.food101.probe"]
    lay(root, {"meta/train.txt": "pie/7\ntart/8\n", "images/pie/7.jpg": b"no", "images/tart/8.jpg": b"no"})
    found = run_suite(embedder, "food101", tmp_path, FEW, heads=("softmax",))
    assert found["suite"]["food101"]["zero_shot"]["n"] == 4
    assert "0 of 2 images can be decoded" in found["skipped"]["suite.food101.probe"]


def test_names_that_two_classes_share_are_told_apart(tmp_path: Path) -> None:
    words = ("thing", "animal", "crane", "crane", "cat")
    text, place = "", []
    for word, above in zip(words, (None, 0, 0, 1, 1), strict=True):
        pointers = "000" if above is None else f"001 @ {place[above]} n 0000"
        place.append(f"{len(text):08d}")
        text += f"{place[-1]} 03 n 01 {word} 0 {pointers} | gloss  \n"
    lay(tmp_path, {"data.noun": text})
    wnids = [f"n{place[at]}" for at in (2, 3, 4)]
    mapping = "".join(f"{w} {name}\n" for w, name in zip(wnids, ("crane", "crane", "cat, puss"), strict=True))
    solution = "ImageId,PredictionString\n" + "".join(f"v{n},{w} 1 2 3 4\n" for n, w in enumerate(wnids))
    lists = {"LOC_synset_mapping.txt": mapping, "LOC_val_solution.csv": solution}
    pictures = {f"ILSVRC/Data/CLS-LOC/val/v{n}.JPEG": coloured("cat", n) for n in range(3)}
    test = open_labelled(f"imagenet:{lay(tmp_path / 'imagenet', lists | pictures)}", "test")
    told = class_names(test, WordNet(tmp_path / "data.noun"))
    assert told == [("crane (thing)",), ("crane (animal)",), ("cat", "puss")]
    assert class_names(test, None) == test.names


def test_all_runs_what_it_finds_and_names_the_rest(data: Path, embedder: Embedder) -> None:
    found = run_suite(embedder, "all", data, FEW, limit=6, heads=("softmax",))
    assert set(found["suite"]) == {"cifar10", "tiny_imagenet"}
    assert found["suite"]["cifar10"]["zero_shot"]["n"] <= 6
    assert found["suite"]["tiny_imagenet"]["zero_shot"]["n"] == 6
    assert found["skipped"]["suite.food101"].endswith("'pizza', which is not in the list of classes")
    assert "expected stl10/ with" in found["skipped"]["suite.stl10"]
    names = {name.split(".")[1] for name in found["skipped"]} | set(found["suite"])
    assert names == set(evaluations())


def test_what_cannot_be_asked(data: Path, embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="called 'cifar11'; nearest: cifar1"):
        run_suite(embedder, "cifar11", data, FEW)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        run_suite(embedder, "all", tmp_path / "nowhere", FEW)
    with pytest.raises(ValueError, match=r"holds no data set of the suite; expected stl10 \(stl10/ with"):
        run_suite(embedder, "stl10", tmp_path, FEW)
    with pytest.raises(ValueError, match="the suite is empty"):
        chosen(" , ", {})
    assert chosen("stl10, cub,stl10", evaluations()) == ["stl10", "cub"]


def test_mean_over_the_sets_of_the_paper() -> None:
    def block(value: float) -> dict:
        return {"zero_shot": {"mean_per_class": value, "chance": {"mean_per_class": value / 10}, "n": 50}}

    suite = {"cifar10": block(0.8), "dtd": block(0.2), "tiny_imagenet": block(0.9)}
    spans = {"cifar10": [0.74, 0.83], "dtd": [0.12, 0.24], "tiny_imagenet": [0.8, 1.0]}
    intervals = {f"suite.{name}.zero_shot.mean_per_class": span for name, span in spans.items()}
    found = mean_of_paper_sets({"suite": suite, "intervals": intervals})
    assert found is not None
    assert found.numbers["zero_shot"]["mean_per_class"] == pytest.approx(0.5)
    assert found.numbers["zero_shot"]["chance"]["mean_per_class"] == pytest.approx(0.05)
    assert found.numbers["zero_shot"]["n"] == 2, "Tiny-ImageNet is not of the sixteen"
    assert found.intervals["zero_shot.mean_per_class"] == pytest.approx((0.45, 0.525))
    assert mean_of_paper_sets({"suite": {"dtd": block(0.2)}, "intervals": {}}) is None


def test_folders_and_tars_are_found_by_name(tmp_path: Path) -> None:
    find = folder_called("stl10", "stl10_binary")
    assert find(tmp_path) is None
    (tmp_path / "STL10_binary.tar.gz").touch()
    assert find(tmp_path) == tmp_path / "STL10_binary.tar.gz"
    (tmp_path / "Stl10").mkdir()
    assert find(tmp_path) == tmp_path / "Stl10"


def test_one_broken_data_set_does_not_cost_the_others(data: Path, embedder: Embedder) -> None:
    def fails(*_: object) -> MetricResult:
        raise OSError("disk\n gone")

    def works(*_: object) -> MetricResult:
        return MetricResult({"block": {"r1": 0.5, "chance": {"r1": 0.1}, "n": 3}}, {"block.r1": (0.4, 0.6)})

    def row(call):
        return Evaluation("T", lambda folder: folder, call, "x")

    table = {"bad": row(fails), "good": row(works), "none": row(lambda *_: "nothing to ask")}
    found = run_suite(embedder, "all", data, FEW, table=table)
    assert found["skipped"] == {"suite.bad": "disk gone", "suite.none": "nothing to ask"}
    assert found["intervals"] == {"suite.good.block.r1": [0.4, 0.6]}


def test_mean_per_class_equals_the_loop() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 7, 60) * 3  # classes that do not occur lie between
    hits = (random.random(60) < 0.4).astype(float)
    mean, (low, high) = mean_per_class(hits, truth, Bootstrap(draws=300))
    assert mean == pytest.approx(np.mean([hits[truth == c].mean() for c in np.unique(truth)]))
    drawn = []
    for weight in np.concatenate(list(Bootstrap(draws=300).weights(60))):
        own = [
            np.average(hits[truth == c], weights=weight[truth == c])
            for c in np.unique(truth)
            if weight[truth == c].sum()
        ]
        drawn.append(np.mean(own))
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]))


def test_blocks_of_scores_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, vectors = torch.randn(11, 4), torch.randn(5, 4)
    vectors[3] = vectors[1]  # a tie counts against the model
    truth = np.arange(11) % 5
    whole = rank_and_answer(lambda a, b: a @ b.T, points, vectors, truth)
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.zero_shot.BLOCK", 3)
    parts = rank_and_answer(lambda a, b: a @ b.T, points, vectors, truth)
    np.testing.assert_array_equal(whole, parts)
    assert (whole[0][truth == 3] >= 1).all()


def test_prompts_of_a_euclidean_model_are_unit_vectors_before_their_mean() -> None:
    """As CLIP's own zero-shot has it: a prompt of a long feature weighs no more than the others."""
    model, tokenizer = tiny("euclid")
    embedder = Embedder(model, tokenizer)
    sentences = ["a photo of a cat", "one cat", "many of the cats there"]
    prompts = [sentence.replace("cat", "{}", 1) for sentence in sentences]
    (vector,) = vectors_of(embedder, [["cat"]], prompts)
    mean = embedder.encode_text(sentences).mean(0)
    torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_every_name_and_prompt_weighs_alike(embedder: Embedder) -> None:
    vectors = vectors_of(embedder, [["cat", "kitten"], ["elk"]], ["a photo of a {}", "one {}"])
    cats = ["a photo of a cat", "a photo of a kitten", "one cat", "one kitten"]
    for vector, sentences in zip(vectors, [cats, ["a photo of an elk", "one elk"]], strict=True):
        plain = embedder.lift_text(embedder.project_text(sentences).mean(0))
        torch.testing.assert_close(vector, plain, rtol=1e-4, atol=1e-4)


def test_other_heads_plug_in_to_the_suite(data: Path, embedder: Embedder) -> None:
    both = run_suite(embedder, "cifar10", data, FEW, heads=("softmax", "maximum_separation", "prototypes"))
    assert {"probe_softmax", "probe_maximum_separation", "probe_prototypes"} <= set(both["suite"]["cifar10"])


def test_a_model_directory_from_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tiny("euclid")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    words = ["assess", "--run", str(tmp_path / "model"), "--suite", "cifar10,stl10", "--data", str(data)]
    said = command(monkeypatch, capsys, *words, "--set", "draws=100", "--set", "suite_images=20", *ANY)
    assert "not complete: CIFAR-10: " in said and "of 20 images" in said and "drawn from 23" in said
    assert "CIFAR-10: zero-shot" in said and "not measured: suite.stl10: not in" in said
    held = json.loads((tmp_path / "model/metrics.json").read_text())
    assert set(held["suite"]["cifar10"]) == {"zero_shot", "probe_softmax", "coverage", "source", "seconds"}
    assert "suite.cifar10.probe_softmax.top1" in held["metrics"]
    assert (
        (tmp_path / "model/metrics.csv")
        .read_text()
        .startswith("name,value,low,high,chance,n,source,of,gallery\nsuite.cifar10")
    )
    page = (tmp_path / "model/report.html").read_text()
    assert "Evaluated on 1 published data set." in page and "CIFAR-10: linear probe" in page


def test_a_run_is_measured_on_both(data: Path, world: Path) -> None:
    config = AssessConfig(draws=100, min_coverage=0)
    found = run(world, suite="tiny_imagenet", data=str(data), config=config)
    assert found["retrieval"] and found["suite"]["tiny_imagenet"]["zero_shot"]["n"] == 12
    held = (world / "home/runs/r/metrics.csv").read_text()
    assert "retrieval.image_to_text.r1," in held and "suite.tiny_imagenet.hierarchy.tie," in held
    with pytest.raises(ValueError, match="the suite 'all' needs --data"):
        run(world, suite="all")


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, status: int = 0
) -> str:
    """Run `hyco words` in this process; returns what it says."""
    monkeypatch.setattr(sys, "argv", ["hyco", *words])
    with pytest.raises(SystemExit) as left:
        run_app(app)
    said = capsys.readouterr()
    assert (left.value.code or 0) == status, said.err
    return said.err if status else said.out


def test_a_suite_without_data_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = tiny()
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    said = command(monkeypatch, capsys, "assess", "--run", str(tmp_path), "--suite", "all", status=2)
    assert said == "hyco: error: --suite needs --data: the directory of your data sets\n"
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        evaluate_model(tmp_path, EvaluationSpec(suite="all", data=str(tmp_path / "nowhere")))
    config = AssessConfig(draws=100, probe_heads=())
    evaluate_model(tmp_path, EvaluationSpec(suite="tiny_imagenet", data=str(data), config=config))
    assert (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "is a model directory, not a run, and has no val split: give --assess-source"),
        (("--data", "sets"), "--data needs --suite: all, or names of data sets"),
        (
            ("--suite", "all", "--data", "sets", "--taxonomy", "t.json"),
            "--taxonomy names the classes of an --assess-source",
        ),
        (
            ("--suite", "all", "--data", "sets", "--beside", "r"),
            "has no metrics.json to compare with",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny()[0].save_pretrained(tmp_path)
    (line,) = command(monkeypatch, capsys, "assess", "--run", str(tmp_path), *words, status=2).splitlines()
    assert said in line


def test_a_thousand_leaves_and_fifty_thousand_answers() -> None:
    """Table look-ups, not loops: what took minutes leaf by leaf takes about a second."""
    leaves = [(f"l{i}", f"g{i // 10}", ()) for i in range(1000)]
    tree = Taxonomy.build([("root", None, ()), *((f"g{i}", "root", ()) for i in range(100)), *leaves])
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 1000, (2, 50_000))
    found = tree_metrics(answer, truth, tree, FEW)
    apart = np.where(answer == truth, 0, np.where(answer // 10 == truth // 10, 2, 4))
    assert found.numbers["tie"] == pytest.approx(apart.mean())
    accuracy = set_accuracy((answer != truth) * 1, truth, 1000, FEW)
    assert accuracy.numbers["top1"] == pytest.approx((answer == truth).mean())
