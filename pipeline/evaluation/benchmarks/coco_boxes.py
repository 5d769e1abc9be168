"""Ground-truth boxes of a set in COCO's format: cropped, and classified."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hyco.pipeline.datasets.dataset_card import PLAIN
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import COCO_FOLDERS, Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.benchmarks.coco_instances import read_instances
from hyco.pipeline.evaluation.coverage import as_numbers
from hyco.pipeline.evaluation.embed_files import ahead, decoded, files_there, load_image
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.boxes import measure_boxes
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of
from hyco.pipeline.imaging.crop import crop_box


def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
    """The blocks classification and detection, see `boxes`.

    Crowds and boxes without area are left out and counted, as are images without boxes.
    """
    found = read_instances(folder)
    boxes = [[(box, label) for label, box in own if box] for own in found.objects]
    images = [(file, own) for file, own in zip(found.files, boxes, strict=True) if own]
    asked = setting.choose(len(images))
    if not len(asked):
        return f"no boxes in {folder}"
    setting.progress.expect(len(asked))
    there = files_there([images[i][0] for i in asked], setting.least, len(images))
    truth: list[int] = []
    owner: list[int] = []

    def cut(index: int) -> tuple[int, list[np.ndarray] | None]:
        file, own = images[index]
        image = load_image(file)
        if image is None:
            return index, None
        return index, [crop_box(image, box, embedder.size) for box, _ in own]

    def squares() -> Iterator[np.ndarray]:
        for index, crops in ahead(cut, map(int, asked)):
            setting.progress.advance(1)
            if crops is not None:
                truth.extend(label for _, label in images[index][1])
                owner.extend([index] * len(crops))
                yield from crops

    points = embedder.encode_pixels(squares())
    if not truth:
        raise FileNotFoundError(f"none of {len(asked)} images can be read; the first is {images[0][0]}")
    vectors = vectors_of(embedder, [(name,) for name in found.classes], PLAIN)
    scale = float(embedder.model.scale)
    outcome = measure_boxes(
        embedder.score, points, vectors, np.array(truth), np.array(owner), scale, setting.boot
    )
    outcome.numbers["coverage"] = as_numbers([decoded(there, len(set(owner)), setting.least)])
    outcome.numbers["left_out"] = sum(map(len, found.objects)) - sum(map(len, boxes))
    return outcome


EVALUATIONS = {
    "coco_boxes": Evaluation(
        "COCO boxes",
        folder_with(COCO_FOLDERS, "annotations/instances_val2017.json"),
        evaluate,
        "coco/ with annotations/instances_val2017.json and val2017/",
    )
}
