"""`--protocol published`: the user's prompts and names as they are, published parts, squares, hits and averages."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from hyco.pipeline.cli.app import app, run_app
from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.datasets.prompt_files import SetTexts
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks import suite as suites
from hyco.pipeline.evaluation.benchmarks.protocol import Protocol, names_of
from hyco.pipeline.evaluation.config import EvaluationSpec
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, both_ways
from hyco.pipeline.evaluation.metrics.zero_shot import mean_per_class, set_accuracy
from hyco.pipeline.imaging.crop import stretch, whole
from hyco.pipeline.imaging.decode import encode_jpeg
from tests.factories.files import lay
from tests.oracle import evaluation_metrics as plain
from tests.pipeline.evaluation.test_evaluate import wide_embedder

FEW = Bootstrap(draws=100)
PROMPTS = ["see a {}.", "one {} here"]
NAMES = ["airplane", ["bird", "fowl"], "cat"]
KINDS = ("airplane", "bird", "cat")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return wide_embedder()


def speckled(number: int, height: int = 20, width: int = 24) -> bytes:
    base = np.array([(200, 60, 50), (60, 200, 50), (40, 60, 220)][number % 3])
    pixels = base + np.random.default_rng(number).integers(-60, 60, (height, width, 3))
    return encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), 95)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory of data sets, and one of published files."""
    root = tmp_path_factory.mktemp("protocol")
    data, published = root / "data", root / "published"
    lay(
        data,
        {f"cifar10/test/{k}/{n}.jpg": speckled(3 * n + i) for i, k in enumerate(KINDS) for n in range(5)},
    )
    texts = {"labels.json": {"cifar10": NAMES}, "templates.json": {"cifar10": PROMPTS, "stl10": ["a {}"]}}
    lay(published, {name: json.dumps(content) for name, content in texts.items()})
    return data, published


def run(embedder: Embedder, data: Path, names: str, protocol: Protocol) -> dict:
    return suites.run_suite(embedder, names, data, FEW, least=0.0, protocol=protocol)


def test_zero_shot_as_published_equals_the_plain_way(places, embedder) -> None:
    data, published = places
    found = run(embedder, data, "cifar10,stl10", Protocol.load("published", str(published), None))
    test = open_labelled(f"cifar10:{data / 'cifar10'}")
    points = embedder.encode_image([test.image(i) for i in range(len(test))])
    means = []
    for own in (["airplane"], ["bird", "fowl"], ["cat"]):
        sentences = [prompt.replace("{}", name) for prompt in PROMPTS for name in own]
        means.append(embedder.project_text(sentences).mean(0))
    answer = embedder.score(points, embedder.lift_text(torch.stack(means))).argmax(1).numpy()
    block = found["suite"]["cifar10"]["zero_shot"]
    assert len(set(answer)) > 1 and found["suite"]["cifar10"]["protocol"] == "published"
    assert block["top1"] == pytest.approx((answer == test.labels).mean())
    expected = plain.published_mean_per_class(answer.tolist(), test.labels.tolist())
    assert block["mean_per_class"] == pytest.approx(expected)


def test_prompts_alone_break_ties_as_the_zero_shot_does(places, embedder, tmp_path) -> None:
    """Two classes of one name tie always: the first wins in the published way, neither in Hyco's."""
    same = {"cifar10": {"prompts": PROMPTS, "names": ["a", "a", "a"]}}
    lay(tmp_path, {"same.json": json.dumps(same)})
    for way, top1 in (("published", 1 / 3), ("hyco", 0.0)):
        protocol = Protocol.load(way, None, str(tmp_path / "same.json"))
        found = suites.run_suite(
            embedder, "cifar10", places[0], FEW, least=0.0, protocol=protocol, prompt_sensitivity=True
        )["suite"]["cifar10"]
        assert found["zero_shot"]["top1"] == pytest.approx(top1)
        assert dict(found["prompts"]["regimes"])["all"] == pytest.approx(top1)


