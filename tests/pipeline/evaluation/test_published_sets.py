"""Published evaluation sets, a few made files in the layout of each; boxes against their plain references."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.compositional import read_checklist, read_sugarcrepe
from hyco.pipeline.evaluation.benchmarks.retrieval import read_flickr
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from hyco.pipeline.evaluation.metrics.boxes import (
    classification,
    expected_precision,
    mean_average_precision,
    measure_boxes,
)
from hyco.pipeline.evaluation.metrics.compositional import prefers
from hyco.pipeline.imaging.decode import encode_jpeg
from tests.oracle import evaluation_metrics as plain

FEW = Bootstrap(draws=100)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


class ColourEmbedder(Embedder):
    """Sees the mean colour of an image, reads the colour words of a text; nearer is better."""

    def __init__(self):
        self.size, self.batch_size, self.device = 8, 3, torch.device("cpu")
        self.model = SimpleNamespace(
            scale=torch.tensor(5.0), config=SimpleNamespace(dim=3, geometry="euclid")
        )

    def encode_pixels(self, images):
        means = [image.reshape(-1, 3).mean(0) / 255 for image in images]
        return torch.tensor(np.array(means).reshape(-1, 3), dtype=torch.float32)

    def project_text(self, texts, report=lambda n: None):
        words = [[COLOURS[w] for w in text.replace(".", "").split() if w in COLOURS] for text in texts]
        means = [np.mean(w or [(128, 128, 128)], 0) for w in words]
        return torch.tensor(np.array(means) / 255, dtype=torch.float32)

    def lift_text(self, features):
        return features

    def score(self, a, b):
        return -torch.cdist(a, b)


def paint(path, *colours):
    """Vertical stripes of the colours, 16 pixels wide each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.concatenate([np.full((16, 16, 3), COLOURS[colour], np.uint8) for colour in colours], axis=1)
    path.write_bytes(encode_jpeg(pixels, 95))


def suite(data, names, least=0.5, **options):
    """The made sets lack a photograph on purpose."""
    return run_suite(ColourEmbedder(), names, data, FEW, least=least, **options)


def coco(data):
    """Five photographs, the last of them lost; captions out of order, boxes of three kinds and a crowd."""
    folder = data / "coco"
    shown = {11: ("red", "blue"), 7: ("green",), 30: ("blue",), 4: ("black",)}
    images = [
        {"id": i, "file_name": f"{i:06d}.jpg", "width": 16 * len(c), "height": 16} for i, c in shown.items()
    ]
    for item in images:
        paint(folder / "val2017" / item["file_name"], *shown[item["id"]])
    images.append({"id": 99, "file_name": "lost.jpg", "width": 16, "height": 16})
    shown[99] = ("red",)
    captions = [(i, f"{' and '.join(c)} number {n}") for n in (0, 1) for i, c in shown.items()]
    boxes = [(11, [0, 0, 16, 16], 1), (11, [16, 0, 40, 16], 5), (7, [0, 0, 16, 16], 3), (30, [2, 2, 9, 9], 5)]
    boxes += [(99, [0, 0, 9, 9], 1), (7, [16, 3, 4, 4], 1), (4, [0, 0, 9, 0], 3)]
    crowd = {"image_id": 4, "bbox": [0, 0, 16, 16], "category_id": 1, "iscrowd": 1}
    categories = [
        {"id": n, "name": name} for n, name in ((1, "red"), (3, "green"), (5, "blue"), (8, "black"))
    ]
    for name, content in {
        "captions": [{"image_id": i, "caption": c} for i, c in captions],
        "instances": [
            *({"image_id": i, "bbox": b, "category_id": c, "iscrowd": 0} for i, b, c in boxes),
            crowd,
        ],
    }.items():
        (folder / "annotations").mkdir(exist_ok=True)
        made = {"images": images, "annotations": content, "categories": categories}
        (folder / "annotations" / f"{name}_val2017.json").write_text(json.dumps(made))
    return folder


