"""Each adapter on a few made files in the layout its data set is published in."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.datasets import open_labelled
from hyco.pipeline.datasets.adapters import ADAPTERS
from hyco.pipeline.datasets.dataset_card import card, cards, read_card, tidy
from tests.factories.files import lay, picture, tarred


def mat(**arrays: Any) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def annos(rows: list[tuple[str, int]]) -> bytes:
    kind = [("bbox_x1", "O"), ("fname", "O"), ("class", "O")]
    return mat(annotations=np.array([(1, name, label) for name, label in rows], dtype=kind)[None])


def cells(words: list[str]) -> np.ndarray:
    held = np.empty((1, len(words)), object)
    held[0] = words
    return held


def cifar(labels: list[int], marks: int) -> bytes:
    return b"".join(bytes([9] * (marks - 1) + [label]) + bytes([10 * label + 1]) * 3072 for label in labels)


def stl(values: list[int]) -> bytes:
    images = np.zeros((len(values), 3, 96, 96), np.uint8)
    for image, value in zip(images, values, strict=True):
        image[:, 5, 2] = value  # column 5, row 2: planes are stored column by column
    return images.tobytes()


P = picture
# name: (files, (labels, first pixel of each test image), (the same of the training part), readable names)
MADE: dict[str, tuple[dict[str, bytes | str], tuple, tuple | None, list[str]]] = {
    "aircraft": (
        {
            "fgvc-aircraft-2013b/data/variants.txt": "707-320\nA340-200\n",
            "fgvc-aircraft-2013b/data/images_variant_test.txt": "0012 A340-200\n0034 707-320\n",
            "fgvc-aircraft-2013b/data/images_variant_trainval.txt": "0056 A340-200\n",
            "fgvc-aircraft-2013b/data/images/0012.jpg": P(1),
            "fgvc-aircraft-2013b/data/images/0034.jpg": P(2),
            "fgvc-aircraft-2013b/data/images/0056.jpg": P(3),
        },
        ([1, 0], [1, 2]),
        ([1], [3]),
        ["707-320", "A340-200"],
    ),
    "cars": (
        {
            "devkit/cars_meta.mat": mat(
                class_names=cells(["Audi TT RS Coupe 2012", "Tesla Model S Sedan 2012"])
            ),
            "devkit/cars_train_annos.mat": annos([("00001.jpg", 2)]),
            "cars_test_annos_withlabels.mat": annos([("00001.jpg", 1), ("00002.jpg", 2)]),
            "cars_train/00001.jpg": P(7),
            "cars_test/00001.jpg": P(8),
            "cars_test/00002.jpg": P(9),
        },
        ([0, 1], [8, 9]),
        ([1], [7]),
        ["2012 Audi TT RS Coupe", "2012 Tesla Model S Sedan"],
    ),
    "cifar10": (
        {
            "cifar-10-batches-bin/batches.meta.txt": "airplane\nautomobile\n\n",
            "cifar-10-batches-bin/test_batch.bin": cifar([1, 0], 1),
            **{f"cifar-10-batches-bin/data_batch_{i}.bin": cifar([i % 2], 1) for i in range(1, 6)},
        },
        ([1, 0], [11, 1]),
        ([1, 0, 1, 0, 1], [11, 1, 11, 1, 11]),
        ["airplane", "automobile"],
    ),
    "cifar100": (
        {
            "cifar-100-binary/fine_label_names.txt": "apple\naquarium_fish\n",
            "cifar-100-binary/test.bin": cifar([0, 1], 2),
            "cifar-100-binary/train.bin": cifar([1], 2),
        },
        ([0, 1], [1, 11]),
        ([1], [11]),
        ["apple", "aquarium fish"],
    ),
    "country211": (
        {
            "country211/test/FR/a.jpg": P(1),
            "country211/test/AX/b.jpg": P(2),
            "country211/valid/FR/c.jpg": P(3),
        },
        ([0, 1], [2, 1]),
        None,
        ["Åland", "France"],
    ),
    "cub": (
        {
            "CUB_200_2011/classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
            "CUB_200_2011/images.txt": "1 001.Black_footed_Albatross/x.jpg\n2 002.Laysan_Albatross/y.jpg\n",
            "CUB_200_2011/image_class_labels.txt": "1 1\n2 2\n",
            "CUB_200_2011/train_test_split.txt": "1 1\n2 0\n",
            "CUB_200_2011/images/001.Black_footed_Albatross/x.jpg": P(1),
            "CUB_200_2011/images/002.Laysan_Albatross/y.jpg": P(2),
        },
        ([1], [2]),
        ([0], [1]),
        ["Black footed Albatross", "Laysan Albatross"],
    ),
    "dtd": (
        {
            "dtd/labels/test1.txt": "dotted/b.jpg\n",
            "dtd/labels/train1.txt": "banded/a.jpg\n",
            "dtd/labels/val1.txt": "dotted/c.jpg\n",
            "dtd/images/banded/a.jpg": P(1),
            "dtd/images/dotted/b.jpg": P(2),
            "dtd/images/dotted/c.jpg": P(3),
        },
        ([1], [2]),
        ([0, 1], [1, 3]),
        ["banded", "dotted"],
    ),
    "flowers": (
        {
            "imagelabels.mat": mat(labels=np.array([[2, 1, 2]], np.uint8)),
            "setid.mat": mat(trnid=np.array([[3]]), valid=np.array([[2]]), tstid=np.array([[1]])),
            "jpg/image_00001.jpg": P(1),
            "jpg/image_00002.jpg": P(2),
            "jpg/image_00003.jpg": P(3),
        },
        ([1], [1]),
        ([1, 0], [3, 2]),
        ["pink primrose", "hard-leaved pocket orchid"],
    ),
    "food101": (
        {
            "food-101/meta/classes.txt": "apple_pie\nwaffles\n",
            "food-101/meta/test.txt": "waffles/1\napple_pie/2\n",
            "food-101/meta/train.txt": "apple_pie/3\n",
            "food-101/images/waffles/1.jpg": P(1),
            "food-101/images/apple_pie/2.jpg": P(2),
            "food-101/images/apple_pie/3.jpg": P(3),
        },
        ([1, 0], [1, 2]),
        ([0], [3]),
        ["apple pie", "waffles"],
    ),
    "imagenet": (
        {
            "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
            "LOC_val_solution.csv": "ImageId,PredictionString\nv_1,n01443537 1 2 3 4\nv_2,n01440764 0 0 1 1 \n",
            "ILSVRC/Data/CLS-LOC/val/v_1.JPEG": P(1),
            "ILSVRC/Data/CLS-LOC/val/v_2.JPEG": P(2),
            "ILSVRC/Data/CLS-LOC/train/n01440764/t.JPEG": P(3),
        },
        ([1, 0], [1, 2]),
        ([0], [3]),
        ["tench", "goldfish"],
    ),
    "pets": (
        {
            "annotations/test.txt": "# a head\nSiamese_1 2 1 1\namerican_bulldog_2 1 2 1\n",
            "annotations/trainval.txt": "american_bulldog_3 1 2 1\nSiamese_4 2 1 1\n",
            "images/Siamese_1.jpg": P(1),
            "images/american_bulldog_2.jpg": P(2),
            "images/american_bulldog_3.jpg": P(3),
            "images/Siamese_4.jpg": P(4),
        },
        ([1, 0], [1, 2]),
        ([0, 1], [3, 4]),
        ["american bulldog", "siamese"],
    ),
    "stl10": (
        {
            "stl10_binary/class_names.txt": "airplane\nbird\n",
            "stl10_binary/test_X.bin": stl([3, 4]),
            "stl10_binary/test_y.bin": bytes([2, 1]),
            "stl10_binary/train_X.bin": stl([5]),
            "stl10_binary/train_y.bin": bytes([1]),
        },
        ([1, 0], [3, 4]),
        ([0], [5]),
        ["airplane", "bird"],
    ),
    "sun397": (
        {
            "SUN397/ClassName.txt": "/a/abbey\n/a/apartment_building/outdoor\n",
            "SUN397/Testing_01.txt": "/a/apartment_building/outdoor/sun_1.jpg\n",
            "SUN397/Training_01.txt": "/a/abbey/sun_2.jpg\n",
            "SUN397/a/apartment_building/outdoor/sun_1.jpg": P(1),
            "SUN397/a/abbey/sun_2.jpg": P(2),
        },
        ([1], [1]),
        ([0], [2]),
        ["abbey", "outdoor apartment building"],
    ),
    "tiny_imagenet": (
        {
            "tiny-imagenet-200/wnids.txt": "n02124075\nn01443537\n",
            "tiny-imagenet-200/words.txt": "n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n",
            "tiny-imagenet-200/val/val_annotations.txt": "v0.JPEG\tn02124075\t0\t1\t2\t3\n",
            "tiny-imagenet-200/val/images/v0.JPEG": P(1),
            "tiny-imagenet-200/train/n01443537/images/t0.JPEG": P(2),
        },
        ([1], [1]),
        ([0], [2]),
        ["goldfish", "Egyptian cat"],
    ),
}
IN_ONE_PIECE: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "eurosat": (lambda kind: f"EuroSAT/2750/{kind}", ["Forest", "SeaLake"]),
    "resisc45": (lambda kind: f"NWPU-RESISC45/{kind}", ["baseball_diamond", "forest"]),
    "caltech101": (lambda kind: f"caltech101/101_ObjectCategories/{kind}", ["airplanes", "ant"]),
}


def first_pixels(name: str, spec: str, split: str) -> tuple[list[int], list[int]]:
    found = open_labelled(spec, split)
    assert found.name == name
    row = 2 if name == "stl10" else 0
    column = 5 if name == "stl10" else 0
    return found.labels.tolist(), [int(found.image(i)[row, column, 0]) for i in range(len(found))]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", MADE)
def test_layout(name: str, packed: bool, tmp_path: Path) -> None:
    files, test, train, names = MADE[name]
    if packed:
        tarred(tmp_path / "set.tar.gz", files)
    else:
        lay(tmp_path, files)
    spec = f"{name}:{tmp_path}"
    assert first_pixels(name, spec, "test") == test
    assert [own[0] for own in open_labelled(spec).names] == names
    if train is not None:
        assert first_pixels(name, spec, "train") == train
        labels, pixels = first_pixels(name, spec, "all")
        assert sorted(zip(labels, pixels, strict=True)) == sorted(
            [*zip(*test, strict=True), *zip(*train, strict=True)]
        )


@pytest.mark.parametrize("name", IN_ONE_PIECE)
def test_one_piece(name: str, tmp_path: Path) -> None:
    folder, kinds = IN_ONE_PIECE[name]
    lay(tmp_path, {f"{folder(kind)}/{n}.jpg": P(n) for kind in kinds for n in range(40)})
    lay(tmp_path, {f"{folder('BACKGROUND_Google')}/0.jpg": P(0)} if name == "caltech101" else {})
    parts = {split: open_labelled(f"{name}:{tmp_path}", split) for split in ("train", "test", "all")}
    assert parts["test"].classes == tuple(kinds)
    assert len(parts["train"]) + len(parts["test"]) == len(parts["all"]) == 80
    if name == "caltech101":
        assert np.bincount(parts["train"].labels).tolist() == [30, 30]
    seen = {(s, int(p.labels[i]), int(p.image(i)[0, 0, 0])) for s, p in parts.items() for i in range(len(p))}
    assert not {x[1:] for x in seen if x[0] == "train"} & {x[1:] for x in seen if x[0] == "test"}


def test_every_adapter_is_tried() -> None:
    assert set(MADE) | set(IN_ONE_PIECE) | {"folder"} == set(ADAPTERS)
    assert {known.name for known in cards()} == set(ADAPTERS) - {"folder"}
    assert sum(known.paper for known in cards()) == 16


@pytest.mark.parametrize("name", sorted(set(ADAPTERS)))
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError) as error:
        open_labelled(f"{name}:{tmp_path}")
    assert str(tmp_path) in str(error.value)
    assert f"expected layout: {ADAPTERS[name].layout}" in str(error.value)


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    files = dict(MADE["food101"][0])
    files["food-101/meta/test.txt"] = "pizza/1\n"
    with pytest.raises(ValueError, match="'pizza', which is not in the list of classes"):
        open_labelled(f"food101:{lay(tmp_path / 'food', files)}")
    files = dict(MADE["cifar10"][0])
    files["cifar-10-batches-bin/test_batch.bin"] = cifar([1, 0], 1)[:-1]
    with pytest.raises(ValueError, match=r"test_batch\.bin has 6,145 bytes"):
        open_labelled(f"cifar10:{lay(tmp_path / 'cut', files)}")
    files["cifar-10-batches-bin/test_batch.bin"] = cifar([1, 7], 1)
    with pytest.raises(ValueError, match="label 7, but the set has 2 classes"):
        open_labelled(f"cifar10:{lay(tmp_path / 'odd', files)}")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {"cifar-10-batches-py/batches.meta": b"\x80\x02", "cifar-10-batches-py/test_batch": b"\x80\x02"},
    )
    with pytest.raises(
        ValueError, match="Python pickles, which Hyco does not open: fetch its binary version"
    ):
        open_labelled(f"cifar10:{tmp_path}")


def hugging_face(path: Path, values: list[int], labels: list[int], names: list[str], column: str) -> None:
    features = {column: {"names": names, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
    images = [{"bytes": picture(value), "path": None} for value in values]
    table = pa.table({"img": images, "coarse_label": [0] * len(labels), column: labels})
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=2)


def test_parquet(tmp_path: Path) -> None:
    names = ["apple", "aquarium_fish"]
    hugging_face(tmp_path / "data/test-00000-of-00002.parquet", [1, 2, 3], [0, 1, 1], names, "fine_label")
    hugging_face(tmp_path / "data/test-00001-of-00002.parquet", [4], [0], names, "fine_label")
    hugging_face(tmp_path / "data/train-00000-of-00001.parquet", [5], [1], names, "fine_label")
    assert first_pixels("cifar100", f"cifar100:{tmp_path}", "test") == ([0, 1, 1, 0], [1, 2, 3, 4])
    assert first_pixels("cifar100", f"cifar100:{tmp_path}", "train") == ([1], [5])
    found = open_labelled(f"cifar100:{tmp_path}")
    assert found.classes == tuple(names) and found.names[1] == ("aquarium fish",)
    assert int(found.image(0)[0, 0, 0]) == 1, "a row group left behind is read again"


def test_parquet_of_imagenet_has_the_wnids(tmp_path: Path) -> None:
    names = [f"thing {i}, Res latina" for i in range(1000)]
    hugging_face(tmp_path / "default/validation/0000.parquet", [1], [1], names, "label")
    found = open_labelled(f"imagenet:{tmp_path}")
    assert found.classes[1] == "n01443537" and found.names[1] == ("thing 1",)


def test_a_part_published_without_labels_is_passed_over(tmp_path: Path) -> None:
    """ImageNet on the hub: its test part has -1 everywhere, so its validation part is the test."""
    names = [f"thing {i}" for i in range(1000)]
    hugging_face(tmp_path / "data/train-00000-of-00001.parquet", [1], [4], names, "label")
    hugging_face(tmp_path / "data/validation-00000-of-00001.parquet", [2, 3], [5, 6], names, "label")
    hugging_face(tmp_path / "data/test-00000-of-00001.parquet", [7, 8], [-1, -1], names, "label")
    assert first_pixels("imagenet", f"imagenet:{tmp_path}", "test") == ([5, 6], [2, 3])
    assert first_pixels("imagenet", f"imagenet:{tmp_path}", "all") == ([4, 5, 6], [1, 2, 3])


@pytest.mark.parametrize("odd", [-1, 2, None])
def test_a_label_that_is_no_class_is_named_with_its_file(tmp_path: Path, odd: int) -> None:
    hugging_face(tmp_path / "test-0.parquet", [1], [0], ["cat", "dog"], "label")
    hugging_face(tmp_path / "test-1.parquet", [1, 2], [1, odd], ["cat", "dog"], "label")
    with pytest.raises(ValueError, match=rf"test-1\.parquet\[1\] has the label {odd}; there are 2 classes"):
        open_labelled(f"folder:{tmp_path}")


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b""], "label": [1]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"columns \['picture', 'label'\], none of image"):
        open_labelled(f"folder:{tmp_path}")
    pq.write_table(pa.table({"image": [b""], "label": [1]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="has numbers and the schema no names"):
        open_labelled(f"folder:{tmp_path}")
    pq.write_table(pa.table({"image": [picture(3)], "label": ["cat"]}), tmp_path / "test.parquet")
    assert first_pixels("folder", f"folder:{tmp_path}", "test") == ([0], [3])


def test_shards(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("black cat\nwhite dog\n")
    tarred(
        tmp_path / "test/0.tar", {"s0.jpg": picture(1), "s0.cls": "1", "s1.jpg": picture(2), "s1.cls": "0"}
    )
    tarred(tmp_path / "test/1.tar", {"s2.webp": picture(3), "s2.cls": "1\n"})
    tarred(tmp_path / "train/0.tar", {"s0.png": picture(4), "s0.cls": "0"})
    assert first_pixels("pets", f"pets:{tmp_path}", "test") == ([1, 0, 1], [1, 2, 3])
    assert first_pixels("pets", f"pets:{tmp_path}", "all") == ([0, 1, 0, 1], [4, 1, 2, 3])
    assert open_labelled(f"pets:{tmp_path}").names == (("black cat",), ("white dog",))
    tarred(tmp_path / "test/2.tar", {"s3.jpg": picture(1)})
    with pytest.raises(ValueError, match=r"2\.tar: s3\.jpg has the class 'no \.cls'"):
        open_labelled(f"pets:{tmp_path}")
    tarred(tmp_path / "test/2.tar", {"s3.jpg": picture(1), "s3.cls": "2"})
    with pytest.raises(ValueError, match=r"class '2'; classnames\.txt has 2 classes"):
        open_labelled(f"pets:{tmp_path}")


def test_cards(tmp_path: Path) -> None:
    assert len(card("flowers").names) == 102
    assert card("unheard_of").prompts == ("a photo of a {}.",)
    assert tidy("SeaLake") == "Sea Lake" and tidy("sea_lake") == "sea lake"
    (tmp_path / "bad.toml").write_text('title = "Bad"\nprompts = ["no place"]\n')
    with pytest.raises(ValueError, match=r"bad\.toml: the prompt 'no place' needs one"):
        read_card(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text('titel = "Bad"\n')
    with pytest.raises(ValueError, match=r"bad\.toml is not the card"):
        read_card(tmp_path / "bad.toml")
