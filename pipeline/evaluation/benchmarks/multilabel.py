"""Zero-shot on images with several labels: VOC 2007 (Everingham et al. 2010) and COCO's objects."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from hyco.pipeline.datasets.dataset_card import PLAIN
from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import COCO_FOLDERS, Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.benchmarks.coco_instances import read_instances
from hyco.pipeline.evaluation.coverage import as_numbers
from hyco.pipeline.evaluation.embed_files import embed_files, read_lines
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.multilabel import DIFFICULT, multilabel
from hyco.pipeline.evaluation.metrics.zero_shot import vectors_of

VOC_FOLDERS = ("voc2007", "vocdevkit", "voc", "pascal_voc")
VOC_BASES = ("", "VOC2007/", "VOCdevkit/VOC2007/")
VOC_LIST = "ImageSets/Main/aeroplane_test.txt"
VOC_NAMES = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
VOC_LABELS = {"1": 1, "-1": 0, "0": DIFFICULT}
IMAGES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class LabelSets:
    """Images, labels [N, C] of 1, 0 or DIFFICULT, names of the classes; `unlabelled` images are left out."""

    images: tuple[Path, ...]
    labels: Int[np.ndarray, "N C"]
    names: tuple[str, ...]
    unlabelled: int = 0


def read_voc(folder: Path, split: str = "test") -> LabelSets:
    """ImageSets/Main/CLASS_SPLIT.txt with lines "ID 1", "ID -1" or "ID 0" (difficult), and JPEGImages/ID.jpg.

    FileNotFoundError without these lists; ValueError naming a list or line that differs from the others.
    """
    base = next((folder / base for base in VOC_BASES if (folder / base / VOC_LIST).is_file()), None)
    if base is None:
        raise FileNotFoundError(f"{folder} has no {VOC_LIST}")
    paths = sorted((base / "ImageSets" / "Main").glob(f"?*_{split}.txt"))
    columns, first = [], None
    for path in paths:
        rows = [line.split() for line in read_lines(path) if line.strip()]
        for number, row in enumerate(rows, start=1):
            if len(row) != 2 or row[1] not in VOC_LABELS:
                raise ValueError(f"{path}, line {number}: {' '.join(row)!r} is not an image and 1, -1 or 0")
        ids = [key for key, _ in rows]
        if first is not None and ids != first:
            raise ValueError(f"{path} lists other images than {paths[0].name}: fetch both again")
        first = ids
        columns.append([VOC_LABELS[label] for _, label in rows])
    classes = [path.name.removesuffix(f"_{split}.txt") for path in paths]
    images = tuple(base / "JPEGImages" / f"{key}.jpg" for key in first or ())
    return LabelSets(
        images, np.array(columns, np.int64).T, tuple(VOC_NAMES.get(name, name) for name in classes)
    )


def read_coco_labels(folder: Path, split: str = "val2017") -> LabelSets:
    """The classes of the objects of each image, crowds included; images without an object are left out and counted.

    Errors as those of `read_instances`.
    """
    found = read_instances(folder, split)
    labels = np.zeros((len(found.files), len(found.classes)), np.int64)
    for row, own in enumerate(found.objects):
        labels[row, [label for label, _ in own]] = 1
    return LabelSets(found.files, labels, found.classes, found.images - len(found.files))


def measure(
    read: Callable[[Path], LabelSets], averages: tuple[str, ...]
) -> Callable[[Embedder, Path, Setting], MetricResult | str]:
    """The evaluation of one set: the block multilabel, with `averages` of metrics.multilabel.AVERAGES."""

    def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
        found = read(folder)
        asked = setting.choose(len(found.images))
        if not len(asked):
            return f"no labelled images in {folder}"
        setting.progress.expect(len(asked))
        files = [found.images[i] for i in asked]
        points, kept, coverage = embed_files(
            embedder, files, setting.progress, setting.least, len(found.images), setting.protocol.square
        )
        names = [(name,) for name in found.names]
        vectors = vectors_of(embedder, names, PLAIN, verbatim=setting.protocol.published)
        blocks = [
            embedder.score(points[start : start + IMAGES_AT_ONCE], vectors).double().cpu().numpy()
            for start in range(0, len(points), IMAGES_AT_ONCE)
        ]
        outcome = multilabel(np.concatenate(blocks), found.labels[asked[kept]], setting.boot, averages)
        facts = {"coverage": as_numbers([coverage]), "unlabelled": found.unlabelled}
        spans = {f"multilabel.{key}": span for key, span in outcome.intervals.items()}
        return MetricResult({"multilabel": outcome.numbers, **facts}, spans)

    return evaluate


EVALUATIONS = {
    "voc2007": Evaluation(
        "VOC 2007",
        folder_with(VOC_FOLDERS, *(base + VOC_LIST for base in VOC_BASES)),
        measure(read_voc, ("map", "map_11")),
        "voc2007/ with ImageSets/Main/aeroplane_test.txt ... and JPEGImages/ (also in VOCdevkit/VOC2007/)",
    ),
    "coco_labels": Evaluation(
        "COCO labels",
        folder_with(COCO_FOLDERS, "annotations/instances_val2017.json"),
        measure(read_coco_labels, ("map",)),
        "coco/ with annotations/instances_val2017.json and val2017/",
        published=True,
    ),
}