def test_coco_captions_both_ways(tmp_path):
    coco(tmp_path)
    found = suite(tmp_path, "coco")
    block = found["suite"]["coco"]["image_to_text"]
    assert block["r1"] == found["suite"]["coco"]["text_to_image"]["r1"] == 1.0
    assert (block["n"], block["captions"], block["gallery"], block["queries"]) == (4, 8, 8, 4)
    assert found["suite"]["coco"]["text_to_image"]["gallery"] == 4
    lost = {"used": 4, "of": 5, "missing": 1, "unusable": 0}
    assert found["suite"]["coco"]["coverage"] == {"images": lost}
    assert block["chance"]["r1"] == pytest.approx(2 / 8)
    assert found["intervals"]["suite.coco.text_to_image.r5"] == pytest.approx([0.025 ** (1 / 4), 1.0])
    path = tmp_path / "coco" / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    ids = [item["image_id"] for item in content["annotations"]]
    for item, other in zip(content["annotations"], ids[1:] + ids[:1], strict=True):
        item["image_id"] = other  # every caption goes to the next image
    path.write_text(json.dumps(content))
    assert suite(tmp_path, "coco")["suite"]["coco"]["image_to_text"]["r1"] < 0.5
    path.write_text(path.read_text()[:-20])
    assert "is not JSON" in suite(tmp_path, "coco")["skipped"]["suite.coco"]


