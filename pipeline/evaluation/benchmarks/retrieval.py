"""Retrieval on published captioned sets: COCO, Flickr8k and Flickr30k, read from their published layouts.

All captions of every image are queries, and a query is a hit when any paired item is among the first k
(mathematics.md, section 2); the gallery is the whole split.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import COCO_FOLDERS, Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.coverage import Coverage, as_numbers
from hyco.pipeline.evaluation.embed_files import embed_files, read_json, read_lines
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.order import order_of
from hyco.pipeline.evaluation.metrics.retrieval import Pairing, both_ways

FLICKR_FOLDERS = (
    "Images",
    "images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
)


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """A split: files of images and the captions of each; `uncaptioned` images are left out."""

    images: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    uncaptioned: int = 0


def read_coco(folder: Path, split: str = "val2017") -> CaptionSet:
    """FOLDER/annotations/captions_SPLIT.json with the photographs in FOLDER/SPLIT; uncaptioned ones left out.

    FileNotFoundError without the json; ValueError when it is not COCO's.
    """
    path = folder / "annotations" / f"captions_{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = read_json(path)
    try:
        names = {item["id"]: item["file_name"] for item in content["images"]}
        captions: dict[int, list[str]] = {}
        for item in content["annotations"]:
            captions.setdefault(item["image_id"], []).append(_text(item["caption"]))
        files = tuple(folder / split / names[image] for image in captions)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not COCO's captions ({error!r}): images, annotations") from None
    return CaptionSet(files, tuple(map(tuple, captions.values())), len(names) - len(captions))


def read_karpathy(path: Path, photographs: Path, split: str = "test") -> CaptionSet:
    """Karpathy's dataset_NAME.json: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}."""
    content = read_json(path)
    try:
        listed = [item for item in content["images"] if item["split"] == split]
        chosen = [item for item in listed if item["sentences"]]
        files = tuple(photographs / item.get("filepath", "") / item["filename"] for item in chosen)
        captions = tuple(tuple(_text(s["raw"]) for s in item["sentences"]) for item in chosen)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not one of Karpathy's splits ({error!r})") from None
    if not files:
        raise ValueError(f"{path} has no images in its {split} split")
    return CaptionSet(files, captions, len(listed) - len(chosen))


def _text(caption: object) -> str:
    """The caption as text; ValueError otherwise: str() would turn null into the word None."""
    if not isinstance(caption, str):
        raise TypeError(f"the caption {caption!r} is not text")
    return caption


def read_coco_karpathy(folder: Path) -> CaptionSet:
    """The 5,000 test images of Karpathy's dataset_coco.json.

    The json names the photographs of 2014; each is also found in val2017/ or train2017/, where its name is its number.
    """
    path = folder / "dataset_coco.json"
    found = read_karpathy(path, folder)
    return replace(found, images=tuple(_coco_photograph(folder, image) for image in found.images))


def _coco_photograph(folder: Path, listed: Path) -> Path:
    number = listed.stem.rpartition("_")[2]
    renamed = (folder / split / f"{number}.jpg" for split in ("val2017", "train2017"))
    return listed if listed.is_file() else next((path for path in renamed if path.is_file()), listed)


