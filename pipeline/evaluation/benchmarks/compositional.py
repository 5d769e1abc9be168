"""Captions against foils with nearly the same words, on published sets.

SugarCrepe (Hsieh et al. 2023) and VL-CheckList (Zhao et al. 2022) are read from the files they are published in.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import COCO_FOLDERS, Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.coverage import Coverage, as_numbers
from hyco.pipeline.evaluation.embed_files import embed_files, read_json
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.compositional import accuracy_by_kind, prefers

SUGARCREPE = (
    "add_att",
    "add_obj",
    "replace_att",
    "replace_obj",
    "replace_rel",
    "swap_att",
    "swap_obj",
)
CHECKLIST = ("attribute", "object", "relation")


@dataclass(frozen=True, slots=True)
class Foils:
    """N questions: an image, its true caption, a foil, and the kind of the foil.

    `parts` are the published lists of the set, `lost` those of them that are missing.
    """

    kinds: tuple[str, ...]
    images: tuple[Path, ...]
    captions: tuple[str, ...]
    foils: tuple[str, ...]
    parts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def read_sugarcrepe(folder: Path, photographs: Path) -> Foils:
    """The seven files KIND.json, {"0": {"filename", "caption", "negative_caption"}}, in FOLDER or FOLDER/data.

    Kinds without a file are `lost`; FileNotFoundError when there is none, ValueError for another format.
    """
    rows, lost = [], []
    for kind in SUGARCREPE:
        path = next(
            (p for p in (folder / f"{kind}.json", folder / "data" / f"{kind}.json") if p.is_file()), None
        )
        if path is None:
            lost.append(kind)
            continue
        content = read_json(path)
        try:
            items = content.values() if isinstance(content, dict) else content
            rows += [
                (kind, photographs / item["filename"], str(item["caption"]), str(item["negative_caption"]))
                for item in items
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not one of SugarCrepe's files ({error!r})") from None
    if not rows:
        raise FileNotFoundError(f"{folder} has none of {', '.join(f'{kind}.json' for kind in SUGARCREPE)}")
    return Foils(*zip(*rows, strict=True), parts=SUGARCREPE, lost=tuple(lost))


def read_checklist(folder: Path) -> Foils:
    """VL-CheckList: FOLDER/data/{Attribute,Object,Relation}/**.json, lists of [image, {"POS": [...], "NEG": [...]}].

    The first of POS is compared with the first of NEG, as in the published code. Images lie in FOLDER/vg (also
    those of VAW), FOLDER/swig and FOLDER/hake. Kinds are attribute_color, object_size, relation_spatial ...:
    the corpora of a kind are counted together. Of the three folders those without a file are `lost`.
    """
    rows = []
    for path in sorted((folder / "data").glob("**/*.json")):
        place = path.relative_to(folder / "data")
        photographs = folder / next((c for c in ("swig", "hake") if c in str(place).lower()), "vg")
        for item in _list(path, read_json(path)):
            try:
                name, texts = item
                rows.append((_kind(place), photographs / name, str(texts["POS"][0]), str(texts["NEG"][0])))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise ValueError(f"{path} is not one of VL-CheckList's files ({error!r})") from None
    if not rows:
        raise FileNotFoundError(f"{folder} has no data/**.json")
    rows.sort(key=lambda row: row[0])
    there = {row[0].partition("_")[0] for row in rows}
    lost = tuple(part for part in CHECKLIST if part not in there)
    return Foils(*zip(*rows, strict=True), parts=CHECKLIST, lost=lost)


def _list(path: Path, content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{path} is not one of VL-CheckList's files: a list of [image, texts]")
    return content


def _kind(place: Path) -> str:
    """Attribute/vg/color.json -> attribute_color; Object/Size/... -> object_size."""
    top, *middle = (part.lower() for part in place.parent.parts)
    aspect = middle[0] if top == "object" and middle else place.stem.lower().rpartition("_")[2]
    return f"{top}_{aspect}"


def measure(embedder: Embedder, asked: Foils, setting: Setting) -> MetricResult:
    """One block per kind and "mean" of the kinds; every image and every text is embedded once.

    ValueError when too few of the set's lists, of its images or of the pairs of a kind exist.
    """
    kinds = Coverage("kinds", len(asked.parts), len(asked.lost), first=", ".join(asked.lost))
    kinds.require(setting.least)
    chosen = drawn = setting.choose(len(asked.images))
    files = list(dict.fromkeys(asked.images[i] for i in chosen))
    setting.progress.expect(len(files))
    points, kept, read = embed_files(
        embedder, files, setting.progress, setting.least, square=setting.protocol.square
    )
    place = {files[index]: row for row, index in enumerate(kept)}
    chosen = [i for i in chosen if asked.images[i] in place]
    wanted, got = (Counter(asked.kinds[i] for i in rows) for rows in (drawn, chosen))
    for kind, count in wanted.items():
        Coverage(f"pairs of {kind}", count, count - got[kind]).require(setting.least)
    for kind in set(asked.kinds) - set(wanted):
        setting.skipped[kind] = "none of its pairs was drawn: raise suite_images"
    texts = list(dict.fromkeys(text for i in chosen for text in (asked.captions[i], asked.foils[i])))
    number = {text: n for n, text in enumerate(texts)}
    said = embedder.encode_text(texts)
    image = np.array([place[asked.images[i]] for i in chosen], np.int64)
    right = prefers(
        embedder.score,
        points[torch.from_numpy(image)],
        said[[number[asked.captions[i]] for i in chosen]],
        said[[number[asked.foils[i]] for i in chosen]],
    )
    found = accuracy_by_kind(right, [asked.kinds[i] for i in chosen], image, setting.boot)
    pairs = Coverage("pairs", len(drawn), len(drawn) - len(chosen), listed=len(asked.images))
    found.numbers["coverage"] = as_numbers((read, pairs, kinds))
    return found


def sugarcrepe(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
    """SugarCrepe on the photographs of COCO, which may be next to its folder or inside."""
    coco = folder_with(COCO_FOLDERS, "val2017")(setting.data) or setting.data / "coco"
    places = (folder / "val2017", coco / "val2017", setting.data / "val2017")
    photographs = next((place for place in places if place.is_dir()), None)
    if photographs is None:
        return f"SugarCrepe needs the photographs of COCO: put them in {places[1]}"
    return measure(embedder, read_sugarcrepe(folder, photographs), setting)


def checklist(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
    """VL-CheckList."""
    return measure(embedder, read_checklist(folder), setting)


EVALUATIONS = {
    "sugarcrepe": Evaluation(
        "SugarCrepe",
        folder_with(
            ("sugarcrepe", "sugar-crepe", "sugar_crepe"),
            *(f"{base}{kind}.json" for base in ("", "data/") for kind in SUGARCREPE),
        ),
        sugarcrepe,
        "sugarcrepe/ with swap_obj.json ..., and coco/val2017/ next to it",
        published=True,
    ),
    "vl_checklist": Evaluation(
        "VL-CheckList",
        folder_with(("vl_checklist", "vl-checklist"), "data"),
        checklist,
        "vl_checklist/ with data/Attribute/, data/Object/, data/Relation/ and the images in vg/, swig/, hake/",
        published=True,
    ),
}