def test_flickr_layouts_say_the_same(tmp_path):
    rows = {"a.jpg": ("red", "train"), "b.jpg": ("blue", "test"), "c.jpg": ("green", "test")}
    captions = {
        name: [f"a {colour} thing", f"{colour} number {name[0]}"] for name, (colour, _) in rows.items()
    }
    karpathy, text = tmp_path / "k" / "flickr8k", tmp_path / "t" / "flickr8k"
    for name, (colour, _) in rows.items():
        paint(karpathy / "Flicker8k_Dataset" / name, colour)
        paint(text / "Images" / name, colour)
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in captions[name]]}
        for name, (_, split) in rows.items()
    ]
    (karpathy / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    (text / "Flickr8k_text").mkdir()
    lines = [f"{name}#{n}\t{raw}" for name, own in captions.items() for n, raw in enumerate(own)]
    (text / "Flickr8k_text" / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (text / "Flickr8k_text" / "Flickr_8k.testImages.txt").write_text("b.jpg\nc.jpg\n")
    one, other = read_flickr(karpathy, "flickr8k"), read_flickr(text, "flickr8k")
    assert one.captions == other.captions == (tuple(captions["b.jpg"]), tuple(captions["c.jpg"]))
    assert [path.name for path in one.images] == [path.name for path in other.images] == ["b.jpg", "c.jpg"]
    for data in (tmp_path / "k", tmp_path / "t"):
        assert suite(data, "flickr8k")["suite"]["flickr8k"]["text_to_image"]["r1"] == 1.0
    (text / "Flickr8k_text" / "Flickr_8k.testImages.txt").write_text("b.jpg\nz.jpg\n")
    assert "1 of 2 names have no captions" in suite(tmp_path / "t", "flickr8k")["skipped"]["suite.flickr8k"]
    with pytest.raises(FileNotFoundError, match=r"dataset_flickr30k\.json"):
        read_flickr(text, "flickr30k")


def test_coco_boxes_are_cut_out_and_named(tmp_path):
    coco(tmp_path)
    found = suite(tmp_path, "coco_boxes")["suite"]["coco_boxes"]
    assert found["classification"]["top1"] == found["classification"]["mean_per_class"] == 1.0
    assert found["detection"]["map"] == found["detection"]["map_distance"] == 1.0
    shown = {key: found["detection"][key] for key in ("n", "boxes", "classes", "classes_seen")}
    assert shown == {"n": 3, "boxes": 4, "classes": 4, "classes_seen": 3}
    assert found["coverage"]["images"] == {"used": 3, "of": 4, "missing": 1, "unusable": 0}
    assert found["left_out"] == 3, "a crowd, a box without area, one outside the image"
    assert found["classification"]["chance"]["mean_per_class"] == 0.25
    assert suite(tmp_path, "coco_boxes", limit=2)["suite"]["coco_boxes"]["detection"]["n"] <= 2


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_its_plain_twin(ties):
    random = np.random.default_rng(0)
    truth = random.integers(4, size=60)  # the fifth class never occurs
    scores = random.normal(size=(60, 5)) + 0.8 * (np.arange(5) == truth[:, None])
    scores = scores.round() if ties else scores
    value, (low, high) = mean_average_precision(scores, truth, np.arange(60) // 3, FEW)
    each = [plain.average_precision(scores[:, c], truth == c) for c in range(4)]
    assert value == pytest.approx(np.mean(each), rel=1e-12)
    assert low < value < high and 0.02 < high - low < 0.4


def test_average_precision_is_redrawn_by_image(monkeypatch):
    random = np.random.default_rng(1)
    truth, images = random.integers(3, size=45), np.repeat(np.arange(15), 3)
    scores = random.normal(size=(45, 3)) + 1.2 * (np.arange(3) == truth[:, None])
    draws = []
    for weight in Bootstrap(draws=400, seed=5).weights(15):
        for row in weight.astype(int):
            rows = np.repeat(np.arange(45), row[images])
            held = [c for c in range(3) if (truth[rows] == c).any()]
            each = [plain.average_precision(scores[rows, c], truth[rows] == c) for c in held]
            draws.append(np.mean(each))
    value, fast = mean_average_precision(scores, truth, images, Bootstrap(draws=400, seed=5))
    slow = np.quantile(draws, [0.025, 0.975]) - np.mean(draws) + value
    assert fast == pytest.approx(slow, abs=0.02)  # copies of a box share one precision here, not there
    assert fast[0] < value < fast[1]
    monkeypatch.setattr("hyco.pipeline.evaluation.metrics.boxes.BLOCK", 45 * 7)
    assert mean_average_precision(scores, truth, images, Bootstrap(draws=400, seed=5))[1] == fast


def test_chance_of_average_precision_is_its_mean_over_random_orders():
    random = np.random.default_rng(0)
    for right, size in ((1, 1), (1, 9), (4, 9), (9, 9)):
        label = np.arange(size) < right
        drawn = [plain.average_precision(random.random(size), label) for _ in range(1500)]
        assert expected_precision(np.array([right, 0]), size) == pytest.approx([np.mean(drawn)], abs=0.02)


def test_box_classes_are_averaged_class_by_class():
    random = np.random.default_rng(0)
    truth = random.integers(5, size=80)
    scores = random.normal(size=(80, 7)) + 1.5 * (np.arange(7) == truth[:, None])
    found = classification(scores, truth, np.arange(80) // 4, FEW)
    expected = plain.mean_per_class(scores.argmax(1).tolist(), truth.tolist())
    assert found.numbers["mean_per_class"] == pytest.approx(expected)
    assert classification(np.zeros((4, 3)), np.zeros(4, int), np.arange(4), FEW).numbers["top1"] == 0.0
    low, high = found.intervals["mean_per_class"]
    assert low < expected < high


def test_map_ranks_by_softmax_and_map_distance_by_the_score():
    """A box to which every class is near comes first by the score; by softmax the one that is sure does."""
    crops, classes = torch.tensor([[4.0, 5.0], [0.0, 4.0], [4.5, 4.0]]), torch.eye(2)
    truth = np.array([0, 1, 0])
    found = measure_boxes(lambda a, b: a @ b.T, crops, classes, truth, np.arange(3), 1.0, FEW)
    tables = {"map": torch.softmax(crops, 1).numpy(), "map_distance": crops.numpy()}
    for key, table in tables.items():
        each = [plain.average_precision(table[:, c], truth == c) for c in (0, 1)]
        assert found.numbers["detection"][key] == pytest.approx(np.mean(each))
    assert found.numbers["detection"]["map"] == 1.0 > found.numbers["detection"]["map_distance"]


def crepe(folder, photographs):
    folder.mkdir(parents=True)
    for name, colour in {"1.jpg": "red", "2.jpg": "blue"}.items():
        paint(photographs / name, colour)
    swap = {
        "0": {"filename": "1.jpg", "caption": "a red cup", "negative_caption": "a blue cup"},
        "1": {"filename": "2.jpg", "caption": "a red cup", "negative_caption": "a blue cup"},
        "2": {"filename": "2.jpg", "caption": "a cup", "negative_caption": "the cup"},  # a tie is a miss
    }
    add = [{"filename": "2.jpg", "caption": "a blue cup", "negative_caption": "a blue and red cup"}]
    (folder / "swap_att.json").write_text(json.dumps(swap))
    (folder / "add_obj.json").write_text(json.dumps(add))


def test_sugarcrepe_by_kind(tmp_path):
    crepe(tmp_path / "sugarcrepe", tmp_path / "coco" / "val2017")
    found = suite(tmp_path, "sugarcrepe", least=0.0)
    blocks = found["suite"]["sugarcrepe"]
    assert blocks["swap_att"]["accuracy"] == pytest.approx(1 / 3) and blocks["add_obj"]["accuracy"] == 1.0
    assert blocks["mean"]["accuracy"] == pytest.approx(2 / 3)
    assert blocks["swap_att"]["chance"] == {"accuracy": 0.5}
    assert (blocks["swap_att"]["pairs"], blocks["swap_att"]["n"]) == (3, 2)
    assert len(found["intervals"]["suite.sugarcrepe.mean.accuracy"]) == 2
    (tmp_path / "sugarcrepe" / "swap_obj.json").write_text('{"0": {"filename": "1.jpg"}}')
    with pytest.raises(ValueError, match=r"swap_obj\.json is not one of SugarCrepe's files"):
        read_sugarcrepe(tmp_path / "sugarcrepe", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"swap_att\.json"):
        read_sugarcrepe(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["COCO2017", "mscoco"])
def test_sugarcrepe_finds_coco_under_any_of_its_names(tmp_path, name):
    crepe(tmp_path / "sugarcrepe", tmp_path / name / "val2017")
    assert suite(tmp_path, "sugarcrepe", least=0.0)["suite"]["sugarcrepe"]["mean"]["pairs"] == 4


def test_vl_checklist_by_kind(tmp_path):
    folder = tmp_path / "vl_checklist"
    paint(folder / "vg" / "VG_100K" / "1.jpg", "red")
    paint(folder / "swig" / "2.jpg", "blue")
    files = {
        "Attribute/vg/color.json": [["VG_100K/1.jpg", {"POS": ["red cup", "x"], "NEG": ["blue cup"]}]],
        "Attribute/vaw/color.json": [["VG_100K/1.jpg", {"POS": ["blue"], "NEG": ["red"]}]],
        "Object/Size/swig_size/swig_tool/swig_tool_small.json": [
            ["2.jpg", {"POS": ["blue"], "NEG": ["red"]}]
        ],
        "Relation/swig_action.json": [["2.jpg", {"POS": ["black"], "NEG": ["blue"]}]],
    }
    for name, content in files.items():
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(json.dumps(content))
    blocks = suite(tmp_path, "vl_checklist")["suite"]["vl_checklist"]
    shares = {
        kind: blocks[kind]["accuracy"] for kind in blocks if kind not in ("coverage", "source", "seconds")
    }
    assert shares == {"attribute_color": 0.5, "object_size": 1.0, "relation_action": 0.0, "mean": 0.5}
    (folder / "data" / "Relation" / "odd.json").write_text('[["2.jpg", {"POS": []}]]')
    with pytest.raises(ValueError, match=r"odd\.json is not one of VL-CheckList's files"):
        read_checklist(folder)


def test_each_image_is_compared_with_its_own_two_texts():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(300, 4, generator=generator) for _ in range(3))
    expected = [(x @ y > x @ z).item() for x, y, z in zip(a, b, c, strict=True)]
    assert prefers(lambda p, q: p @ q.T, a, b, c).tolist() == expected
    assert not prefers(lambda p, q: p @ q.T, a, b, b).any()


def test_what_is_lacking_is_named(tmp_path):
    (tmp_path / "flickr8k").mkdir()
    coco(tmp_path)
    skipped = suite(tmp_path, "coco,flickr8k,sugarcrepe")["skipped"]
    assert "dataset_flickr8k.json" in skipped["suite.flickr8k"]
    assert "swap_obj.json" in skipped["suite.sugarcrepe"]