def read_tokens(tokens: Path, names: Path, photographs: Path) -> CaptionSet:
    """Flickr's own text files: lines NAME#NUMBER<tab>CAPTION, and the names of the split, one per line.

    ValueError for a line that is neither, or a name that has no captions.
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(tokens), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        if not tab or "#" not in key:
            raise ValueError(f"{tokens}, line {number}: {line[:40]!r} is not NAME#NUMBER<tab>CAPTION")
        captions.setdefault(key.rpartition("#")[0], []).append(caption)
    wanted = [line.strip() for line in read_lines(names) if line.strip()]
    lost = [name for name in wanted if name not in captions]
    if lost or not wanted:
        raise ValueError(f"{names}: {len(lost)} of {len(wanted)} names have no captions in {tokens.name}")
    return CaptionSet(tuple(photographs / name for name in wanted), tuple(tuple(captions[n]) for n in wanted))


def read_flickr(folder: Path, name: str) -> CaptionSet:
    """The test split of flickr8k or flickr30k, from Karpathy's json or Flickr8k's text files.

    FileNotFoundError when the folder has neither.
    """
    photographs = next((folder / sub for sub in FLICKR_FOLDERS if (folder / sub).is_dir()), folder)
    karpathy = folder / f"dataset_{name}.json"
    if karpathy.is_file():
        return read_karpathy(karpathy, photographs)
    for base in (folder, folder / "Flickr8k_text"):
        tokens, names = base / "Flickr8k.token.txt", base / "Flickr_8k.testImages.txt"
        if name == "flickr8k" and tokens.is_file() and names.is_file():
            return read_tokens(tokens, names, photographs)
    raise FileNotFoundError(f"{folder} has no {karpathy.name}, which defines the test split")


def measure(read: Callable[[Path], CaptionSet]) -> Callable[[Embedder, Path, Setting], MetricResult | str]:
    """The evaluation of one set: the blocks image_to_text and text_to_image."""

    def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
        found = read(folder)
        asked = setting.choose(len(found.images))
        setting.progress.expect(len(asked))
        captioned = Coverage("captioned images", len(found.images) + found.uncaptioned, found.uncaptioned)
        captioned.require(setting.least)
        files = [found.images[i] for i in asked]
        points, kept, images = embed_files(
            embedder,
            files,
            setting.progress,
            setting.least,
            len(found.images),
            setting.protocol.square,
        )
        outcome = retrieval(embedder, points, [found.captions[i] for i in asked[kept]], setting)
        units = (images, captioned) if found.uncaptioned else (images,)
        outcome.numbers["coverage"] = as_numbers(units)
        return outcome

    return evaluate


def retrieval(
    embedder: Embedder, points: Tensor, captions: list[tuple[str, ...]], setting: Setting
) -> MetricResult:
    """Both ways over images [N, D] and the captions of each; scores are computed in blocks of queries."""
    paper = setting.protocol.published
    pairing = Pairing.own(captions) if paper else Pairing.of(captions)
    texts = embedder.encode_text(pairing.texts)
    found = both_ways(order_of(embedder), points, texts, pairing, setting.boot, in_order=paper)
    chance = found.numbers.pop("chance")
    size = {"n": len(points), "captions": len(pairing.text)}
    return MetricResult(
        {way: {**values, "chance": chance[way], **size} for way, values in found.numbers.items()},
        found.intervals,
    )


EVALUATIONS = {
    "coco": Evaluation(
        "COCO",
        folder_with(COCO_FOLDERS, "annotations/captions_val2017.json"),
        measure(read_coco),
        "coco/ with annotations/captions_val2017.json and val2017/",
        published=True,
    ),
    "coco_karpathy": Evaluation(
        "COCO, Karpathy's 5k",
        folder_with(COCO_FOLDERS, "dataset_coco.json"),
        measure(read_coco_karpathy),
        "coco/ with dataset_coco.json and val2014/, or val2017/ and train2017/",
        published=True,
    ),
    "flickr8k": Evaluation(
        "Flickr8k",
        folder_with(
            ("flickr8k",),
            "dataset_flickr8k.json",
            "Flickr8k.token.txt",
            "Flickr8k_text/Flickr8k.token.txt",
        ),
        measure(lambda folder: read_flickr(folder, "flickr8k")),
        "flickr8k/ with dataset_flickr8k.json, or Flickr8k.token.txt and Flickr_8k.testImages.txt, and Images/",
        published=True,
    ),
    "flickr30k": Evaluation(
        "Flickr30k",
        folder_with(("flickr30k",), "dataset_flickr30k.json"),
        measure(lambda folder: read_flickr(folder, "flickr30k")),
        "flickr30k/ with dataset_flickr30k.json and flickr30k-images/",
        published=True,
    ),
}
