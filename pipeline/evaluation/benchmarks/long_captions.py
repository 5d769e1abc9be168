"""Retrieval with long captions on published sets: DOCCI, Densely Captioned Images (DCI) and Urban-1k.

Recall both ways as on COCO (see retrieval.py). A caption beyond the model's context is cut; `captions_cut` counts them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks import retrieval
from hyco.pipeline.evaluation.benchmarks.base import Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.benchmarks.retrieval import CaptionSet
from hyco.pipeline.evaluation.embed_files import read_json, read_lines
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult

DOCCI_LIST = "docci_descriptions.jsonlines"
DCI_BASES = ("", "densely_captioned_images/", "data/densely_captioned_images/")
DCI_TEXTS = ("complete", "annotations")
URBAN_BASES = ("", "Urban1k/")


def read_docci(folder: Path, split: str = "test") -> CaptionSet:
    """docci_descriptions.jsonlines ({"image_file", "split", "description"}) and images/.

    FileNotFoundError without the list; ValueError naming the line that is not DOCCI's, or a split without images.
    """
    path = folder / DOCCI_LIST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    rows: list[tuple[Path, tuple[str, ...]]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            if item["split"] == split:
                rows.append((folder / "images" / item["image_file"], (_text(item["description"]),)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not DOCCI's ({error!r}): image_file, split, description; fetch it again"
            ) from None
    return _captions(path, split, rows)


def read_dci(folder: Path) -> CaptionSet:
    """splits.json ({"train": [NAME.json, ...], ...}), complete/NAME.json (or annotations/) and photos/.

    All 7,805 images of all splits, as in published retrieval; the caption is short_caption followed by extra_caption.
    FileNotFoundError without splits.json or a file that it names; ValueError for a file that is not DCI's.
    """
    base = next((folder / base for base in DCI_BASES if (folder / base / "splits.json").is_file()), None)
    if base is None:
        raise FileNotFoundError(f"{folder} has no splits.json")
    path = base / "splits.json"
    texts = next((base / name for name in DCI_TEXTS if (base / name).is_dir()), base / DCI_TEXTS[0])
    try:
        names = [name for split in read_json(path).values() for name in split]
        rows = [_dci(base, texts / name) for name in names]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not DCI's list of files ({error!r}): fetch it again") from None
    return _captions(path, "any", rows)


def _dci(base: Path, path: Path) -> tuple[Path, tuple[str, ...]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which splits.json names, does not exist")
    item: Any = read_json(path)
    try:
        parts = (_text(item["short_caption"]), _text(item["extra_caption"]))
        return base / "photos" / item["image"], ("\n".join(parts).strip(),)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not one of DCI's files ({error!r}): short_caption, extra_caption, image; fetch it again"
        ) from None


def read_urban(folder: Path) -> CaptionSet:
    """caption/NAME.txt, whose first line is the caption, and image/NAME.jpg.

    FileNotFoundError without the folder of captions; ValueError naming an empty one.
    """
    base = next((folder / base for base in URBAN_BASES if (folder / base / "caption").is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"{folder} has no caption/")
    rows = []
    for path in sorted((base / "caption").glob("*.txt")):
        caption = read_lines(path)[0].strip()
        if not caption:
            raise ValueError(f"{path} has no caption in its first line: fetch it again")
        rows.append((base / "image" / f"{path.stem}.jpg", (caption,)))
    return _captions(base / "caption", "any", rows)


def _text(value: object) -> str:
    """The value as text; TypeError otherwise: str() would turn null into the word None."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _captions(path: Path, split: str, rows: list[tuple[Path, tuple[str, ...]]]) -> CaptionSet:
    if not rows:
        raise ValueError(f"{path} has no images in {split} split: fetch it again")
    return CaptionSet(tuple(image for image, _ in rows), tuple(own for _, own in rows))


def measure(
    read: Callable[[Path], CaptionSet],
) -> Callable[[Embedder, Path, Setting], MetricResult | str]:
    """The evaluation of one set: image_to_text, text_to_image, and `captions_cut` of all of its captions."""

    def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
        found = read(folder)
        outcome = retrieval.measure(lambda _: found)(embedder, folder, setting)
        if isinstance(outcome, MetricResult):
            texts = [text for own in found.captions for text in own]
            cut = sum(embedder.tokenizer.too_long(texts))
            outcome.numbers["captions_cut"] = {"cut": cut, "of": len(texts)}
        return outcome

    return evaluate


EVALUATIONS = {
    "docci": Evaluation(
        "DOCCI",
        folder_with(("docci",), DOCCI_LIST),
        measure(read_docci),
        f"docci/ with {DOCCI_LIST} and images/",
    ),
    "dci": Evaluation(
        "DCI",
        folder_with(("dci", "densely_captioned_images"), *(f"{base}splits.json" for base in DCI_BASES)),
        measure(read_dci),
        "dci/ with densely_captioned_images/{splits.json,complete/,photos/}",
    ),
    "urban1k": Evaluation(
        "Urban-1k",
        folder_with(("urban1k", "urban-1k"), *(f"{base}caption" for base in URBAN_BASES)),
        measure(read_urban),
        "urban1k/ with caption/*.txt and image/*.jpg (also in Urban1k/)",
    ),
}
