import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from hyco.pipeline.config import Config, digest
from hyco.pipeline.imaging.decode import MAX_BYTES, decode, encode_jpeg, inspect
from hyco.pipeline.packing import pack as packing
from hyco.pipeline.packing.dataset_gate import QualityConfig
from hyco.pipeline.packing.pack import PackConfig, pack, pack_shard, plan, publish, split_of
from hyco.pipeline.sources.columns import USUAL, Columns
from hyco.pipeline.sources.records import Limits
from hyco.pipeline.sources.source import Unit, open_source
from hyco.storage.detections import read_failures, write_detections
from hyco.storage.gc import collect
from hyco.storage.home import Home
from hyco.storage.manifest import Manifest
from hyco.storage.sample import TrainingSample
from hyco.storage.shard import read_shard
from hyco.storage.store import Store
from hyco.storage.versions import Version, Versions
from tests.factories.files import named, tarred

SIZE = 64


class Mined(Config):
    """Stands for MineConfig: packing knows of it only where the source is, and its digest."""

    incidental: ClassVar[frozenset[str]] = frozenset({"source"})
    source: str
    limits: Limits = Limits()
    columns: Columns = USUAL
    per_phrase: int = 1


def packing_config(**values: Any) -> PackConfig:
    """Some images of these tests fail on purpose, a large share of so few."""
    return PackConfig(gate=QualityConfig(max_failed=None), **values)


def scene(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """Grey, with a red square in its left half and a blue one in its right."""
    pixels = np.full((height, width, 3), 100 + number % 100, np.uint8)
    pixels[32:64, 16:48] = (255, 0, 0)
    pixels[32:64, 80:112] = (0, 0, 255)
    return pixels


RED, BLUE = (16 / 128, 32 / 96, 48 / 128, 64 / 96), (80 / 128, 32 / 96, 112 / 128, 64 / 96)


def write_source(folder: Path, units: int, samples: int) -> Path:
    folder.mkdir(parents=True)
    for unit in range(units):
        members: dict[str, bytes | str] = {}
        for number in range(unit * samples, (unit + 1) * samples):
            told = {"captions": ["a red square left of a blue square", "two squares"], "number": number}
            members |= named(
                f"{number:09d}", {"jpg": encode_jpeg(scene(number), 95), "json": json.dumps(told)}
            )
        tarred(folder / f"{unit:05d}.tar", members)
    return folder


def rows_of(sample: Any) -> list[dict[str, Any]]:
    width, height, _ = inspect(sample.image, max_bytes=len(sample.image))
    base = {"key": sample.key, "image_sha256": hashlib.sha256(sample.image).hexdigest(), "width": width}
    base |= {"height": height, "detector": "d0", "rules": "r", "rule": "expression"}
    rows = []
    for caption, phrase, box, score in [
        (0, "a red square", RED, 0.9),
        (0, "a blue square", BLUE, 0.5),
        (1, "two squares", RED, 0.4),
        (1, "two squares", BLUE, 0.3),
    ]:
        text = sample.captions[caption]
        start = text.find(phrase)
        row = base | {
            "caption": caption,
            "text": text,
            "phrase": phrase,
            "expression": phrase,
            "score": score,
        }
        row |= {"span_start": start, "span_end": start + len(phrase)}
        rows.append(row | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)))
    return rows


def mine(mined: Mined, home: str, skip: tuple[str, ...] = ()) -> list[Unit]:
    """Write detections as pipeline.mining.mine would, of a detector that sees through our scenes."""
    store, source = Store(home), open_source(mined.source, mined.limits)
    for unit in source.units():
        if unit.path in skip:
            continue
        rows = [row for sample in source.samples(unit, lambda failure: None) for row in rows_of(sample)]
        folder = f"detections/{digest(mined)}"
        made = store.commit(
            f"{folder}/objects", ".parquet", lambda file, rows=rows: write_detections(file, rows)
        )
        record = {"detections": {"path": made.path}, "images": len(rows) // 4, "failed": 1}
        Manifest(store, f"{folder}/records").commit(unit.name, record)
    return source.units()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Mined, str]:
    mined = Mined(source=str(write_source(tmp_path / "source", units=2, samples=5)))
    home = str(tmp_path / "home")
    mine(mined, home)
    return mined, home


def samples_of(home: str, version: Version, split: str = "train") -> list[TrainingSample]:
    store, samples = Store(home), []
    for shard in version.shards[split]:
        with store.open(shard.path) as file:
            samples += read_shard(file, shard.path, shard.samples)
    return samples


def is_colour(pixel: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 60)


