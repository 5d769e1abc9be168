"""Hierarchical captions of an image on a published set: HierarCaps (Alper and Averbuch-Elor, ECCV 2024).

The protocol of average precision and AUROC is that of hyper3-clip: see metrics/entailment.py.
"""

import csv
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from hyco.pipeline.embedder import Embedder
from hyco.pipeline.evaluation.benchmarks.base import Evaluation, Setting, folder_with
from hyco.pipeline.evaluation.benchmarks.retrieval import CaptionSet
from hyco.pipeline.evaluation.coverage import as_numbers
from hyco.pipeline.evaluation.embed_files import embed_files, read_lines
from hyco.pipeline.evaluation.metrics.bootstrap import MetricResult
from hyco.pipeline.evaluation.metrics.entailment import entailment, entailment_pairs, pair_scores

LISTS = ("hierarcaps_test.csv", "data/hierarcaps_test.csv")
IMAGES = ("test_imgs", "assets/test_imgs", "images", "val2014")
ARROW = "=>"
APERTURE = 0.1


def read_hierarcaps(folder: Path, data: Path) -> CaptionSet:
    """FOLDER/hierarcaps_test.csv (id,captions,image_url): captions from general to specific, separated by "=>".

    Images have the file name of their address, in one of IMAGES below FOLDER or in coco/val2014 of `data`.
    FileNotFoundError without the csv; ValueError naming the line of one that is not HierarCaps'.
    """
    path = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no {LISTS[0]}")
    places = [folder / name for name in IMAGES] + [
        data / name / "val2014" for name in ("coco", "coco2014", "mscoco")
    ]
    photographs = next((place for place in places if place.is_dir()), places[0])
    table = csv.DictReader(f"{line}\n" for line in read_lines(path))
    wanted = ("captions", "image_url")
    if lost := [name for name in wanted if name not in (table.fieldnames or ())]:
        raise ValueError(
            f"{path} has no column {' and no '.join(lost)}: fetch it again, or name its columns so"
        )
    images, captions = [], []
    try:
        for row in table:
            own = tuple(text.strip() for text in (row["captions"] or "").split(ARROW) if text.strip())
            name = Path(urlsplit(row["image_url"] or "").path).name
            if not own or not name:
                raise ValueError(f"captions {row['captions']!r} of image {row['image_url']!r}")
            images.append(photographs / name)
            captions.append(own)
    except (ValueError, csv.Error) as error:  # urlsplit raises ValueError for some addresses
        line = table.line_num + isinstance(error, csv.Error)  # which is raised before the line is counted
        raise ValueError(
            f"{path}, line {line}: {error}; expected texts separated by {ARROW} and the address of an image"
        ) from None
    if len(images) < 2:
        raise ValueError(f"{path} names {len(images)} images: negatives need another image, fetch it again")
    return CaptionSet(tuple(images), tuple(captions))


def evaluate(embedder: Embedder, folder: Path, setting: Setting) -> MetricResult | str:
    """Blocks margin, angle and similarity (the only one of a Euclidean model)."""
    found = read_hierarcaps(folder, setting.data)
    asked = setting.choose(len(found.images))
    setting.progress.expect(len(asked))
    files = [found.images[i] for i in asked]
    points, kept, coverage = embed_files(embedder, files, setting.progress, setting.least, len(found.images))
    captions = [found.captions[i] for i in asked[kept]]
    texts = {text: n for n, text in enumerate(dict.fromkeys(text for own in captions for text in own))}
    right, wrong = entailment_pairs([[texts[text] for text in own] for own in captions])
    if not len(wrong):
        return "no image has a caption that is not another's: nothing is negative"
    pairs = np.concatenate([right, wrong])
    said = embedder.encode_text(list(texts))
    scores = pair_scores(embedder.score, points, said, pairs, embedder.curvatures, APERTURE)
    outcome = entailment(scores, pairs, len(right), setting.boot)
    outcome.numbers["coverage"] = as_numbers([coverage])
    return outcome


EVALUATIONS = {
    "hierarcaps": Evaluation(
        "HierarCaps",
        folder_with(("hierarcaps",), *LISTS),
        evaluate,
        "hierarcaps/ with hierarcaps_test.csv (also in data/), and the images in test_imgs/ or coco/val2014/",
        published=True,
    )
}
