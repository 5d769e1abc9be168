"""What the published protocol changes: the suite's figures under each protocol, and paired differences."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hyco.pipeline.evaluation.benchmarks.protocol import Protocol
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.order import order_of
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, both_ways
from hyco.pipeline.evaluation.scenes import Scene
from hyco.pipeline.experiments.protocols import Row, captioned, main
from hyco.pipeline.imaging.decode import decode, encode_jpeg
from tests.factories.files import lay
from tests.pipeline.evaluation.test_evaluate import packed, wide_embedder, world

__all__ = ["world"]  # a fixture
FEW = Bootstrap(draws=100)
KINDS = ("airplane", "bird", "cat")
MARKS = "<!-- protocols, photos: written by pipeline.experiments.protocols -->\n<!-- end of protocols, photos -->\n"


def scenes(side: int | None = None) -> list[Scene]:
    """Scenes of which some share a caption; of 64 x 48 pixels, or square."""
    found = [Scene.of_training(packed(n)) for n in range(24)]
    if side is None:
        return found
    pixels = [np.random.default_rng(n).integers(0, 256, (side, side, 3), np.uint8) for n in range(24)]
    return [dataclasses.replace(scene, image=encode_jpeg(p)) for scene, p in zip(found, pixels, strict=True)]


def of(rows: list[Row], change: str) -> dict[str, Row]:
    return {row.metric: row for row in rows if row.change.startswith(change)}


def test_recalls_are_those_of_each_protocol():
    """Against `both_ways`, which `hyco assess` takes: equal captions shared and own, images cropped and stretched."""
    model, found = wide_embedder(), scenes()
    rows = captioned(model, found, "made up")
    captions = [scene.captions for scene in found]
    assert len(Pairing.of(captions).texts) < len(Pairing.own(captions).texts), "some captions are equal"
    recalls = {}
    for name, pairing, published in (
        ("shared", Pairing.of(captions), False),
        ("own", Pairing.own(captions), True),
        ("stretched", Pairing.of(captions), False),
    ):
        square = Protocol("published" if name == "stretched" else "hyco").square
        images = model.encode_pixels(square(decode(scene.image), model.size) for scene in found)
        texts = model.encode_text(pairing.texts)
        recalls[name] = both_ways(order_of(model), images, texts, pairing, FEW, in_order=published).numbers
    for change, other in (("a hit is", "own"), ("stretched", "stretched")):
        by_metric = of(rows, change)
        assert len(by_metric) == 4
        for way, words in (("image_to_text", "image to caption"), ("text_to_image", "caption to image")):
            for k in (1, 10):
                ours, theirs = by_metric[f"{words} R@{k}, %"].values
                assert ours.mean() == pytest.approx(100 * recalls["shared"][way][f"r{k}"])
                assert theirs.mean() == pytest.approx(100 * recalls[other][way][f"r{k}"])
    ours, theirs = of(rows, "a hit is")["caption to image R@10, %"].values
    assert (theirs <= ours).all() and (theirs < ours).any(), "a caption of several images has more hits"


def test_square_images_are_made_wide_so_that_the_crop_takes_something_away():
    model = wide_embedder()
    rows = of(captioned(model, scenes(40), "made up"), "stretched")
    assert all("square images made 4:3" in row.change for row in rows.values()) and len(rows) == 4
    assert any((row.values[0] != row.values[1]).any() for row in rows.values())


def test_a_difference_is_paired_and_items_of_an_image_are_drawn_together():
    random = np.random.default_rng(0)
    ours = 100.0 * (random.random(400) < 0.5)
    theirs = ours.copy()
    theirs[:4] = 100 - theirs[:4]
    alone = Row("a", "b", "c", (ours, theirs)).cells(FEW)
    spans = [[float(x) for x in cell.split("[")[1].rstrip("]").split(",")] for cell in alone[3:]]
    widths = [high - low for low, high in spans]
    assert widths[2] < widths[0] / 4, "the same images are drawn on both sides"
    together = Row("a", "b", "c", (ours, theirs), np.repeat(np.arange(8), 50)).cells(FEW)
    assert together[5] != alone[5] and together[3].split()[0] == alone[3].split()[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CIFAR-10's layout with three classes."""

    def noisy(n: int) -> bytes:
        return encode_jpeg(np.random.default_rng(n).integers(0, 256, (24, 24, 3), np.uint8))

    root = tmp_path / "data"
    lay(root, {f"cifar10/test/{k}/{n}.jpg": noisy(3 * n + i) for i, k in enumerate(KINDS) for n in range(6)})
    return root


def test_the_command_writes_the_figures_of_the_suite(world: Path, data: Path, tmp_path: Path):
    run = tmp_path / "run"
    model = wide_embedder()
    model.save(run / "model")
    out, prompts = tmp_path / "page.md", tmp_path / "given.json"
    prompts.write_text(json.dumps({"cifar10": {"prompts": ["see a {}", "{}!"], "names": list(KINDS)}}))
    words = [str(run), "--home", str(world / "home"), "--data", str(data), "--prompts", str(prompts)]
    assert main([*words, "--out", str(out), "--draws", "100"]) == 0
    assert out.read_text().startswith("# ") and "all of the protocol" in out.read_text()
    out.write_text("before\n" + MARKS + "after\n")
    assert main([*words, "--out", str(out), "--draws", "100"]) == 0
    text = out.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "Not on this machine" in text
    tops = {}
    for way in ("hyco", "published"):
        given = Protocol.load(way, None, str(prompts) if way == "published" else None)
        found = run_suite(model, "cifar10", data, FEW, least=0.0, protocol=given)
        tops[way] = 100 * found["suite"]["cifar10"]["zero_shot"]["top1"]
    (line,) = [line for line in text.splitlines() if "all of the protocol" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [float(cell.split()[0]) for cell in cells[3:5]] == [
        round(tops[way], 2) for way in ("hyco", "published")
    ]
    assert "val split of" in text and "imagenet" in text.split("Not on this machine")[1]
