"""The test parts of CLIP's and MERU's evaluations of the sets that publish no parts: Caltech-101, EuroSAT, RESISC45.

TensorFlow Datasets stores EuroSAT and RESISC45 in one part, in the order of md5("train" + CLASS_FILE), and the
published evaluations take positions of it: EuroSAT's 10,000 to 15,000, RESISC45's last 80 %. Files and names alone
decide this order, so it can be repeated (compared with the shuffler of tensorflow-datasets 4.9.10). Caltech-101 takes
30 random images of each class, background included, for training; which ones depends on the order in which a file
system lists them, and cannot be repeated: here the hash of their name draws them.
"""

import hashlib
from functools import partial

from hyco.pipeline.datasets.files import Files
from hyco.pipeline.datasets.layouts import Labelled, class_folders, of_files
from hyco.pipeline.datasets.published import caltech_parts

SIZES = {"eurosat": 27_000, "resisc45": 31_500}
SPANS = {
    "eurosat": {"train": (0, 10_000), "test": (10_000, 15_000)},
    "resisc45": {"train": (0, 6_300), "test": (6_300, 31_500)},
}


def caltech101(files: Files, split: str) -> Labelled:
    """101_ObjectCategories/CLASS/*.jpg, 102 classes with the background, in the order of their lower-case names."""
    base = files.anchor("101_ObjectCategories/") + "101_ObjectCategories/"
    return caltech_parts(files, base, sorted(files.folders(base), key=str.lower), split)


def positions(name: str, files: Files, split: str) -> Labelled:
    """The images CLASS/*.jpg at the part's positions of the stored order.

    ValueError unless all images of the set are there, since they decide the positions.
    """
    prefix = ""
    while len(only := files.folders(prefix)) == 1:
        prefix += only[0] + "/"
    whole = class_folders(name, files, prefix)
    if len(whole) != SIZES[name]:
        raise ValueError(
            f"{files.where} has {len(whole):,} of the {SIZES[name]:,} images of {name}, and the published parts are "
            "positions among all of them: fetch the rest, or use --protocol hyco"
        )
    order = sorted(range(len(whole)), key=lambda index: stored_order(whole.keys[index]))
    chosen = order if split == "all" else order[slice(*SPANS[name][split])]
    members = [(whole.keys[i], int(whole.labels[i])) for i in chosen]
    return of_files(name, files, whole.classes, members)


def stored_order(key: str) -> bytes:
    """Sorts CLASS/FILE as TensorFlow Datasets does: by the md5 of the part's name and the key CLASS_FILE."""
    label, _, file = key.rpartition("/")
    return hashlib.md5(f"train{label.rpartition('/')[2]}_{file}".encode(), usedforsecurity=False).digest()


PAPER_READERS = {"caltech101": caltech101} | {name: partial(positions, name) for name in SPANS}