def test_pack_end_to_end(made: tuple[Mined, str]) -> None:
    mined, home = made
    told: list[int] = []
    version = pack(
        mined,
        packing_config(image_size=SIZE, shard_size=2),
        Home(home),
        listener=lambda state: told.append(state["done"]),
    )
    assert version.counts == {
        "images": 10,
        "train_images": 10,
        "val_images": 0,
        "captions": 20,
        "parts": 30,
        "mined_images": 10,
        "mine_failures": 2,
        "pack_failures": 0,
        "failures": 2,
    }
    assert told[-1] == 10
    assert [shard.samples for shard in version.shards["train"]] == [2, 2, 1, 2, 2, 1], "units are not mixed"
    assert version.detectors == ["d0"] and version.parent is None
    assert version.config["mine"]["source"] == mined.source and version.config["pack"]["shard_size"] == 2
    assert Versions(Store(home)).verify(version) == []
    samples = samples_of(home, version)
    assert [sample.meta["number"] for sample in samples] == list(range(10))
    for sample in samples:
        assert sample.captions == ("a red square left of a blue square", "two squares")
        assert decode(sample.image).shape == (64, 85, 3), "short side 64, shape kept"
        assert [(part.phrase, part.caption) for part in sample.parts] == [
            ("a red square", 0),
            ("a blue square", 0),
            ("two squares", 1),
        ], "below the threshold: the second box of 'two squares'"
        red, blue, _ = sample.parts
        assert sample.captions[0][slice(*blue.span)] == "a blue square"
        assert np.allclose(blue.box, BLUE) and abs(blue.score - 0.5) < 1e-6
        for part, colour in ((red, (255, 0, 0)), (blue, (0, 0, 255))):
            crop = decode(part.image)
            assert crop.shape == (SIZE, SIZE, 3)
            assert all(is_colour(crop[at, at], colour) for at in (6, 32, 57)), "JPEG blurs colour at edges"


def test_packing_again_does_nothing(made: tuple[Mined, str], monkeypatch: pytest.MonkeyPatch) -> None:
    mined, home = made
    config = packing_config(image_size=SIZE)
    version = pack(mined, config, Home(home))
    files = {path: Store(home).read_bytes(path) for path in Store(home).list()}
    monkeypatch.setattr(packing, "decode", lambda *_: pytest.fail("an image was decoded again"))
    assert plan(mined, config, Home(home)) == []
    assert pack(mined, config, Home(home)) == version
    assert {path: Store(home).read_bytes(path) for path in Store(home).list()} == files


def test_another_threshold_is_another_version_beside_the_first(made: tuple[Mined, str]) -> None:
    mined, home = made
    first = pack(mined, packing_config(image_size=SIZE), Home(home))
    second = pack(mined, packing_config(image_size=SIZE, threshold=0.6), Home(home))
    assert second.name != first.name and second.parent == first.name
    assert second.counts["parts"] == 10 and first.counts["parts"] == 30
    assert Versions(Store(home)).verify(first) == Versions(Store(home)).verify(second) == []
    assert pack(mined, packing_config(image_size=SIZE), Home(home)) == first
    assert Versions(Store(home)).load().name == first.name, "latest is what was asked for last"


def test_packing_never_touches_a_detector() -> None:
    heavy = "{'torch', 'transformers', 'onnxruntime', 'spacy', 'prefect', "
    heavy += "'hyco.pipeline.mining.mine', 'hyco.pipeline.mining.grounder'}"
    light = "{'hyco.models.grounding', 'hyco.models.grounding.boxes', "  # NumPy alone
    light += "'hyco.models.grounding.detector'}"
    code = "import sys, hyco.pipeline.packing.pack; here = set(sys.modules)\n"
    code += f"found = {heavy} & here | {{m for m in here if m.startswith('hyco.models.')}} - {light}\n"
    code += "assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_images_without_parts(made: tuple[Mined, str]) -> None:
    mined, home = made
    with pytest.raises(ValueError, match="no training sample is left to publish: lower threshold"):
        pack(mined, packing_config(image_size=SIZE, threshold=0.95), Home(home))
    kept = pack(mined, packing_config(image_size=SIZE, threshold=0.95, keep_partless=True), Home(home))
    assert kept.counts["images"] == kept.counts["partless"] == 10 and kept.counts["parts"] == 0
    assert all(sample.parts == () for sample in samples_of(home, kept))


def test_holdout_is_by_key_and_the_same_in_every_version(made: tuple[Mined, str]) -> None:
    mined, home = made
    first = pack(mined, packing_config(image_size=SIZE, holdout=0.4), Home(home))
    second = pack(mined, packing_config(image_size=SIZE, holdout=0.4, quality=50), Home(home))
    train = {sample.key for sample in samples_of(home, first)}
    val = {sample.key for sample in samples_of(home, first, "val")}
    assert train.isdisjoint(val) and len(train) + len(val) == 10 and val
    assert {sample.key for sample in samples_of(home, second, "val")} == val
    assert first.counts["val_images"] == len(val)
    assert {key for key in train | val if split_of(key, 0.2) == "val"} <= val, (
        "a larger share holds the smaller"
    )
    share = sum(split_of(f"{i:032x}", 0.1) == "val" for i in range(10_000)) / 10_000
    assert abs(share - 0.1) < 0.01
    assert {split_of(f"{i:032x}", 0.0) for i in range(100)} == {"train"}


