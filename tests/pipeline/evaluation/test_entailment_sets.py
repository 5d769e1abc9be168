"""HierarCaps: its layout, the pairs, and both metrics against a plain reference and scikit-learn."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from hyco.models.hyperbolic import lorentz
from hyco.pipeline.evaluation.benchmarks.entailment import read_hierarcaps
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.entailment import entailment, entailment_pairs, pair_scores
from tests.oracle import ranking as plain
from tests.pipeline.evaluation.test_published_sets import ColourEmbedder, paint

FEW = Bootstrap(draws=100)
URL = "http://images.cocodataset.org/val2014/"


class ConeEmbedder(ColourEmbedder):
    """A text of few colour words lies near the root, and an image at the mean colour further out."""

    curvatures = torch.tensor([1.0])

    def encode_pixels(self, images):
        return 2 * super().encode_pixels(images)

    def encode_text(self, texts, report=lambda n: None):
        words = torch.tensor([[float(len(text.split()))] for text in texts])
        return self.project_text(texts) * words / 4


def hierarcaps(folder: Path, coco: Path) -> None:
    rows = ["id,captions,image_url"]
    for n, colour in enumerate(("red", "green", "blue")):
        name = f"COCO_val2014_{n:012d}.jpg"
        paint(coco / name, colour)
        rows.append(f'{n},"{colour} => {colour} thing => a {colour} thing, very big",{URL}{name}')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hierarcaps_test.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("inside", [True, False])
def test_hierarcaps_as_published(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "HierarCaps" / ("data" if inside else "")
    hierarcaps(folder, tmp_path / ("coco/val2014" if inside else "HierarCaps/test_imgs"))
    found = run_suite(ConeEmbedder(), "hierarcaps", tmp_path, FEW)
    blocks = found["suite"]["hierarcaps"]
    assert {name: blocks[name]["positives"] for name in ("margin", "angle", "similarity")} == dict.fromkeys(
        ("margin", "angle", "similarity"), 9
    )
    assert blocks["margin"]["pairs"] == 9 + 6 and blocks["margin"]["n"] == 3
    assert blocks["margin"]["auroc"] == blocks["similarity"]["ap"] == 1.0
    assert found["intervals"]["suite.hierarcaps.margin.ap"] == [1.0, 1.0]
    euclid = run_suite(type("Flat", (ConeEmbedder,), {"curvatures": None})(), "hierarcaps", tmp_path, FEW)
    assert "similarity" in euclid["suite"]["hierarcaps"] and "margin" not in euclid["suite"]["hierarcaps"]


def test_another_csv_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hierarcaps_test.csv"
    for content, message in {
        "id,caption,image_url\n": "has no column captions",
        f"id,captions,image_url\n0,a => b,{URL}1.jpg\n1, => ,{URL}2.jpg\n": "line 3: captions",
        "id,captions,image_url\n0,a => b,\n": "line 2: captions",
        f"id,captions,image_url\n0,a => b,{URL}1.jpg\n": "names 1 images",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_hierarcaps(tmp_path, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no hierarcaps_test\.csv"):
        read_hierarcaps(tmp_path, tmp_path)


def test_pairs_are_the_twins() -> None:
    captions = [["a", "b"], ["a", "c"], ["a", "b"], ["d", "e"], ["a", "f"]]
    names = sorted({text for own in captions for text in own})
    right, wrong = entailment_pairs([[names.index(text) for text in own] for own in captions], limit=2)
    assert [[(int(i), names[t]) for i, t in pairs] for pairs in (right, wrong)] == list(
        plain.pairs(captions, 2)
    )


@pytest.mark.parametrize("c", [0.3, 1.0])
def test_readings_and_metrics_are_the_twins(c: float) -> None:
    random, c = np.random.default_rng(0), float(torch.tensor(c))
    images = lorentz.exp0(
        torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), torch.tensor(c)
    ).double()
    texts = lorentz.exp0(
        0.7 * torch.randn(20, 5, generator=torch.Generator().manual_seed(2)), torch.tensor(c)
    ).double()
    pairs = np.stack([np.repeat(np.arange(12), 10), random.integers(20, size=120)], 1)
    order = np.argsort(np.arange(120) % 10 >= 3, kind="stable")  # 36 positives first
    pairs, positives = pairs[order], 36
    scores = pair_scores(lambda a, b: -torch.cdist(a, b), images, texts, pairs, torch.tensor([c]), 0.1)
    for n, (image, text) in enumerate(pairs):
        x, y = texts[text].numpy(), images[image].numpy()
        assert scores["margin"][n] == pytest.approx(plain.margin(x, y, c, 0.1), abs=1e-9)
        assert scores["angle"][n] == pytest.approx(plain.clamped_angle(x, y, c), abs=1e-9)
        assert scores["similarity"][n] == pytest.approx(-np.linalg.norm(x - y), abs=1e-9)
    assert (scores["angle"] == 0).sum() > 10, "ties matter"
    found = entailment(scores, pairs, positives, FEW)
    truth = np.arange(120) < positives
    for name, values in scores.items():
        block = found.numbers[name]
        assert block["ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-12)
        assert block["auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        for key in ("ap", "auroc"):
            low, high = found.intervals[f"{name}.{key}"]
            assert low < high and low - 0.05 < block[key] < high + 0.05
    assert found.numbers["angle"]["zero_pairs"] == (scores["angle"] == 0).sum()
    drawn = [average_precision_score(random.permutation(truth), values) for _ in range(300)]
    assert found.numbers["margin"]["chance"]["ap"] == pytest.approx(np.mean(drawn), abs=0.01)


@pytest.mark.filterwarnings("error")
def test_an_image_without_negatives_leaves_no_warning() -> None:
    """The second image has the first one's captions: a draw of it alone has nothing negative."""
    right, wrong = entailment_pairs([[0, 1], [0, 1, 2]])
    pairs = np.concatenate([right, wrong])
    found = entailment({"s": np.arange(len(pairs)) / 9}, pairs, len(right), FEW)
    assert found.intervals["s.auroc"] == (0.0, 0.0)


@pytest.mark.parametrize(
    "row, message",
    [
        ("1,a => very long indeed,x.jpg", "field larger than field limit"),
        ("1,a => b,//[x/a.jpg", "Invalid IPv6 URL"),
        ("1,a => b,", "captions 'a => b' of image ''"),
    ],
)
def test_a_broken_row_is_named_and_the_suite_goes_on(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "hierarcaps" / "hierarcaps_test.csv"
    path.parent.mkdir()
    path.write_text(f"id,captions,image_url\n{row}\n")
    limit = csv.field_size_limit(20)
    try:
        said = run_suite(ColourEmbedder(), "hierarcaps", tmp_path, FEW)["skipped"]["suite.hierarcaps"]
    finally:
        csv.field_size_limit(limit)
    assert said.startswith(f"{path}, line 2: ") and message in said
    path.write_bytes(b"id,captions,image_url\n1,caf\xe9,x.jpg\n")
    said = run_suite(ColourEmbedder(), "hierarcaps", tmp_path, FEW)["skipped"]["suite.hierarcaps"]
    assert said.startswith(f"{path} is not UTF-8 text")
