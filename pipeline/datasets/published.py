"""Sets with label files of their own: ImageNet, SUN397, Food-101, CUB and others."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyco.pipeline.datasets.files import Files
from hyco.pipeline.datasets.layouts import Labelled, hashed, image_folder, in_split, is_image, of_files
from hyco.pipeline.datasets.small_images import lines
from hyco.pipeline.datasets.wordnet import common_names

CALTECH_TRAIN = 30  # images per class, the protocol of Fei-Fei et al. 2004


def imagenet(files: Files, split: str) -> Labelled:
    """{train,val}/WNID/*.JPEG, or Kaggle's ILSVRC/Data/CLS-LOC with LOC_val_solution.csv."""
    try:
        mapping = lines(files, files.anchor("LOC_synset_mapping.txt") + "LOC_synset_mapping.txt")
    except FileNotFoundError:
        return image_folder("imagenet", files, split)
    told = {line[:9]: common_names([name.strip() for name in line[9:].split(",")]) for line in mapping}
    wnids = sorted(told)
    names = [told[wnid] for wnid in wnids]
    base = files.anchor("ILSVRC/Data/CLS-LOC/") + "ILSVRC/Data/CLS-LOC/"
    label = {wnid: index for index, wnid in enumerate(wnids)}
    members: list[tuple[str, int]] = []
    if split in ("train", "all"):
        members += [
            (key, label[w]) for w in wnids for key in files.below(f"{base}train/{w}/") if is_image(key)
        ]
    if split in ("test", "all"):
        solution = lines(files, files.anchor("LOC_val_solution.csv") + "LOC_val_solution.csv")[1:]
        rows = (re.split(r"[,\s]+", line)[:2] for line in solution)
        members += [(f"{base}val/{picture}.JPEG", _known(label, wnid, files)) for picture, wnid in rows]
    return of_files("imagenet", files, wnids, members, names)


def sun397(files: Files, split: str) -> Labelled:
    """ClassName.txt, a/abbey/sun_*.jpg; parts from Training_01.txt and Testing_01.txt where they exist."""
    base = files.anchor("ClassName.txt")
    classes = [line.strip().strip("/") for line in lines(files, base + "ClassName.txt")]
    listed = [f"{part}_01.txt" for part in {"train": ["Training"], "test": ["Testing"]}.get(split, [])]
    for place in (base, base + "Partitions/"):
        if listed and files.has(place + listed[0]):
            label = {folder: index for index, folder in enumerate(classes)}
            keys = [line.strip().strip("/") for line in lines(files, place + listed[0])]
            members = [(base + key, _known(label, key.rpartition("/")[0], files)) for key in keys]
            return of_files("sun397", files, classes, members)
    members = [
        (key, index)
        for index, folder in enumerate(classes)
        for key in files.below(f"{base}{folder}/")
        if is_image(key) and key.count("/") == f"{base}{folder}".count("/") + 1
    ]
    return of_files("sun397", files, classes, [m for m in members if in_split(m[0][len(base) :], split)])


def caltech101(files: Files, split: str) -> Labelled:
    """101_ObjectCategories/CLASS/*.jpg; 30 images per class, drawn by the hash of their name, are for training."""
    base = files.anchor("101_ObjectCategories/") + "101_ObjectCategories/"
    classes = [folder for folder in files.folders(base) if folder != "BACKGROUND_Google"]
    return caltech_parts(files, base, classes, split)


def caltech_parts(files: Files, base: str, classes: Sequence[str], split: str) -> Labelled:
    """A part of these classes of Caltech-101, whose folders lie below `base`."""
    members = []
    for label, folder in enumerate(classes):
        keys = [key for key in files.below(f"{base}{folder}/") if is_image(key)]
        train = set(sorted(keys, key=lambda key: hashed(key[len(base) :]))[:CALTECH_TRAIN])
        members += [(key, label) for key in keys if split == "all" or (key in train) == (split == "train")]
    return of_files("caltech101", files, classes, members)


def food101(files: Files, split: str) -> Labelled:
    """meta/{classes,train,test}.txt, images/CLASS/ID.jpg."""
    base = files.anchor("meta/classes.txt")
    classes = lines(files, base + "meta/classes.txt")
    label = {name: index for index, name in enumerate(classes)}
    keys = [key for part in _parts(split) for key in lines(files, f"{base}meta/{part}.txt")]
    members = [(f"{base}images/{key}.jpg", _known(label, key.partition("/")[0], files)) for key in keys]
    return of_files("food101", files, classes, members)


def cub(files: Files, split: str) -> Labelled:
    """classes.txt, images.txt, image_class_labels.txt, train_test_split.txt, images/CLASS/*.jpg."""
    base = files.anchor("train_test_split.txt")

    def table(name: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in lines(files, base + name))

    classes, pictures, owner = (
        table(name) for name in ("classes.txt", "images.txt", "image_class_labels.txt")
    )
    label = {key: index for index, key in enumerate(classes)}
    wanted = {"train": ("1",), "test": ("0",)}.get(split, ("0", "1"))
    members = [
        (f"{base}images/{pictures[key]}", _known(label, owner[key], files))
        for key, part in table("train_test_split.txt").items()
        if part in wanted
    ]
    return of_files("cub", files, list(classes.values()), members)


def cars(files: Files, split: str) -> Labelled:
    """devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat, cars_{train,test}/*.jpg."""
    base = files.anchor("devkit/cars_meta.mat")
    classes = [str(name) for name in _mat(files, base + "devkit/cars_meta.mat")["class_names"]]
    members = []
    for part in _parts(split):
        file = "cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        place = next((p for p in (base + "devkit/", base) if files.has(p + file)), base + "devkit/")
        rows = np.ravel(_mat(files, place + file)["annotations"])
        members += [(f"{base}cars_{part}/{row['fname']}", int(row["class"]) - 1) for row in rows]
    return of_files("cars", files, classes, members)


def aircraft(files: Files, split: str) -> Labelled:
    """data/variants.txt, data/images_variant_{trainval,test}.txt, data/images/ID.jpg."""
    base = files.anchor("variants.txt", "data/variants.txt")
    base += "" if files.has(base + "variants.txt") else "data/"
    classes = lines(files, base + "variants.txt")
    label = {name: index for index, name in enumerate(classes)}
    members = []
    for part in _parts(split, "trainval"):
        for line in lines(files, f"{base}images_variant_{part}.txt"):
            picture, _, variant = line.partition(" ")
            members.append((f"{base}images/{picture}.jpg", _known(label, variant, files)))
    return of_files("aircraft", files, classes, members)


def pets(files: Files, split: str) -> Labelled:
    """annotations/{trainval,test}.txt, images/BREED_N.jpg."""
    base = files.anchor("annotations/test.txt")
    rows = {part: lines(files, f"{base}annotations/{part}.txt") for part in _parts(split, "trainval")}
    pairs = [
        (line.split()[0], int(line.split()[1]) - 1)
        for part in rows.values()
        for line in part
        if line[0] != "#"
    ]
    breeds = {label: picture.rpartition("_")[0] for picture, label in pairs}
    if sorted(breeds) != list(range(len(breeds))):
        raise ValueError(
            f"{files.where}: annotations name the classes {sorted(breeds)[:5]} ..., not 1, 2, 3 ..."
        )
    classes = [breeds[label] for label in sorted(breeds)]
    return of_files(
        "pets", files, classes, [(f"{base}images/{picture}.jpg", label) for picture, label in pairs]
    )


def flowers(files: Files, split: str) -> Labelled:
    """imagelabels.mat, setid.mat, jpg/image_NNNNN.jpg; training is trnid and valid, the test tstid."""
    base = files.anchor("imagelabels.mat")
    labels = np.ravel(_mat(files, base + "imagelabels.mat")["labels"])
    sets = _mat(files, base + "setid.mat")
    wanted = {"train": ("trnid", "valid"), "test": ("tstid",)}.get(split, ("trnid", "valid", "tstid"))
    numbers = [int(number) for part in wanted for number in np.ravel(sets[part])]
    members = [(f"{base}jpg/image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in numbers]
    return of_files("flowers", files, [str(number + 1) for number in range(int(labels.max()))], members)


def dtd(files: Files, split: str) -> Labelled:
    """labels/{train,val,test}1.txt, images/CLASS/*.jpg: the first of the ten published divisions."""
    base = files.anchor("labels/test1.txt")
    wanted = {"train": ("train1", "val1"), "test": ("test1",)}.get(split, ("train1", "val1", "test1"))
    keys = [key for part in wanted for key in lines(files, f"{base}labels/{part}.txt")]
    classes = files.folders(base + "images/")
    label = {name: index for index, name in enumerate(classes)}
    members = [(f"{base}images/{key}", _known(label, key.partition("/")[0], files)) for key in keys]
    return of_files("dtd", files, classes, members)


def _parts(split: str, train: str = "train") -> Sequence[str]:
    return {"train": (train,), "test": ("test",)}.get(split, (train, "test"))


def _known(label: dict[str, int], name: str, files: Files) -> int:
    if name not in label:
        raise ValueError(
            f"{files.where}: an image has the class {name!r}, which is not in the list of classes"
        )
    return label[name]


def _mat(files: Files, name: str) -> dict[str, Any]:
    """The arrays of a MATLAB file; it holds data only, no code is run."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ValueError(f"{name} is a MATLAB file: install scipy to read it") from error
    try:
        return loadmat(io.BytesIO(files.read(name)), squeeze_me=True)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"{files.where}: {name} is no MATLAB 5 file: {error}") from error