def test_small_plain_jpegs_go_in_byte_for_byte(made: tuple[Mined, str]) -> None:
    mined, home = made
    samples = samples_of(home, pack(mined, packing_config(image_size=96), Home(home)))
    assert samples[0].image == encode_jpeg(scene(0), 95)


def test_limits_can_be_raised(tmp_path: Path) -> None:
    large, told = encode_jpeg(scene(0), 95) + bytes(MAX_BYTES), {"captions": ["a red square", "two squares"]}
    tarred(tmp_path / "0.tar", {"0.jpg": large, "0.json": json.dumps(told)})
    mined = Mined(source=str(tmp_path / "0.tar"), limits=Limits(max_bytes=len(large)))
    mine(mined, str(tmp_path / "home"))
    version = pack(mined, packing_config(image_size=SIZE), Home(tmp_path / "home"))
    assert version.counts["images"] == 1 and version.counts["pack_failures"] == 0


def test_an_image_that_cannot_be_decoded_is_a_failure(tmp_path: Path) -> None:
    mined, home = Mined(source=str(tmp_path / "source")), str(tmp_path / "home")
    path = write_source(Path(mined.source), units=1, samples=3) / "00000.tar"
    whole, broken = encode_jpeg(scene(1), 95), encode_jpeg(scene(1), 95)[:-400] + bytes(400)
    assert inspect(broken), "mining of an older Hyco may have let it pass"
    path.write_bytes(path.read_bytes().replace(whole, broken))
    mine(mined, home)
    version = pack(mined, packing_config(image_size=SIZE), Home(home))
    assert version.counts["images"] == 2 and version.counts["pack_failures"] == 1
    assert version.counts["failures"] == 2, "with the one that mining reported"
    unit = open_source(path).units()[0]
    record = pack_shard(mined, packing_config(image_size=SIZE), Home(home), unit)
    with Store(home).open(record["failures"]) as file:
        (failure,) = read_failures(file)
    assert (failure.stage, failure.code) == ("pack", "undecodable")


def test_a_picture_that_the_encoder_refuses_is_a_failure_by_name(tmp_path: Path) -> None:
    """70,000 x 68 pixels are shrunk to 65,882 x 64: more than JPEG encoders write."""
    mined, home = Mined(source=str(tmp_path / "source")), str(tmp_path / "home")
    path = write_source(Path(mined.source), units=1, samples=2) / "00000.tar"
    wide = io.BytesIO()
    Image.new("L", (70_000, 68), 255).save(wide, "PNG")
    told = {"captions": ["a red square left of a blue square", "two squares"]}
    tarred(path, named("panorama", {"png": wide.getvalue(), "json": json.dumps(told)}), mode="a")
    mine(mined, home)
    version = pack(mined, packing_config(image_size=SIZE), Home(home))
    assert version.counts["images"] == 2 and version.counts["pack_failures"] == 1
    record = pack_shard(mined, packing_config(image_size=SIZE), Home(home), open_source(path).units()[0])
    with Store(home).open(record["failures"]) as file:
        (failure,) = read_failures(file)
    assert failure.code == "unencodable" and "65882 x 64" in failure.message
    assert failure.key == hashlib.sha256(wide.getvalue()).hexdigest()[: len(failure.key)]


def test_units_that_are_not_mined_or_not_packed(tmp_path: Path) -> None:
    mined = Mined(source=str(write_source(tmp_path / "source", units=3, samples=1)))
    home, config = str(tmp_path / "home"), packing_config(image_size=SIZE)
    units = mine(mined, home, skip=("00001.tar",))
    with pytest.raises(ValueError, match=r"1 of 3 units are not mined \(00001\.tar\): run mine"):
        pack(mined, config, Home(home))
    with pytest.raises(ValueError, match=r"unit 00001\.tar is not mined"):
        pack_shard(mined, config, Home(home), units[1])
    mine(mined, home)
    pack_shard(mined, config, Home(home), units[2])
    assert plan(mined, config, Home(home)) == units[:2]
    with pytest.raises(ValueError, match=r"2 of 3 units are not packed \(00000\.tar \.\.\.\)"):
        publish(mined, config, Home(home))
    assert pack(mined, config, Home(home)).counts["images"] == 3


