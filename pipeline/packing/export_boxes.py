"""A dataset version as images and boxes for other tools: COCO json, or FiftyOne's FiftyOneImageDetectionDataset.

    OUT/train/data/KEY.jpg  OUT/train/labels.json
    OUT/val/data/KEY.jpg    OUT/val/labels.json

Both formats have this layout. Images are written first and labels.json last, each under its name only when it is
whole, so a folder with labels.json is complete; the same command finishes an interrupted one.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from hyco.pipeline.imaging.decode import inspect
from hyco.pipeline.runtime.progress import Listener, Progress
from hyco.storage.home import Home
from hyco.storage.sample import Part, TrainingSample
from hyco.storage.versions import Version, read_ref

Format = Literal["coco", "fiftyone"]
LABELS = "labels.json"


def export_boxes(
    home: Home, version: Version, kind: Format, out: Path, listener: Listener | None = None
) -> dict[str, dict[str, int]]:
    """Write the images and boxes of a version, and return by split the numbers of images and boxes.

    Args:
        home: the home.
        version: what to export.
        kind: "coco" or "fiftyone".
        out: folder to write to; one that another export wrote is refused.
        listener: gets the progress.

    Raises:
        ValueError: the folder holds something else, or an unknown format.
    """
    writers = {"coco": coco, "fiftyone": fiftyone}
    if kind not in writers:
        raise ValueError(f"format {kind!r}: there are {' and '.join(writers)}")
    told = f"{kind} {version.name}\n"
    note = out / "export.txt"
    if out.exists() and any(out.iterdir()) and not (note.is_file() and note.read_text() == told):
        raise ValueError(f"{out} holds something else than this export of {version.name}: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    _write(note, told.encode())
    stones = home.deletions.tombstones()
    found = {}
    total = sum(ref.samples for refs in version.shards.values() for ref in refs)
    with Progress(total, "export", "images", listener) as progress:
        for split, refs in version.shards.items():
            if not refs:
                continue
            data = out / split / "data"
            data.mkdir(parents=True, exist_ok=True)
            rows = []
            for sample in (sample for ref in refs for sample in read_ref(home.store, ref)):
                progress.advance()
                if stones.names(sample.meta, sample.key):
                    continue
                width, height, _ = inspect(sample.image, max_bytes=len(sample.image))
                _write(data / f"{sample.key}.jpg", sample.image)
                boxed = [part for part in sample.parts if all(map(math.isfinite, part.box))]
                parts = [dataclasses.replace(part, image=b"") for part in boxed]
                rows.append((_described(sample), width, height, parts))
            written = {f"{described['key']}.jpg" for described, *_ in rows}
            for path in (
                data.iterdir()
            ):  # drafts of a killed export, and images that were deleted since an earlier one
                if path.name not in written:
                    path.unlink()
            labels, boxes = writers[kind](rows, version.name)
            _write(out / split / LABELS, json.dumps(labels, ensure_ascii=False).encode())
            found[split] = {"images": len(rows), "boxes": boxes}
    return found


Row = tuple[dict[str, Any], int, int, list[Part]]


def coco(rows: Iterable[Row], name: str) -> tuple[dict[str, Any], int]:
    """Return COCO json of images and boxes, and the number of boxes; a category is a phrase in lower case.

    Boxes are x, y, width, height in pixels. `score`, `phrase`, `rule`, `origin` and `captions` are additions that
    readers of COCO ignore.
    """
    categories: dict[str, int] = {}
    images, annotations = [], list[dict[str, Any]]()
    for number, (described, width, height, parts) in enumerate(rows, 1):
        images.append(
            {
                "id": number,
                "file_name": f"{described['key']}.jpg",
                "width": width,
                "height": height,
                **described,
            }
        )
        for part in parts:
            x, y, w, h = _corner(part, width, height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": categories.setdefault(part.phrase.lower(), len(categories) + 1),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    **_attributes(part),
                }
            )
    named = [{"id": number, "name": phrase, "supercategory": ""} for phrase, number in categories.items()]
    info = {"description": f"Hyco dataset version {name}", "version": name}
    labels = {"info": info, "images": images, "annotations": annotations, "categories": named}
    return labels, len(annotations)


def fiftyone(rows: Iterable[Row], name: str) -> tuple[dict[str, Any], int]:
    """Return the labels of a FiftyOneImageDetectionDataset, and the number of boxes; a label is a phrase.

    Boxes are x, y, width, height as fractions of the image.
    """
    labels: dict[str, list[dict[str, Any]]] = {}
    for described, _, _, parts in rows:
        labels[described["key"]] = [
            {
                "label": part.phrase.lower(),
                "bounding_box": list(_corner(part, 1, 1)),
                **({} if math.isnan(part.score) else {"confidence": part.score}),
                "attributes": {
                    key: value
                    for key, value in _attributes(part).items()
                    if key in ("rule", "origin") and value
                },
            }
            for part in parts
        ]
    return {"labels": labels}, sum(map(len, labels.values()))


def _described(sample: TrainingSample) -> dict[str, Any]:
    source = str(sample.meta.get("source_key", sample.key))
    return {"key": sample.key, "source_key": source, "captions": list(sample.captions)}


def _corner(part: Part, width: int, height: int) -> Iterator[float]:
    x0, y0, x1, y1 = part.box
    return iter((x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height))


def _attributes(part: Part) -> dict[str, Any]:
    score = {} if math.isnan(part.score) else {"score": part.score}
    return {**score, "phrase": part.phrase, "rule": part.rule, "origin": part.origin}


def _write(path: Path, data: bytes) -> None:
    """Write a file under its name only when it is whole; one of equal size is kept: its name holds its content."""
    if path.suffix == ".jpg" and path.is_file() and path.stat().st_size == len(data):
        return
    draft = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    draft.write_bytes(data)
    draft.replace(path)
