"""img2dataset encodes photographs again without turning them; its `exif` field says how they lie."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hyco.pipeline.imaging.decode import decode, inspect
from hyco.pipeline.imaging.orientation import NAMES, told_orientation, with_orientation
from hyco.pipeline.mining.mine import plan, results
from hyco.pipeline.sources.source import open_source
from hyco.storage.home import Home
from tests.factories.files import tarred
from tests.factories.mining import config
from tests.pipeline.sources.test_source import read

TURNED = json.dumps({"Image Orientation": "Rotated 90 CW", "Image Make": "Phone"})


def encoded(kind: str, orientation: int | None = None, **options: Any) -> bytes:
    """A picture of 30 x 20 with a white corner."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = 255
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options, **({"exif": exif} if orientation else {}))
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
)
def test_an_orientation_is_that_of_the_same_image_with_exif(
    kind: str, options: Any, orientation: int
) -> None:
    plain = encoded(kind, **options)
    expected = decode(encoded(kind, orientation, **options))
    given = with_orientation(plain, orientation)
    assert np.array_equal(decode(given), expected)
    assert inspect(given)[:2] == (expected.shape[1], expected.shape[0])
    with_own = encoded(kind, 3, **options)
    assert with_orientation(with_own, orientation) == with_own


def test_transparency_is_kept() -> None:
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[:, :6, 3] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    assert np.array_equal(decode(with_orientation(file.getvalue(), 8)), np.rot90(decode(file.getvalue())))


def test_words_of_exifread() -> None:
    for words, number in NAMES.items():
        assert told_orientation(json.dumps({"Image Orientation": words})) == number
        assert told_orientation({"Image Orientation": f" {words}"}) == number
    for odd in (
        None,
        3,
        "",
        "{}",
        '{"Image Orientation"',
        '["Image Orientation"]',
        {"Image Orientation": 6},
        "[" * 9999,
    ):
        assert told_orientation(odd) == 1


def members(exif: str, image: bytes) -> dict[str, bytes | str]:
    told = json.dumps({"caption": "a dog", "exif": exif})
    return {"0.jpg": image, "0.txt": "a dog", "0.json": told}


def test_a_photograph_is_turned_as_its_row_says(tmp_path: Path) -> None:
    plain, own = encoded("JPEG"), encoded("JPEG", 6)
    tarred(tmp_path / "tar/0.tar", members(TURNED, plain))
    (tmp_path / "parquet").mkdir()
    pq.write_table(
        pa.table({"jpg": [plain], "caption": ["a dog"], "exif": [TURNED]}), tmp_path / "parquet/0.parquet"
    )
    for kind in ("tar", "parquet"):
        (sample,), failures = read(open_source(tmp_path / kind))
        assert not failures and decode(sample.image).shape == (30, 20, 3)
        assert np.array_equal(decode(sample.image), decode(own)) and sample.image.endswith(plain[2:])
    (sample,), _ = read(open_source(tarred(tmp_path / "0.tar", members(TURNED, own))))
    assert sample.image == own, "an image that kept its EXIF is not turned twice"
    (sample,), _ = read(open_source(tarred(tmp_path / "1.tar", members("{}", plain))))
    assert sample.image == plain


def test_only_units_with_such_photographs_are_mined_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("hyco.pipeline.mining.mine.ground.grounder_digest", lambda spec: "0123456789abcdef")
    source, home = tmp_path / "source", Home(str(tmp_path / "home"))
    tarred(source / "turned.tar", members(TURNED, encoded("JPEG")))
    tarred(source / "own.tar", members(TURNED, encoded("JPEG", 6)))
    tarred(source / "marked.tar", {"0.jpg": encoded("JPEG"), "0.txt": "a &amp; b"})
    pq.write_table(
        pa.table({"jpg": [encoded("JPEG")], "caption": ["a"], "exif": [TURNED]}), tmp_path / "0.parquet"
    )
    opened = open_source(source)
    asked = config(source)
    mined = results(asked, home)
    for unit in opened.units():
        mined.commit(unit.name, {"unit": unit.name, "reading": 2})
    assert [unit.path for unit in plan(asked, home).pending] == ["turned.tar"]
    for unit in opened.units():
        mined.forget(unit.name)
        mined.commit(unit.name, {"unit": unit.name})
    for path in mined.store.list(mined.reading(3)):
        mined.store.delete(path)
    assert [unit.path for unit in plan(asked, home).pending] == ["marked.tar", "turned.tar"]
    assert open_source(tmp_path / "0.parquet").read_otherwise(
        open_source(tmp_path / "0.parquet").units()[0], 2
    )
