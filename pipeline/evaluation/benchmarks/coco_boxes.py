"""Ground-truth boxes of a set in COCO's format: read, cropped, and classified."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyco.pipeline.datasets.dataset_card import PLAIN
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import COCO_FOLDERS, Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.coverage import as_numbers
from hyco.pipeline.evaluation.embed_files import ahead, decoded, files_there, load_image, read_json
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.boxes import measure_boxes
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of
from hyco.pipeline.imaging.crop import crop_box

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BoxSet:
    """Images with their boxes (x0, y0, x1, y1 as fractions) and the class of each; names of the classes.

    `left_out` counts boxes that are not evaluated: crowds, and boxes without area.
    """

    images: tuple[Path, ...]
    boxes: tuple[tuple[tuple[Box, int], ...], ...]
    classes: tuple[str, ...]
    left_out: int = 0


def read_instances(folder: Path, split: str = "val2017") -> BoxSet:
    """FOLDER/annotations/instances_SPLIT.json with the photographs in FOLDER/SPLIT.

    Crowds and boxes without area are left out, as are images without boxes. FileNotFoundError without the
    json; ValueError when it is not in COCO's format.
    """
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = read_json(path)
    try:
        label = {item["id"]: n for n, item in enumerate(content["categories"])}
        classes = tuple(str(item["name"]) for item in content["categories"])
        images = {item["id"]: item for item in content["images"]}
        found: dict[int, list[tuple[Box, int]]] = {}
        left_out = 0
        for item in content["annotations"]:
            box = None if item.get("iscrowd") else _shares(item["bbox"], images[item["image_id"]])
            if box:
                found.setdefault(item["image_id"], []).append((box, label[item["category_id"]]))
            else:
                left_out += 1
        files = tuple(folder / split / images[image]["file_name"] for image in found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not in COCO's format ({error!r}): images, annotations, categories"
        ) from None
    return BoxSet(files, tuple(map(tuple, found.values())), classes, left_out)


def _shares(bbox: list[float], image: dict) -> Box | None:
    """COCO's x, y, width, height in pixels as fractions of the image; None for a box outside the image."""
    x, y, wide, high = map(float, bbox)
    width, height = image["width"], image["height"]
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + wide, width), min(y + high, height)
    return (x0 / width, y0 / height, x1 / width, y1 / height) if x0 < x1 and y0 < y1 else None


def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
    """The blocks classification and detection, see `boxes`."""
    found = read_instances(folder)
    asked = setting.choose(len(found.images))
    if not len(asked):
        return f"no boxes in {folder}"
    setting.progress.expect(len(asked))
    there = files_there([found.images[i] for i in asked], setting.least, len(found.images))
    truth: list[int] = []
    owner: list[int] = []

    def cut(index: int) -> tuple[int, list[np.ndarray] | None]:
        image = load_image(found.images[index])
        if image is None:
            return index, None
        return index, [crop_box(image, box, embedder.size) for box, _ in found.boxes[index]]

    def squares() -> Iterator[np.ndarray]:
        for index, crops in ahead(cut, map(int, asked)):
            setting.progress.advance(1)
            if crops is not None:
                truth.extend(label for _, label in found.boxes[index])
                owner.extend([index] * len(crops))
                yield from crops

    points = embedder.encode_pixels(squares())
    if not truth:
        raise FileNotFoundError(f"none of {len(asked)} images can be read; the first is {found.images[0]}")
    vectors = vectors_of(embedder, [(name,) for name in found.classes], PLAIN)
    scale = float(embedder.model.scale)
    outcome = measure_boxes(
        embedder.score, points, vectors, np.array(truth), np.array(owner), scale, setting.boot
    )
    outcome.numbers["coverage"] = as_numbers([decoded(there, len(set(owner)), setting.least)])
    outcome.numbers["left_out"] = found.left_out
    return outcome


EVALUATIONS = {
    "coco_boxes": Evaluation(
        "COCO boxes",
        folder_with(COCO_FOLDERS, "annotations/instances_val2017.json"),
        evaluate,
        "coco/ with annotations/instances_val2017.json and val2017/",
    )
}
