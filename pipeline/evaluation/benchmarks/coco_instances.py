"""The objects of a set in COCO's format: annotations/instances_SPLIT.json, with the photographs in SPLIT/."""

from dataclasses import dataclass
from pathlib import Path

from hyco.pipeline.evaluation.embed_files import read_json

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instances:
    """The images that have objects.

    Attributes:
        files: the photograph of each of these images.
        objects: of each, its objects: index of the class, and box (x0, y0, x1, y1 as fractions of the image; None for a
            crowd, and for a box without area in the image).
        classes: names of the classes.
        images: number of images of the set, with those that have no object.
    """

    files: tuple[Path, ...]
    objects: tuple[tuple[tuple[int, Box | None], ...], ...]
    classes: tuple[str, ...]
    images: int


def read_instances(folder: Path, split: str = "val2017") -> Instances:
    """Read a split; FileNotFoundError without the json, ValueError when it is not in COCO's format."""
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = read_json(path)
    try:
        label = {item["id"]: n for n, item in enumerate(content["categories"])}
        classes = tuple(str(item["name"]) for item in content["categories"])
        images = {item["id"]: item for item in content["images"]}
        found: dict[int, list[tuple[int, Box | None]]] = {}
        for item in content["annotations"]:
            box = None if item.get("iscrowd") else _fractions(item["bbox"], images[item["image_id"]])
            found.setdefault(item["image_id"], []).append((label[item["category_id"]], box))
        files = tuple(folder / split / images[image]["file_name"] for image in found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not in COCO's format ({error!r}): images, annotations, categories"
        ) from None
    return Instances(files, tuple(map(tuple, found.values())), classes, len(images))


def _fractions(bbox: list[float], image: dict) -> Box | None:
    """COCO's x, y, width, height in pixels as fractions of the image; None for a box outside the image."""
    x, y, wide, high = map(float, bbox)
    width, height = image["width"], image["height"]
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + wide, width), min(y + high, height)
    return (x0 / width, y0 / height, x1 / width, y1 / height) if x0 < x1 and y0 < y1 else None
