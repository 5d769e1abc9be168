"""Sets of small pictures: CIFAR-10 and -100, STL-10, Tiny-ImageNet, in their published layouts."""

from collections.abc import Sequence

import numpy as np

from hyco.pipeline.datasets.dataset_card import card
from hyco.pipeline.datasets.files import Files, missing
from hyco.pipeline.datasets.layouts import Labelled, is_image, joined, of_files
from hyco.pipeline.datasets.layouts import image_folder as _image_folder
from hyco.pipeline.datasets.wordnet import common_names

CIFAR_SIDE, STL_SIDE = 32, 96


def cifar10(files: Files, split: str) -> Labelled:
    """cifar-10-batches-bin: a label byte, then 3,072 of pixels; or {train,test}/CLASS/*.jpg."""
    return _cifar(
        "cifar10",
        files,
        split,
        "batches.meta.txt",
        1,
        [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test_batch.bin",
    )


def cifar100(files: Files, split: str) -> Labelled:
    """cifar-100-binary: coarse and fine label bytes, then 3,072 of pixels; or {train,test}/CLASS/*.jpg."""
    return _cifar("cifar100", files, split, "fine_label_names.txt", 2, ["train.bin"], "test.bin")


def stl10(files: Files, split: str) -> Labelled:
    """stl10_binary: {train,test}_X.bin, images as 3 planes in column order, labels from 1 in _y.bin."""
    try:
        base = files.anchor("class_names.txt")
    except FileNotFoundError:
        return _image_folder("stl10", files, split)
    classes = lines(files, base + "class_names.txt")
    parts = []
    for part in ("train", "test") if split == "all" else (split,):
        labels = np.frombuffer(files.read(f"{base}{part}_y.bin"), np.uint8).astype(np.int64) - 1
        pixels = _pixels(
            files.read(f"{base}{part}_X.bin"), f"{part}_X.bin", len(labels), (3, STL_SIDE, STL_SIDE)
        )
        parts.append(_of_arrays("stl10", classes, labels, pixels.transpose(0, 3, 2, 1), part))
    return joined(parts)


def tiny_imagenet(files: Files, split: str) -> Labelled:
    """wnids.txt, words.txt, val/val_annotations.txt, val/images/*.JPEG, train/WNID/images/*.JPEG."""
    base = files.anchor("wnids.txt")
    wnids = sorted(lines(files, base + "wnids.txt"))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    members = []
    if split in ("train", "all") and files.has(base + "train"):
        for wnid in wnids:
            members += [(key, label_of[wnid]) for key in files.below(f"{base}train/{wnid}/") if is_image(key)]
    elif split == "train":
        raise missing(files.where, (base + "train/WNID/images/*.JPEG",))
    if split in ("test", "all"):
        for line in lines(files, base + "val/val_annotations.txt"):
            picture, wnid, *_ = line.split("\t")
            if wnid not in label_of:
                raise ValueError(
                    f"{files.where}: val_annotations.txt names {wnid}, which wnids.txt does not list"
                )
            members.append((f"{base}val/images/{picture}", label_of[wnid]))
    words = dict(line.split("\t", 1) for line in lines(files, base + "words.txt") if "\t" in line)
    names = [common_names([name.strip() for name in words.get(wnid, wnid).split(",")]) for wnid in wnids]
    return of_files("tiny_imagenet", files, wnids, members, names)


def lines(files: Files, name: str) -> list[str]:
    """The lines of a text file that are not blank, without their ends."""
    text = files.read(name).decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _cifar(
    name: str, files: Files, split: str, meta: str, marks: int, train: Sequence[str], test: str
) -> Labelled:
    try:
        base = files.anchor(meta)
    except FileNotFoundError as error:
        pickled = ("batches.meta", "meta")
        if any(
            files.has(f"{folder}{mark}")
            for folder in ("", *(f"{f}/" for f in files.folders("")))
            for mark in pickled
        ):
            raise ValueError(
                f"{files.where} holds {name} as Python pickles, which Hyco does not open: fetch its binary version"
            ) from error
        return _image_folder(name, files, split)
    classes = lines(files, base + meta)
    wanted = [*train, test] if split == "all" else list(train) if split == "train" else [test]
    size = marks + 3 * CIFAR_SIDE**2
    parts = []
    for file in wanted:
        held = files.read(base + file)
        rows = _pixels(held, file, len(held) // size, (size,))
        pixels = rows[:, marks:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
        parts.append(_of_arrays(name, classes, rows[:, marks - 1].astype(np.int64), pixels, file))
    return joined(parts)


def _pixels(held: bytes, file: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    if not held or len(held) != count * int(np.prod(shape)):
        raise ValueError(
            f"{file} has {len(held):,} bytes, which is no whole number of images: fetch it again"
        )
    return np.frombuffer(held, np.uint8).reshape(count, *shape)


def _of_arrays(
    name: str, classes: Sequence[str], labels: np.ndarray, pixels: np.ndarray, file: str
) -> Labelled:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"{file} has the label {labels.max()}, but the set has {len(classes)} classes")
    known = card(name)
    return Labelled(
        name,
        tuple(classes),
        tuple(known.readable(label) for label in classes),
        labels,
        lambda index: np.ascontiguousarray(pixels[index]),
        [f"{file}[{i}]" for i in range(len(labels))],
    )
