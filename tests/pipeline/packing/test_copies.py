"""Copies and evaluation images are left out of a version, counted and shown; on photographs, how many are found."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hyco.pipeline.config import digest
from hyco.pipeline.curation.delete import delete
from hyco.pipeline.packing.copies import NEAR, left_out
from hyco.pipeline.packing.dataset_gate import QualityConfig, QualityError, left_out_of
from hyco.pipeline.packing.image_hashes import Place, hash_all, results
from hyco.pipeline.packing.pack import PackConfig, pack, pack_digest, plan
from hyco.pipeline.runtime.executor import InProcess
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import open_source
from hyco.pipeline.ui.server import create_app
from hyco.pipeline.ui.version_card import card
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.sample import content_key
from tests.factories.files import tarred
from tests.pipeline.imaging.test_perceptual_hash import smooth
from tests.pipeline.packing.test_pack import Mined, mine, packing_config, samples_of

FLICKR = Path("../shared/data/flickr8k")


def jpeg(seed: int, quality: int = 95, size: tuple[int, int] | None = None) -> bytes:
    image = Image.fromarray(smooth(seed))
    data = io.BytesIO()
    (image.resize(size, Image.Resampling.BICUBIC) if size else image).save(data, "JPEG", quality=quality)
    return data.getvalue()


def write(path: Path, images: dict[str, bytes]) -> None:
    told = json.dumps({"captions": ["a red square left of a blue square", "two squares"]})
    tarred(
        path,
        [
            member
            for name, data in images.items()
            for member in ((f"{name}.jpg", data), (f"{name}.json", told))
        ],
    )


@pytest.fixture
def mined(tmp_path: Path) -> tuple[Mined, Home]:
    """Two units: 1 and 2 are copied in the second unit, 3 is in the exam, and a copy of 4 too."""
    source = tmp_path / "source"
    write(source / "0.tar", {f"one{n}": jpeg(n) for n in range(5)})
    write(source / "1.tar", {"again1": jpeg(1, 40), "again2": jpeg(2, 80, (200, 150)), "new": jpeg(9)})
    write(tmp_path / "exam" / "exam.tar", {"asked": jpeg(3), "other": jpeg(77)})
    (tmp_path / "bench" / "class").mkdir(parents=True)
    (tmp_path / "bench" / "class" / "4.jpg").write_bytes(jpeg(4, 50))
    told, home = Mined(source=str(source)), Home(tmp_path / "home")
    mine(told, home.url)
    return told, home


def names(home: Home, version: Any) -> list[str]:
    return sorted(sample.meta["source_key"] for sample in samples_of(home.url, version))


def options(tmp_path: Path, **values: Any) -> PackConfig:
    return packing_config(
        image_size=32, min_area_px=None, exclude=(str(tmp_path / "exam"), str(tmp_path / "bench")), **values
    )


def test_near_copies_and_evaluation_images_are_left_out_and_told(mined, tmp_path) -> None:
    told, home = mined
    config = options(tmp_path, near_duplicates=64)
    version = pack(told, config, home)
    assert names(home, version) == ["new", "one0", "one1", "one2"]
    assert (version.counts["near_duplicates"], version.counts["contaminated"]) == (2, 2)
    shown = {one["name"]: (one["of"], one["reason"]) for one in left_out_of(home, version, 9)}
    assert shown == {
        "again1": ("one1", "near_duplicates"),
        "again2": ("one2", "near_duplicates"),
        "one3": (f"{tmp_path / 'exam'}: asked", "contaminated"),
        "one4": (f"{tmp_path / 'bench'}: class/4.jpg", "contaminated"),
    }
    assert plan(told, config, home) == [] and pack(told, config, home) == version
    page = TestClient(create_app(home), base_url="http://localhost").get(f"/versions/{version.name}").text
    assert "Images left out as copies" in page and "again1" in page
    assert "## Images left out as copies" in card(home, version)


def test_without_a_hash_only_equal_bytes_count_and_without_the_options_nothing_changes(
    mined, tmp_path
) -> None:
    told, home = mined
    bytes_alone = pack(told, options(tmp_path), home)
    assert bytes_alone.counts["contaminated"] == 1 and "one3" not in names(home, bytes_alone)
    plain = packing_config(image_size=32, min_area_px=None)
    assert len(names(home, pack(told, plain, home))) == 8
    assert digest(plain) == digest(PackConfig(image_size=32, min_area_px=None)), (
        "the digests of existing packings stay"
    )
    assert pack_digest(told, plain) != pack_digest(told, options(tmp_path))


def test_a_changed_exam_is_compared_again_and_only_what_changes_is_packed(mined, tmp_path) -> None:
    told, home = mined
    loose = QualityConfig(max_failed=None, max_copies=None)
    config = options(tmp_path, near_duplicates=64).replace(gate=loose)
    pack(told, config, home)
    write(tmp_path / "exam" / "more.tar", {"asked": jpeg(9, 70)})
    assert plan(told, config, home) == [], "an exam that is not hashed yet is compared by the next pack"
    version = pack(told, config, home)
    assert names(home, version) == ["one0", "one1", "one2"] and version.counts["contaminated"] == 3
    (tmp_path / "exam" / "more.tar").unlink()
    assert [unit.path for unit in plan(told, config, home)] == ["1.tar"]


def test_of_copies_the_first_that_has_a_box_is_kept(mined, tmp_path) -> None:
    told, home = mined
    low = packing_config(image_size=32, near_duplicates=64, min_area_px=None)
    units = open_source(told.source).units()
    records = home.detections(digest(told)).records()
    place = Place(told.source, told.limits)
    hash_all(home, [(place, unit) for unit in units], InProcess())
    back = left_out(home, place, units[::-1], records, low, False, 64, ())
    assert {why.name: why.of for why in back[units[0].name].values()} == {"one1": "again1", "one2": "again2"}
    none = low.replace(threshold=0.95)
    assert left_out(home, place, units, records, none, False, 64, ()) == {}, (
        "no image has a part: none is dropped"
    )
    kept = left_out(home, place, units, records, none, True, 64, ())
    assert len(kept[units[1].name]) == 2


def test_the_gate_names_copies_and_refuses_too_many(mined, tmp_path) -> None:
    told, home = mined
    said = []
    pack(told, options(tmp_path, near_duplicates=64), home, judged=said.extend)
    (check,) = [check for check in said if check.name == "copies left out"]
    assert check.value.startswith("2 near duplicates, 2 evaluation images; ") and " is " in check.value
    strict = options(tmp_path, near_duplicates=64).replace(
        gate=QualityConfig(max_failed=None, max_copies=0.4)
    )
    with pytest.raises(QualityError, match=r"50\.0% of all, more than max_copies 40"):
        pack(told, strict, home)


def test_a_deleted_image_has_no_hash_and_what_it_hid_comes_back(mined, tmp_path) -> None:
    told, home = mined
    config = options(tmp_path, near_duplicates=64)
    pack(told, config, home)
    key = content_key(jpeg(1))
    delete(home, keys=[key])
    collect(home.store)
    assert all(
        key.encode() not in path.read_bytes() for path in (tmp_path / "home/hashes").rglob("*.parquet")
    )
    version = pack(told, config, home)
    assert (
        names(home, version) == ["again1", "new", "one0", "one2"] and version.counts["near_duplicates"] == 1
    )


def test_an_evaluation_source_that_is_none_is_named(mined, tmp_path) -> None:
    told, home = mined
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises((ValueError, OSError), match=place.name):
            pack(told, packing_config(image_size=32, exclude=(str(place),)), home)


def test_a_source_that_is_its_own_exam_is_told(mined) -> None:
    told, home = mined
    with pytest.raises(
        ValueError, match=f"8 images are left out as copies .* exclude other sources .{told.source}"
    ):
        pack(told, packing_config(image_size=32, min_area_px=None, exclude=(told.source,)), home)


def altered(image: Image.Image, number: int, draw: np.random.Generator) -> bytes:
    """A copy: encoded again, resized, cropped by up to 4 % a side, or both of the last."""
    kind = number % 4
    if kind in (1, 3):
        scale = draw.uniform(0.4, 2.0)
        image = image.resize(
            tuple(max(1, int(side * scale)) for side in image.size), Image.Resampling.BICUBIC
        )
    if kind in (2, 3):
        left, top, right, bottom = draw.uniform(0, 0.04, 4)
        width, height = image.size
        box = (left * width, top * height, width - right * width, height - bottom * height)
        image = image.crop(tuple(map(int, box)))
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=int(draw.integers(20, 95)))
    return data.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(not FLICKR.is_dir(), reason="needs ../shared/data/flickr8k")
@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_copies_among_five_thousand_photographs(tmp_path: Path, seed: int) -> None:
    """Copies of photographs drawn by seed lie in a unit of their own, after the others."""
    draw = np.random.default_rng(seed)
    held: list[bytes] = []
    for path in sorted(FLICKR.glob("*.tar")):
        with tarfile.open(path) as tar:
            held += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    chosen = draw.choice(len(held), 200, replace=False)
    source = tmp_path / "source"
    for number, path in enumerate(sorted(FLICKR.glob("*.tar"))):
        (source / "a").mkdir(parents=True, exist_ok=True)
        (source / "a" / f"{number:05d}.tar").symlink_to(path.resolve())
    copies = {f"copy{n}": altered(Image.open(io.BytesIO(held[of])), n, draw) for n, of in enumerate(chosen)}
    write(source / "b" / "copies.tar", copies)
    told, home = Mined(source=str(source)), Home(tmp_path / "home")
    mine(told, home.url)
    place, units = Place(str(source), Limits()), open_source(str(source)).units()
    hash_all(home, [(place, unit) for unit in units], InProcess())
    config = packing_config(near_duplicates=64, min_area_px=None)
    records = home.detections(digest(told)).records()
    found = left_out(home, place, units, records, config, True, config.near_duplicates, ())
    dropped = [why.name for keys in found.values() for why in keys.values() if why.reason == NEAR]
    right = sum(name.startswith("copy") for name in dropped)
    recall, precision = right / len(copies), right / max(1, len(dropped))
    wrong = sorted(set(dropped) - set(copies))
    print(
        f"{len(held)} photographs, seed {seed}: recall {recall:.3f}, precision {precision:.3f}, wrong {wrong}"
    )
    assert results(home, place).records() and recall >= 0.95 and precision >= 0.99