def test_what_the_files_lack_is_named(places, embedder, tmp_path) -> None:
    data, published = places
    (tmp_path / "cifar10").symlink_to(data / "cifar10")
    bare = run(embedder, tmp_path, "cifar10", Protocol("published"))["skipped"]["suite.cifar10"]
    assert "no file was given, and Hyco has no prompts and no class names of cifar10" in bare
    lay(
        tmp_path,
        {"half.json": json.dumps({"cifar10": PROMPTS}), "few.json": json.dumps({"cifar10": ["a", "b"]})},
    )
    half = Protocol.load("published", None, str(tmp_path / "half.json"))
    assert (
        "half.json has no class names of cifar10"
        in run(embedder, tmp_path, "cifar10", half)["skipped"]["suite.cifar10"]
    )
    few = Protocol.load("published", str(published), str(tmp_path / "few.json"))
    said = run(embedder, tmp_path, "cifar10", few)["skipped"]["suite.cifar10"]
    assert "names 2 classes of cifar10, and its images have 3" in said
    with pytest.raises(ValueError, match="are read with --protocol published: add it"):
        Protocol.load("hyco", str(published), None)


def test_prompts_of_ones_own_in_hyco_s_way(places, embedder, tmp_path) -> None:
    data, _ = places
    lay(tmp_path, {"my.toml": 'cifar10 = ["a {}"]\n'})
    mine = Protocol.load("hyco", None, str(tmp_path / "my.toml"))
    found = run(embedder, data, "cifar10", mine)["suite"]["cifar10"]
    test = open_labelled(f"cifar10:{data / 'cifar10'}")
    points = embedder.encode_image([test.image(i) for i in range(len(test))])
    vectors = embedder.encode_text(["an airplane", "a bird", "a cat"])
    right = embedder.score(points, vectors).argmax(1).numpy() == test.labels
    assert found["zero_shot"]["top1"] == pytest.approx(right.mean()) and "protocol" not in found


def test_names_in_another_order_are_refused(places) -> None:
    test = open_labelled(f"cifar10:{places[0] / 'cifar10'}")
    told = names_of(test, SetTexts(names=(("plane",), ("Bird",), ("cat",)), origin=("x",)))
    assert told == (("plane",), ("Bird",), ("cat",))
    for order in (("cat", "airplane", "bird"), ("bird", "airplane", "feline")):
        with pytest.raises(
            ValueError, match=r"x lists the classes of cifar10 in another order: '.*' is number"
        ):
            names_of(test, SetTexts(names=tuple((name,) for name in order), origin=("x",)))
    for empty in ((), ("",), ("Bird", " ")):
        with pytest.raises(ValueError, match=r"x has an empty name for class 2 of cifar10 \(.*\): name it"):
            names_of(test, SetTexts(names=(("plane",), empty, ("cat",)), origin=("x",)))


def test_the_published_mean_counts_predicted_classes_that_never_occur() -> None:
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 5, 60) * 2, random.integers(0, 12, 60)
    rank = np.where(truth == answer, 0, 3)
    found = set_accuracy(rank, truth, 12, FEW, answer)
    expected = plain.published_mean_per_class(answer.tolist(), truth.tolist())
    assert found.numbers["mean_per_class"] == pytest.approx(expected)
    assert expected < plain.mean_per_class(answer.tolist(), truth.tolist()) - 0.01
    drawn = []
    for weight in np.concatenate(list(Bootstrap(draws=100).weights(60))):
        chosen = np.repeat(np.arange(60), weight.astype(int))
        drawn.append(plain.published_mean_per_class(answer[chosen].tolist(), truth[chosen].tolist()))
    low, high = mean_per_class((truth == answer).astype(float), truth, FEW, answer)[1]
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]))