def test_a_torn_source_is_an_error_of_its_unit(made: tuple[Mined, str]) -> None:
    mined, home = made
    (unit, _), path = open_source(mined.source).units(), Path(mined.source) / "00000.tar"
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(ValueError, match=r"00000\.tar"):
        pack_shard(mined, packing_config(), Home(home), unit)


def test_nothing_is_garbage_after_packing(made: tuple[Mined, str]) -> None:
    mined, home = made
    version = pack(mined, packing_config(image_size=SIZE), Home(home))
    Store(home).commit("shards/objects", ".tar", lambda file: file.write(b"of a killed worker"))
    assert len(collect(Store(home), older_than_s=0)) == 1
    assert Versions(Store(home)).verify(version) == []


def test_a_home_in_memory(tmp_path: Path) -> None:
    mined = Mined(source=str(write_source(tmp_path / "source", units=1, samples=2)))
    mine(mined, "memory://pack-test")
    version = pack(mined, packing_config(image_size=SIZE), Home("memory://pack-test"))
    assert Versions(Store("memory://pack-test")).verify(version) == []


def test_a_killed_packing_goes_on(made: tuple[Mined, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at each of the first commits in turn, as kill -9 would, then run again: the same version, whole."""
    mined, home = made
    config = packing_config(image_size=SIZE, shard_size=3)
    real, state = Store.commit, {"left": 0}

    class Killed(BaseException):
        pass

    def commit(self: Store, *args: Any) -> Any:
        made = real(self, *args)
        state["left"] -= 1
        if state["left"] == 0:
            raise Killed
        return made

    monkeypatch.setattr(Store, "commit", commit)
    for stop in (1, 2, 3):
        state["left"] = stop
        with pytest.raises(Killed):
            pack(mined, config, Home(home))
        assert Versions(Store(home)).names() == []
    state["left"] = 0
    version = pack(mined, config, Home(home))
    assert Versions(Store(home)).verify(version) == []
    assert [sample.meta["number"] for sample in samples_of(home, version)] == list(range(10))


@pytest.mark.chaos
def test_kill_9_while_packing(tmp_path: Path) -> None:
    """A real process, really killed, several times over; what comes out equals an undisturbed run."""
    mined = Mined(source=str(write_source(tmp_path / "source", units=6, samples=60)))
    home, quiet = str(tmp_path / "home"), str(tmp_path / "quiet")
    for place in (home, quiet):
        mine(mined, place)
    code = (
        "import sys; from tests.pipeline.packing.test_pack import *; "
        f"pack(Mined(source={mined.source!r}), packing_config(image_size=64, shard_size=16), Home(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    killed = 0
    for shards in (1, 5, 10, 16):
        process = subprocess.Popen([sys.executable, "-c", code, home], env=environment)
        while process.poll() is None and len(Store(home).list("shards")) < shards:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for path in Store(home).list("shards"):
            assert Store(home).sha256(path) == Path(path).stem
    config = packing_config(image_size=64, shard_size=16)
    version, expected = pack(mined, config, Home(home)), pack(mined, config, Home(quiet))
    assert killed == 4 and version.shards == expected.shards and version.name == expected.name
    assert Versions(Store(home)).verify(version) == []


def test_another_threshold_calls_no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mine once with a detector that counts its calls, then pack under three thresholds."""
    from hyco.models.grounding.detector import Detection
    from hyco.pipeline.mining import grounder as ground
    from hyco.pipeline.mining.mine import MineConfig, mine_shard
    from hyco.pipeline.mining.mine import plan as plan_mining

    class Counting:
        digest = "counting"
        calls = 0

        def __call__(self, images: Any, phrases: Any) -> list[Detection]:
            self.calls += 1
            boxes = [np.array([RED, BLUE], np.float32) for _ in images]
            scores = np.array([0.9, 0.5], np.float32)
            return [Detection(found, scores, np.zeros(2, np.int64)) for found in boxes]

    detector = Counting()
    monkeypatch.setattr(ground, "open_detector", lambda *_: detector)
    monkeypatch.setattr(ground, "grounder_digest", lambda spec: "counting")
    source, home = write_source(tmp_path / "source", units=1, samples=3), str(tmp_path / "home")
    mined = MineConfig(source=str(source), grounder=f"transformers:{tmp_path}")
    mine_shard(mined, Home(home), plan_mining(mined, Home(home)).pending[0])
    calls = detector.calls
    versions = [
        pack(mined, packing_config(image_size=SIZE, threshold=t), Home(home)) for t in (0.2, 0.6, 0.8)
    ]
    assert calls and detector.calls == calls
    assert len({version.name for version in versions}) == 3
    assert versions[0].counts["parts"] > versions[1].counts["parts"] >= versions[2].counts["parts"] > 0
