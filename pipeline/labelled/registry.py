"""The table of adapters: what each set is called, how it is read, what its folder should hold."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.labelled import small
from pipeline.labelled.files import Files
from pipeline.labelled.layouts import Labelled, image_folder


@dataclass(frozen=True, slots=True)
class Adapter:
    """How a set is read and, for the error text, what its folder should hold."""

    read: Callable[[Files, str], Labelled]
    layout: str


ADAPTERS = {
    "cifar10": Adapter(small.cifar10, "cifar-10-batches-bin/*.bin or {train,test}/CLASS/*.jpg"),
    "cifar100": Adapter(small.cifar100, "cifar-100-binary/{train,test}.bin or {train,test}/CLASS/*.png"),
    "folder": Adapter(partial(image_folder, "folder"), "{train,test}/CLASS/*.jpg, or CLASS/*.jpg"),
    "stl10": Adapter(
        small.stl10, "stl10_binary/{train,test}_{X,y}.bin, class_names.txt, or {train,test}/CLASS/*.jpg"
    ),
    "tiny_imagenet": Adapter(
        small.tiny_imagenet,
        "{wnids,words}.txt, val/val_annotations.txt, val/images/*.JPEG, train/WNID/images/*.JPEG",
    ),
}