def test_a_hit_is_the_caption_s_own_image() -> None:
    """Captions 0 and 3 read alike and belong to two images: Hyco counts either, the published way its own alone."""
    captions = [("a dog", "a brown dog"), ("A  dog", "a cat"), ("a bird",)]
    own, shared = Pairing.own(captions), Pairing.of(captions)
    assert own.texts == ("a dog", "a brown dog", "A  dog", "a cat", "a bird")
    torch.manual_seed(1)
    said = {text: torch.randn(4) for text in {" ".join(t.split()).casefold() for t in own.texts}}
    texts = torch.stack([said[" ".join(t.split()).casefold()] for t in own.texts])
    images = torch.randn(3, 4)

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(a, b)

    found = both_ways(score, images, texts, own, FEW, in_order=True, ks=(1, 2)).numbers
    to_image, to_text = score(texts, images).tolist(), score(images, texts).tolist()
    for k in (1, 2):
        right = [{0}, {0}, {1}, {1}, {2}]
        assert found["text_to_image"][f"r{k}"] == pytest.approx(plain.published_recall(to_image, right, k))
        right = [{0, 1}, {2, 3}, {4}]
        assert found["image_to_text"][f"r{k}"] == pytest.approx(plain.published_recall(to_text, right, k))
    distinct = torch.stack([said[" ".join(t.split()).casefold()] for t in shared.texts])
    ours = both_ways(score, images, distinct, shared, FEW, ks=(1,)).numbers
    assert ours["text_to_image"]["r1"] > found["text_to_image"]["r1"]


def test_ties_keep_the_order_of_the_gallery() -> None:
    pairing = Pairing.own([(f"text {n}",) for n in range(6)])
    found = both_ways(
        lambda a, b: torch.zeros(len(a), len(b)),
        torch.zeros(6, 2),
        torch.zeros(6, 2),
        pairing,
        FEW,
        in_order=True,
    )
    assert found.numbers["text_to_image"]["r1"] == pytest.approx(1 / 6), "a collapsed model gets chance"
    assert found.numbers["image_to_text"]["r5"] == pytest.approx(5 / 6)


def test_the_published_square_keeps_both_ends_of_a_tall_image() -> None:
    """Ends outside the central square: there when stretched, cut away when cropped."""
    orange, green, blue = (240, 140, 20), (30, 180, 60), (20, 60, 230)
    tall = np.repeat(np.array([orange] * 6 + [green] * 18 + [blue] * 6, np.uint8)[:, None], 12, axis=1)
    kept, cut = Protocol("published").square(tall, 10), Protocol().square(tall, 10)
    assert kept.shape == cut.shape == (10, 10, 3)
    for square, colours in ((kept, (orange, green, blue)), (cut, (green, green, green))):
        for row, colour in zip((0, 5, 9), colours, strict=True):
            np.testing.assert_allclose(square[row].astype(int), [colour] * 10, atol=20)


def test_a_square_image_is_stretched_as_it_is_cropped() -> None:
    even = np.random.default_rng(3).integers(0, 256, (17, 17, 3), np.uint8)
    np.testing.assert_array_equal(stretch(even, 11), whole(even, 11))
    np.testing.assert_array_equal(stretch(even, 17), even)


def test_karpathy_s_coco_also_lies_in_the_folders_of_2017(embedder, tmp_path) -> None:
    images = [
        {"filepath": "val2014", "filename": f"COCO_val2014_{n:012d}.jpg", "split": split}
        | {"sentences": [{"raw": f"text {n} {i}"} for i in range(2)]}
        for n, split in ((4, "test"), (9, "test"), (12, "restval"), (15, "test"))
    ]
    files = {"coco/dataset_coco.json": json.dumps({"images": images})}
    files |= {"coco/val2014/COCO_val2014_000000000004.jpg": speckled(0, 8, 40)}
    files |= {"coco/val2017/000000000009.jpg": speckled(1), "coco/train2017/000000000015.jpg": speckled(2)}
    lay(tmp_path, files)
    found = {way: run(embedder, tmp_path, "coco_karpathy", Protocol(way)) for way in ("hyco", "published")}
    for outcome in found.values():
        assert not outcome["skipped"]
        block = outcome["suite"]["coco_karpathy"]["text_to_image"]
        assert (block["n"], block["gallery"], block["queries"]) == (3, 3, 6)


