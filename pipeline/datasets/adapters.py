"""The table of adapters: name of each set, its reader, the expected content of its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hyco.pipeline.datasets import published
from hyco.pipeline.datasets import small_images as small
from hyco.pipeline.datasets.files import Files
from hyco.pipeline.datasets.layouts import Labelled, image_folder


@dataclass(frozen=True, slots=True)
class Adapter:
    """The reader of a set and, for the error text, the expected content of its folder."""

    read: Callable[[Files, str], Labelled]
    layout: str


FOLDERS = "{train,test}/CLASS/*.jpg, or CLASS/*.jpg"

ADAPTERS = {
    "aircraft": Adapter(published.aircraft, "data/{variants,images_variant_test}.txt, data/images/*.jpg"),
    "caltech101": Adapter(published.caltech101, "101_ObjectCategories/CLASS/*.jpg"),
    "cars": Adapter(
        published.cars, "devkit/cars_meta.mat, cars_test_annos_withlabels.mat, cars_{train,test}/*.jpg"
    ),
    "cifar10": Adapter(small.cifar10, "cifar-10-batches-bin/*.bin or {train,test}/CLASS/*.jpg"),
    "cifar100": Adapter(small.cifar100, "cifar-100-binary/{train,test}.bin or {train,test}/CLASS/*.png"),
    "country211": Adapter(partial(image_folder, "country211"), "{train,valid,test}/CODE/*.jpg"),
    "cub": Adapter(
        published.cub, "{classes,images,image_class_labels,train_test_split}.txt, images/CLASS/*.jpg"
    ),
    "dtd": Adapter(published.dtd, "labels/{train,val,test}1.txt, images/CLASS/*.jpg"),
    "eurosat": Adapter(partial(image_folder, "eurosat"), "2750/CLASS/*.jpg"),
    "flowers": Adapter(published.flowers, "imagelabels.mat, setid.mat, jpg/image_NNNNN.jpg"),
    "folder": Adapter(partial(image_folder, "folder"), FOLDERS),
    "food101": Adapter(published.food101, "meta/{classes,train,test}.txt, images/CLASS/*.jpg"),
    "imagenet": Adapter(published.imagenet, "{train,val}/WNID/*.JPEG, or Kaggle's ILSVRC/ and LOC_*.csv"),
    "pets": Adapter(published.pets, "annotations/{trainval,test}.txt, images/*.jpg"),
    "resisc45": Adapter(partial(image_folder, "resisc45"), "NWPU-RESISC45/CLASS/*.jpg"),
    "stl10": Adapter(small.stl10, "{train,test}_{X,y}.bin, class_names.txt, or {train,test}/CLASS/*.jpg"),
    "sun397": Adapter(published.sun397, "ClassName.txt, a/abbey/*.jpg, Partitions/Testing_01.txt"),
    "tiny_imagenet": Adapter(
        small.tiny_imagenet,
        "{wnids,words}.txt, val/val_annotations.txt, val/images/*.JPEG, train/WNID/images/*.JPEG",
    ),
}
