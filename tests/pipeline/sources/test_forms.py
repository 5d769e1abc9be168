# ruff: noqa: F811  (fixtures)
"""Each form in which people have captioned images is mined: made here in the layout that its tool publishes."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hyco.pipeline.mining.mine import mine_all
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.columns import Columns
from hyco.pipeline.sources.image_files import FILES
from hyco.pipeline.sources.listing import absolute_source
from hyco.pipeline.sources.look import lines, look
from hyco.pipeline.sources.source import UnitGoneError, open_source
from hyco.storage.home import Home
from tests.factories.files import lay, named, tar_bytes, tarred
from tests.factories.mining import COLOURS, config, detector, picture  # noqa: F401  (fixtures are used by name)
from tests.pipeline.sources.test_source import codes, read

TEXTS = [f"a {colour} block on the wall" for colour in COLOURS]
PICTURES = [picture(colour, number) for number, colour in enumerate(COLOURS)]
NAMES = [f"{number}.png" for number in range(3)]
ROWS = list(zip(NAMES, TEXTS, strict=True))


def loose(root: Path, folder: str = "") -> Path:
    return lay(root / folder, dict(zip(NAMES, PICTURES, strict=True)))


def csv_header(root: Path) -> None:
    loose(root)
    lay(root, {"captions.csv": "file_name,caption\n" + "".join(f'{n},"{t}"\n' for n, t in ROWS)})


def tsv_without_header(root: Path) -> None:
    loose(root, "images")
    lay(root, {"all.tsv": "".join(f"{n}\t{t}\n" for n, t in ROWS)})


def flickr8k_of_kaggle(root: Path) -> None:
    loose(root, "Images")
    lay(root, {"captions.txt": "image,caption\n" + "".join(f"{n},{t}\n{n},{t} .\n" for n, t in ROWS)})


def flickr30k_of_kaggle(root: Path) -> None:
    loose(root, "flickr30k_images")
    rows = "".join(f"{n}| 0| {t}\n" for n, t in ROWS)
    lay(root, {"results.csv": "image_name| comment_number| comment\n" + rows})


def imagefolder_jsonl(root: Path) -> None:
    for name, text, data, split in zip(NAMES, TEXTS, PICTURES, ("train", "train", "test"), strict=True):
        lay(root / split, {name: data})
        with (root / split / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": name, "text": text}) + "\n")


def imagefolder_csv(root: Path) -> None:
    for name, text, data, split in zip(NAMES, TEXTS, PICTURES, ("train", "test", "valid"), strict=True):
        lay(root / split, {name: data, "metadata.csv": f"file_name,text\n{name},{text}\n"})


def imagefolder_parquet(root: Path) -> None:
    loose(root, "train")
    pq.write_table(pa.table({"file_name": NAMES, "text": TEXTS}), root / "train/metadata.parquet")


def coco(root: Path) -> None:
    loose(root, "val2017")
    lay(root / "train2017", {NAMES[0]: b"another image of the same name"})
    images = [{"id": 7 + i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(NAMES)]
    said = [{"id": i, "image_id": 7 + i, "caption": t} for i, t in enumerate(TEXTS)]
    text = json.dumps({"info": {}, "licenses": [], "images": images, "annotations": said})
    boxes = json.dumps(
        {"images": images, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}], "categories": []}
    )
    lay(root, {"annotations/captions_val2017.json": text, "annotations/instances_val2017.json": boxes})


def karpathy(root: Path) -> None:
    loose(root, "val2014")
    images = [
        {"filepath": "val2014", "filename": n, "sentences": [{"raw": t}], "split": "test"} for n, t in ROWS
    ]
    lay(root, {"dataset_coco.json": json.dumps({"images": images, "dataset": "coco"})})


def list_of_objects(root: Path) -> None:
    loose(root, "image")
    rows = [{"image": f"image/{n}", "caption": t} for n, t in ROWS]
    lay(root, {"captions.json": json.dumps(rows)})


def kohya(root: Path) -> None:
    loose(root, "10_blocks")
    lay(root / "10_blocks", {f"{n[:-4]}.txt": t + "\n" for n, t in ROWS})


def img2dataset_files(root: Path) -> None:
    for number, (data, text) in enumerate(zip(PICTURES, TEXTS, strict=True)):
        stem = f"00000/00000000{number}"
        told = json.dumps({"caption": text, "key": f"00000000{number}", "status": "success", "exif": "{}"})
        lay(root, {f"{stem}.jpg": data, f"{stem}.txt": text, f"{stem}.json": told})
    pq.write_table(pa.table({"url": ["x"], "caption": ["x"]}), root / "00000.parquet")
    lay(root, {"00000_stats.json": "{}"})


def saved_dataset(root: Path) -> None:
    folder = root / "train"
    folder.mkdir(parents=True)
    rows = [{"bytes": data, "path": None} for data in PICTURES]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "text": TEXTS})
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, 2)
    lay(
        root,
        {
            "dataset_dict.json": '{"splits": ["train"]}',
            "train/state.json": "{}",
            "train/dataset_info.json": "{}",
        },
    )


def other_columns(root: Path) -> None:
    root.mkdir(parents=True)
    pq.write_table(
        pa.table({"jpg": PICTURES, "thumb": [b"x"] * 3, "alt": TEXTS, "url": ["u"] * 3}), root / "0.parquet"
    )


def paths_in_parquet(root: Path) -> None:
    loose(root, "a")
    pq.write_table(pa.table({"image_path": [f"a/{n}" for n in NAMES], "caption": TEXTS}), root / "0.parquet")


def members(numbers: Any = range(3)) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for number in numbers:
        found |= named(f"{number:04d}", {"png": PICTURES[number], "txt": TEXTS[number]})
    return found


def tars(root: Path) -> None:
    for number in range(3):
        lay(root, {f"{number:05d}.tar": tar_bytes(members([number]))})


def gzipped(root: Path) -> None:
    lay(root, {"00000.tar.gz": gzip.compress(tar_bytes(members([0, 1])))})
    lay(root, {"1.tgz": gzip.compress(tar_bytes(members([2])))})


def tars_in_folders(root: Path) -> None:
    tars(root / "part")
    (root / "part2").mkdir()
    (root / "part/00002.tar").rename(root / "part2/00002.tar")


FORMS: dict[str, tuple[Callable[[Path], None], str, dict[str, str]]] = {
    "csv with a header": (csv_header, "", {}),
    "a csv by itself": (csv_header, "/captions.csv", {}),
    "tsv without a header": (tsv_without_header, "", {}),
    "tsv by numbers": (tsv_without_header, "", {"image": "0", "caption": "1"}),
    "Flickr8k as on Kaggle": (flickr8k_of_kaggle, "", {}),
    "Flickr30k as on Kaggle": (flickr30k_of_kaggle, "", {"caption": "comment"}),
    "imagefolder, jsonl": (imagefolder_jsonl, "", {}),
    "imagefolder, csv": (imagefolder_csv, "", {}),
    "imagefolder, parquet": (imagefolder_parquet, "", {}),
    "COCO": (coco, "", {}),
    "a COCO json by itself": (coco, "/annotations/captions_val2017.json", {}),
    "Karpathy": (karpathy, "", {}),
    "json list": (list_of_objects, "", {}),
    "kohya": (kohya, "", {}),
    "kohya, the folder itself": (kohya, "/10_blocks", {}),
    "img2dataset files": (img2dataset_files, "", {}),
    "saved DatasetDict": (saved_dataset, "", {}),
    "saved Dataset": (saved_dataset, "/train", {}),
    "parquet with other columns": (other_columns, "", {"image": "jpg", "caption": "alt"}),
    "parquet with paths": (paths_in_parquet, "", {}),
    "tars in sub-folders": (tars_in_folders, "", {}),
    "pattern": (tars, "/*.tar", {}),
    "pattern across folders": (tars_in_folders, "/**/*.tar", {}),
    "range": (tars, "/{00000..00002}.tar", {}),
    "gzipped tars": (gzipped, "", {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_mined(form: str, tmp_path: Path, detector: Any) -> None:
    make, tail, names = FORMS[form]
    make(tmp_path / "source")
    asked = config(f"{tmp_path / 'source'}{tail}", columns=Columns(**names))
    found = mine_all(asked, Home(str(tmp_path / "home")), InProcess())
    assert (found["images"], found["failures"]) == (3, 0)
    assert found["phrases_with_boxes"] >= found["captions"] >= 3 and found["boxes"]
    seen = look(open_source(asked.source, columns=asked.columns))
    assert seen.good > 0 and not seen.failures and not seen.error and seen.samples[0][2][0] in TEXTS
    again = mine_all(asked, Home(str(tmp_path / "home")), InProcess())
    assert again["units_done"] == found["units"] and detector.calls == found["units"], (
        "nothing is mined twice"
    )


def test_rows_that_are_added_make_new_units_and_leave_the_others(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hyco.pipeline.sources.gathered.PER_UNIT", 2)
    csv_header(tmp_path)
    before = open_source(tmp_path).units()
    assert [unit.path for unit in before] == ["captions.csv#0", "captions.csv#1"]
    assert [len(list(open_source(tmp_path).samples(unit, print))) for unit in before] == [2, 1]
    lay(tmp_path, {"3.png": picture("red", 9)})
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("3.png,a red block\n")
    after = open_source(tmp_path).units()
    assert after[0] == before[0] and after[1].sha256 != before[1].sha256 and len(after) == 2
    lay(tmp_path, {"0.png": PICTURES[0] + b"longer"})
    assert open_source(tmp_path).units()[0] != before[0], "the images are part of the identity"


def test_text_beside_an_image_that_changes_makes_another_unit(tmp_path: Path) -> None:
    kohya(tmp_path)
    (before,) = open_source(tmp_path).units()
    assert before.path == "10_blocks/*#0"
    lay(tmp_path / "10_blocks", {"0.txt": "a dog", "alone.png": picture("red", 5)})
    source = open_source(tmp_path)
    samples, failures = read(source)
    assert "a dog" in samples[0].captions and [failure.code for failure in failures] == ["no_caption"]
    assert source.units() != [before]
    with pytest.raises(UnitGoneError):
        list(source.samples(before, print))


def test_lists_with_commas_and_ranges(tmp_path: Path) -> None:
    tars(tmp_path / "a")
    tars(tmp_path / "b,c")
    one, other = f"{tmp_path}/a/0000{{0,1}}.tar", f"{tmp_path}/b,c"
    assert [unit.path for unit in open_source(one).units()] == ["00000.tar", "00001.tar"]
    assert len(open_source(other).units()) == 3, "a path that exists may hold a comma"
    source = open_source(f"{one},{tmp_path}/a/../a/00002.tar")
    assert [unit.path for unit in source.units()] == ["00000.tar", "00001.tar", "00002.tar"]
    csv_header(tmp_path / "d")
    assert len(open_source(f"{tmp_path}/d,{tmp_path}/d/captions.csv").units()) == 1
    spelled = absolute_source("a/00000.tar,a/00001.tar", tmp_path)
    assert len(open_source(spelled).units()) == 2
    for wrong, text in {
        f"{tmp_path}/a/{{00000..00009}}.tar": "00003.tar does not exist, the first of 7 that are absent",
        f"{tmp_path}/a/*.parquet": "matches no file: check the pattern",
        f"{tmp_path}/a,{tmp_path}/d": r"mixes \.csv and \.tar files: give one kind",
        f"{tmp_path}/a,memory://x/0.tar": "lies in several stores",
        "memory://x/0.tar,memory2://y/0.tar": "Protocol not known",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            open_source(wrong)


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        (
            {"a.csv": "picture,alt text\n0.png,a dog\n"},
            {},
            r"a\.csv has no column of file names: set --image-column NAME .*columns: picture, alt text",
        ),
        (
            {"a.csv": "file,alt\n0.png,a dog\n"},
            {},
            r"no column of captions: set --caption-column NAME.*: file, alt",
        ),
        ({"a.csv": "file,alt\n"}, {"caption": "txt"}, r"no column 'txt': set --caption-column.*: file, alt"),
        ({"a.csv": 'file,caption\n0.png,"' + "x" * (2 << 20)}, {}, "cannot be read at line 2 .*open quote"),
        ({"a.csv": ""}, {}, "no column of file names.*nothing"),
        ({"captions_x.json": "{}"}, {}, r"is no list of captions \(it holds \)"),
        ({"captions_x.json": "{"}, {}, "is no json"),
        (
            {"captions_x.json": '{"images": [{"id": [], "file_name": "a"}], "annotations": []}'},
            {},
            r"has an entry of another form \(TypeError",
        ),
        (
            {
                "captions.json": '{"images": [{"id": 1, "file_name": "a"}], "annotations": '
                '[{"image_id": 1, "bbox": []}]}'
            },
            {},
            r"no caption for any of its 1 images \(its annotations hold bbox, image_id\): give captions",
        ),
        ({"a.jpg": "x", "b.jpg": "x"}, {}, r"holds images without captions \(\.jpg\): put NAME\.txt beside"),
    ],
)
def test_wrong_columns_and_formats_get_one_line(
    tmp_path: Path, files: dict[str, str], columns: dict[str, str], message: str
) -> None:
    lay(tmp_path, files)
    with pytest.raises(ValueError, match=message) as caught:
        read(open_source(tmp_path, columns=Columns(**columns)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"several columns of bytes \(pic, thumb\); call it 'image' or set --image-column NAME"),
        (
            {"image": "pic"},
            r"no caption column.*or set --caption-column NAME \(columns\.caption\)\. Its columns: pic",
        ),
        ({"image": "png"}, r"no column 'png': set --image-column.*: pic \(binary\)"),
    ],
)
def test_wrong_columns_of_parquet_get_one_line(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    pq.write_table(pa.table({"pic": PICTURES, "thumb": [b"x"] * 3, "alt": TEXTS}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match=message):
        read(open_source(tmp_path, columns=Columns(**columns)))


def test_rows_without_a_caption_name_their_fields_and_the_option(tmp_path: Path) -> None:
    told = json.dumps({"alt": "a dog", "url": "http://x"})
    path = tarred(tmp_path / "0.tar", {"0.png": PICTURES[0], "0.json": told})
    (failure,) = read(open_source(path))[1]
    assert "its other fields: alt, url: set --caption-column NAME (columns.caption)" in failure.message
    (sample,), _ = read(open_source(path, columns=Columns(caption="alt,title")))
    assert sample.captions == ("a dog",) and "alt" not in sample.meta
    lay(tmp_path / "j", {"0.png": PICTURES[0], "a.jsonl": json.dumps({"pic": "0.png", "alt": "a dog"})})
    (failure,) = read(open_source(tmp_path / "j"))[1]
    assert "its fields: pic, alt: set --image-column NAME" in failure.message
    (sample,), _ = read(open_source(tmp_path / "j", columns=Columns(image="pic", caption="alt")))
    assert sample.captions == ("a dog",)


def test_bad_rows_cost_themselves(tmp_path: Path) -> None:
    loose(tmp_path)
    rows = b"file,caption\n0.png,a dog\n\n1.png\n../2.png,x\ngone.png,x\n2.png,caf\xe9\nhttp://x/y.jpg,x\n"
    (tmp_path / "a.csv").write_bytes(rows)
    assert codes(open_source(tmp_path)) == {
        "": "bad_line",
        "../2.png": "no_image",
        "gone.png": "no_image",
        "2.png": "bad_text",
        "http://x/y.jpg": "no_image",
    }


def test_torn_archives_and_arrow_files(tmp_path: Path) -> None:
    gzipped(tmp_path / "gz")
    saved_dataset(tmp_path / "hf")
    for path, text in {
        tmp_path / "gz/00000.tar.gz": r"00000\.tar\.gz is (not a whole gzip file|truncated|empty)",
        tmp_path / "hf/train/data-00000-of-00001.arrow": r"arrow is not a whole arrow file",
    }.items():
        whole = path.read_bytes()
        for end in range(0, len(whole) - 1, max(1, len(whole) // 40)):
            path.write_bytes(whole[:end])
            with pytest.raises(ValueError, match=text):
                read(open_source(path))
    # Cut between two batches: pyarrow alone sees a whole stream with two rows.
    for end in range(0, len(whole), 8):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=text):
            read(open_source(path))


def test_the_remedy_for_mixed_kinds_works(tmp_path: Path) -> None:
    for folder in ("", "sub"):
        tars(tmp_path / folder)
        pq.write_table(pa.table({"url": ["x"]}), tmp_path / folder / "other.parquet")
    with pytest.raises(ValueError, match=r"mixes \.tar and \.parquet") as caught:
        open_source(tmp_path)
    (remedy,) = re.findall(r"or give '(.*)'", str(caught.value))
    assert len(open_source(remedy).files) == 6


def test_shards_for_training_are_refused_by_name(tmp_path: Path) -> None:
    published = {"k.child.jpg": PICTURES[0], "k.child.txt": "a dog", "k.numparents.txt": "0"}
    tarred(tmp_path / "0.tar", published)
    with pytest.raises(ValueError, match=r"0\.tar is a training shard.*k\.numparents\.txt.*hyco adopt DIR"):
        read(open_source(tmp_path))


def test_a_look_tells_what_would_fail(tmp_path: Path) -> None:
    loose(tmp_path)
    lay(tmp_path, {"a.csv": "file,caption,licence\n0.png,a dog,CC0\ngone.png,a cat,\n1.png,,\n"})
    text = "\n".join(lines(look(open_source(tmp_path)), "DIR"))
    for expected in (
        "DIR: csv or tsv that names images, 1 file",
        "fields beside image and captions: licence",
        "0.png: 60 x 40 PNG: a dog",
        "first 3 rows of a.csv#0: 1 would be mined, with 1 captions",
        "1 would fail, no_image: gone.png named in",
        "1 would fail, empty_caption",
    ):
        assert expected in text
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "0.parquet")
    assert "error: 0.parquet has no column of image bytes" in "\n".join(
        lines(look(open_source(tmp_path)), "DIR")
    )


@pytest.mark.parametrize("column", FILES)
def test_every_kind_of_list_takes_the_same_columns_of_file_names(column: str, tmp_path: Path) -> None:
    rows = [{column: name, "caption": text} for name, text in ROWS]
    lists = {
        "rows.csv": f"{column},caption\n" + "".join(f"{name},{text}\n" for name, text in ROWS),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "rows_captions.json": json.dumps(rows),
    }
    for name, content in lists.items():
        lay(loose(tmp_path / name), {name: content})
    pq.write_table(pa.Table.from_pylist(rows), loose(tmp_path / "rows.parquet") / "0.parquet")
    for kind in (*lists, "rows.parquet"):
        samples, failures = read(open_source(str(tmp_path / kind)))
        assert [sample.captions[0] for sample in samples] == TEXTS and not failures, kind