def test_the_published_tree_is_an_edge_list(embedder, tmp_path) -> None:
    words = {"thing": None, "animal": 0, "bird": 1, "cat": 1, "airplane": 0}
    text, place = "", []
    for word, above in words.items():
        pointers = "000" if above is None else f"001 @ {place[above]} n 0000"
        place.append(f"{len(text):08d}")
        text += f"{place[-1]} 03 n 01 {word} 0 {pointers} | gloss  \n"
    thing, _, *leaves = (f"n{at}" for at in place)
    data, published = tmp_path / "data", tmp_path / "published"
    lay(data, {"wordnet/data.noun.xz": lzma.compress(text.encode())})
    lay(
        data,
        {f"imagenet/val/{w}/{n}.JPEG": speckled(3 * n + i) for i, w in enumerate(leaves) for n in range(3)},
    )
    lay(
        published,
        {"labels.json": json.dumps({"imagenet": list(KINDS)}), "t.json": json.dumps({"imagenet": PROMPTS})},
    )
    hyco = run(embedder, data, "imagenet", Protocol())["suite"]["imagenet"]["hierarchy"]
    assert hyco["nodes"] == 5 and hyco["tree"].endswith("data.noun.xz")
    edges = "".join(f"{thing} {leaf}\n" for leaf in leaves)
    lay(published, {"assets/imagenet_isa.txt": edges})
    paper = Protocol.load("published", str(published), None)
    flat = run(embedder, data, "imagenet", paper)["suite"]["imagenet"]["hierarchy"]
    assert flat["nodes"] == 4 and flat["tree"].endswith("imagenet_isa.txt")
    lay(data, {"wordnet/imagenet_isa.txt": edges + f"{leaves[0]} {leaves[1]}\n"})
    broken = run(embedder, data, "imagenet", Protocol())
    assert "zero_shot" in broken["suite"]["imagenet"]
    assert "so it is no tree" in broken["skipped"]["suite.imagenet.hierarchy"]


def test_the_command_and_its_refusals(places, embedder, tmp_path, monkeypatch, capsys) -> None:
    data, published = places
    embedder.save(tmp_path / "model")

    def assess(*options: str) -> int:
        monkeypatch.setattr("sys.argv", ["hyco", "assess", "--run", str(tmp_path / "model"), *options])
        with pytest.raises(SystemExit) as stop:
            run_app(app)
        return int(stop.value.code or 0)

    asked = ("--suite", "cifar10", "--data", str(data), "--set", "min_coverage=0", "--set", "draws=100")
    assert assess(*asked, "--protocol", "published", "--published", str(published)) == 0
    held = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert held["suite"]["cifar10"]["protocol"] == "published"
    capsys.readouterr()
    for options, message in (
        ((*asked, "--protocol", "paper"), "option 'protocol' of EvaluationSpec is 'paper'"),
        ((*asked, "--published", str(published)), "are read with --protocol published: add it"),
        ((*asked, "--prompts", "no.json"), "no file of prompts at no.json"),
        (("--assess-source", "x", "--protocol", "published"), "belong to --suite"),
    ):
        assert assess(*options) == 2
        assert message in capsys.readouterr().err


def test_a_protocol_names_another_evaluation(tmp_path) -> None:
    from hyco.storage.home import Home
    from tests.factories.training import make_home

    home, version = Home(tmp_path / "home"), make_home(tmp_path / "home")
    spec = EvaluationSpec(version=version, suite="all", data="sets")
    names = {spec.digest(home), spec.replace(protocol="published").digest(home)}
    names |= {
        spec.replace(prompts="x").digest(home),
        spec.replace(protocol="published", published="y").digest(home),
    }
    assert len(names) == 4
    assert EvaluationSpec(version=version, protocol="published").digest(home) == EvaluationSpec(
        version=version
    ).digest(home)
