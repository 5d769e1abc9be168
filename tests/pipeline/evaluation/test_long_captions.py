"""DOCCI, DCI and Urban-1k: a few made files in the layout of each."""

import json
from pathlib import Path

import pytest

from hyco.models.encoders.tokenizer import Tokenizer
from hyco.pipeline.evaluation.benchmarks.long_captions import read_dci, read_docci, read_urban
from hyco.pipeline.evaluation.benchmarks.suite import run_suite
from hyco.pipeline.evaluation.metrics.bootstrap import Bootstrap
from tests.factories.files import lay
from tests.pipeline.evaluation.test_published_sets import ColourEmbedder, paint

FEW = Bootstrap(draws=100)
COLOURS = ("red", "green", "blue")
LONG = "and so on and on with very much more to be read of it than would ever fit"


class Reader(ColourEmbedder):
    """With a tokenizer whose context ends after eight tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer.train([LONG, *COLOURS] * 2, 600, 10)


def text(colour: str) -> str:
    return f"a {colour} thing {LONG if colour == 'blue' else ''}".strip()


def docci(folder: Path) -> None:
    rows = []
    for n, colour in enumerate(COLOURS):
        paint(folder / "images" / f"test_{n:05d}.jpg", colour)
        rows.append({"split": "test", "image_file": f"test_{n:05d}.jpg", "description": text(colour)})
    rows.append({"split": "train", "image_file": "train_00000.jpg", "description": "left out"})
    (folder / "docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, rows)) + "\n")


def dci(folder: Path) -> None:
    base = folder / "densely_captioned_images"
    for n, colour in enumerate(COLOURS):
        paint(base / "photos" / f"sa_{n}.jpg", colour)
        (base / "complete").mkdir(exist_ok=True)
        made = {"short_caption": f"a {colour}", "extra_caption": text(colour)[2:], "image": f"sa_{n}.jpg"}
        (base / "complete" / f"sa_{n}.json").write_text(json.dumps(made))
    splits = {"train": ["sa_0.json", "sa_1.json"], "valid": [], "test": ["sa_2.json"]}
    (base / "splits.json").write_text(json.dumps(splits))


def urban(folder: Path) -> None:
    for n, colour in enumerate(COLOURS):
        paint(folder / "Urban1k" / "image" / f"{n}.jpg", colour)
        (folder / "Urban1k" / "caption").mkdir(exist_ok=True)
        (folder / "Urban1k" / "caption" / f"{n}.txt").write_text(text(colour) + "\nnever read\n")


@pytest.mark.parametrize("make", [docci, dci, urban])
def test_long_captions_as_published(make, tmp_path: Path) -> None:
    name = {"urban": "urban1k"}.get(make.__name__, make.__name__)
    (tmp_path / name).mkdir()
    make(tmp_path / name)
    found = run_suite(Reader(), name, tmp_path, FEW)["suite"][name]
    for way in ("image_to_text", "text_to_image"):
        assert found[way]["r1"] == 1.0 and found[way]["gallery"] == found[way]["n"] == 3
    assert found["captions_cut"] == {"cut": 1, "of": 3}
    assert found["coverage"] == {"images": {"used": 3, "of": 3, "missing": 0, "unusable": 0}}


def test_a_text_is_too_long_when_its_end_is_cut() -> None:
    tokenizer = Reader().tokenizer
    for words in (["a"], ["and"] * 8, ["and"] * 9, LONG.split()):
        whole = Tokenizer(tokenizer.fast, 77)([" ".join(words)])
        assert tokenizer.too_long([" ".join(words)]) == [whole.shape[1] > 10]


def test_other_files_are_refused_with_their_place(tmp_path: Path) -> None:
    for read, make, name in (
        (read_docci, docci, "list"),
        (read_dci, dci, "splits"),
        (read_urban, urban, "captions"),
    ):
        folder = tmp_path / name
        with pytest.raises(FileNotFoundError):
            read(folder)
        folder.mkdir()
        make(folder)
    path = tmp_path / "list" / "docci_descriptions.jsonlines"
    path.write_text(path.read_text() + '{"split": "test", "image_file": "1.jpg", "description": null}\n')
    with pytest.raises(ValueError, match="line 5 is not DOCCI's"):
        read_docci(tmp_path / "list")
    path.write_text('{"split": "train"}\n')
    with pytest.raises(ValueError, match="no images in test split"):
        read_docci(tmp_path / "list")
    base = tmp_path / "splits" / "densely_captioned_images"
    (base / "complete" / "sa_1.json").write_text('{"short_caption": "a"}')
    with pytest.raises(ValueError, match=r"sa_1\.json is not one of DCI's files"):
        read_dci(tmp_path / "splits")
    (base / "complete" / "sa_1.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"sa_1\.json, which splits\.json names"):
        read_dci(tmp_path / "splits")
    (base / "splits.json").write_text('["sa_0.json"]')
    with pytest.raises(ValueError, match="is not DCI's list of files"):
        read_dci(tmp_path / "splits")
    (tmp_path / "captions" / "Urban1k" / "caption" / "1.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"1\.txt has no caption in its first line"):
        read_urban(tmp_path / "captions")


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    """U+2028, which JSON allows inside of a text, and a byte order mark."""
    said = "one\u2028two"
    item = json.dumps({"image_file": "a.jpg", "split": "test", "description": said}, ensure_ascii=False)
    lay(tmp_path, {"docci_descriptions.jsonlines": item + "\n", "caption/1.txt": f"\ufeff{said}\nthree\n"})
    assert read_docci(tmp_path).captions == read_urban(tmp_path).captions == ((said,),)
